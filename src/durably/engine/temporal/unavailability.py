"""Errors of a Temporal server that is away, or restarts."""

from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

_STATUSES = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
"""Statuses of requests that the server may not have seen."""
_LOST = "transport error"
"""The SDK's message for a connection that was cut during a request. Its status is ``UNKNOWN``."""


def is_away(error: Exception) -> bool:
    """Whether the server did not answer. It may have executed the request."""
    if isinstance(error, RPCError):
        return error.status in _STATUSES or (error.status is RPCStatusCode.UNKNOWN and error.message == _LOST)
    return isinstance(error, WorkflowUpdateRPCTimeoutOrCancelledError)
