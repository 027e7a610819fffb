"""Endpoints made of the workflow, for staff with Django's permissions. Orders begin in ``views``, which write them
down; so nothing is started here.
"""

from durably.temporal.django import require_permissions, temporal
from durably.temporal.gateway import FOR_OPERATORS, Gateway, Operation, expose

from .workflows import OrderWorkflow

READING = {
    Operation.LIST,
    Operation.DESCRIBE,
    Operation.RESULT,
    Operation.EVENTS,
    Operation.HISTORY,
    Operation.QUERY,
}

gateway = Gateway(
    temporal,
    [
        expose(
            OrderWorkflow,
            name="orders",
            # The views start orders without an owner: those are for the staff alone.
            owner=lambda user: str(user.pk),
            staff=lambda user: user.is_staff,
            signals="all",
            queries="all",
            operations=FOR_OPERATORS - {Operation.START, Operation.SIGNAL_WITH_START},
        )
    ],
    authorize=require_permissions(
        dict.fromkeys(READING, "temporal_app.view_order"), otherwise="temporal_app.change_order"
    ),
)
