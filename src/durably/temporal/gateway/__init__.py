"""An HTTP surface for Temporal workflows: framework-neutral, validated, authorised.

``expose`` says what is open, ``Gateway`` answers requests, and the adapters (``durably.temporal.fast_api`` and its
like) mount it. Nothing in here knows a framework.
"""

try:
    import pydantic
except ImportError as error:
    raise ImportError('the gateway needs pydantic: pip install "durably[temporal]"') from error

from .authorization import Action, Authorize, Unauthenticated
from .call import Limits
from .exposure import (
    FOR_OPERATORS,
    FOR_OWNERS,
    FOR_SCHEDULE_OPERATORS,
    FOR_SCHEDULE_READERS,
    FOR_USERS,
    Exposure,
    Operation,
    expose,
)
from .gateway import Gateway, iterate_sync
from .messages import GatewayRequest, GatewayResponse
from .schedule_exposure import ScheduleExposure, expose_schedules

__all__ = [
    "FOR_OPERATORS",
    "FOR_OWNERS",
    "FOR_SCHEDULE_OPERATORS",
    "FOR_SCHEDULE_READERS",
    "FOR_USERS",
    "Action",
    "Authorize",
    "Exposure",
    "Gateway",
    "GatewayRequest",
    "GatewayResponse",
    "Limits",
    "Operation",
    "ScheduleExposure",
    "Unauthenticated",
    "expose",
    "expose_schedules",
    "iterate_sync",
]

del pydantic
