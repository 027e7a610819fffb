"""Statuses of workflows."""

from temporalio.client import WorkflowExecutionStatus

from .compat import PAUSED


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow can still go on."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED


OPEN_FILTER = "CloseTime IS NULL"
"""Finds what ``is_open`` is true for. Old servers do not know the status Paused, and refuse it in a query."""
