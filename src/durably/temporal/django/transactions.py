"""Workflows and database transactions: a workflow must not start for what is rolled back."""

from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction

from durably.temporal.connection import Temporal

from .conf import get_temporal


def start_on_commit(
    workflow: str | Callable[..., Any],
    *arg: Any,
    id: str,
    args: Sequence[Any] = (),
    using: str | None = None,
    robust: bool = False,
    temporal: Temporal | None = None,
    **options: Any,
) -> None:
    """Start a workflow once the current transaction commits; at once when there is none.

    The arguments are those of ``temporal.sync.start_workflow``; ``using`` names the database. If the server is away at
    that moment, the transaction stays and the error is raised from the end of the ``atomic`` block, or with ``robust``
    logged: what must start in any case is better written down and started by an activity or a schedule.
    """
    connection = temporal or get_temporal()
    if args:
        options["args"] = args

    def start() -> None:
        connection.sync.start_workflow(workflow, *arg, id=id, **options)

    transaction.on_commit(start, using=using, robust=robust)
