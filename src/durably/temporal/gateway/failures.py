"""Why a workflow, an activity or an update failed: the chain of causes, without secrets.

Details and stack traces stay on the server: they hold whatever the code held. Of messages, what looks like a
credential is left out.
"""

from typing import Any

from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, TimeoutError

from durably.temporal.scrubbing import scrub

from .models import FailureCause

_MAXIMUM_CAUSES = 20


def cause_chain(error: BaseException | None) -> list[dict[str, Any]]:
    """From the outermost cause to the first, as JSON."""
    return [cause.model_dump() for cause in causes(error)]


def causes(error: BaseException | None) -> list[FailureCause]:
    chain: list[FailureCause] = []
    while error is not None and len(chain) < _MAXIMUM_CAUSES:
        chain.append(_cause(error))
        error = error.__cause__
    return chain


def _cause(error: BaseException) -> FailureCause:
    cause = FailureCause(type=type(error).__name__, message=scrub(getattr(error, "message", "") or str(error)))
    if isinstance(error, ApplicationError):
        cause.type = error.type or cause.type
        cause.non_retryable = error.non_retryable or None
    elif isinstance(error, ActivityError):
        cause.activity = error.activity_type
        cause.retry_state = error.retry_state.name.lower() if error.retry_state else None
    elif isinstance(error, ChildWorkflowError):
        cause.workflow = error.workflow_type
        cause.retry_state = error.retry_state.name.lower() if error.retry_state else None
    elif isinstance(error, TimeoutError) and error.type is not None:
        cause.timeout = error.type.name.lower()
    return cause
