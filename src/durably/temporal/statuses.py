"""Statuses of workflows."""

from temporalio.client import WorkflowExecutionStatus

from .compat import PAUSED


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow can still go on."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED
