"""Errors of a Temporal server that is away, or restarts."""

from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import says_connection_broke

_STATUSES = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
"""Statuses of requests that the server may not have seen."""


def is_away(error: Exception) -> bool:
    """Whether the server did not answer. It may have executed the request."""
    if isinstance(error, RPCError):
        return error.status in _STATUSES or says_connection_broke(error)
    return isinstance(error, WorkflowUpdateRPCTimeoutOrCancelledError)
