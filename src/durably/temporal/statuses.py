"""A status that servers have and the SDK has not: paused, by an operator.

Where one workflow of a list has it, the SDK fails to read all of the list, since its enumeration knows no such value.
So the value is made known to it here; a later SDK has its own.
"""

from temporalio.client import WorkflowExecutionStatus

_PAUSED = 8
"""``WORKFLOW_EXECUTION_STATUS_PAUSED`` of the server's API."""


def _find_or_make_paused() -> WorkflowExecutionStatus:
    known = next((status for status in WorkflowExecutionStatus if status == _PAUSED), None)
    if known is not None:
        return known
    paused = int.__new__(WorkflowExecutionStatus, _PAUSED)
    paused._name_, paused._value_ = "PAUSED", _PAUSED

    def missing(kind: object, value: object) -> WorkflowExecutionStatus | None:
        return paused if value == _PAUSED else None

    WorkflowExecutionStatus._missing_ = classmethod(missing)  # type: ignore[assignment]
    return paused


PAUSED = _find_or_make_paused()


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow can still go on."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED
