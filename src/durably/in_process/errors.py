"""Errors between the nodes of one database."""

from durably.errors import Error


class CallReturnedError(Error):
    """A process that stops returns a call that it has not finished."""


class WorkerLostError(Error):
    """The process that ran the call has ended, or has sent no heartbeat for the lease."""


class NodeClosedError(Error):
    """This node was closed or replaced during a request."""


class EngineMovedError(Error):
    """The engine is not, or no longer, behind this leader or link.

    ``is_unclear``: the request may have been executed.
    """

    def __init__(self, message: str, *, is_unclear: bool) -> None:
        super().__init__(message)
        self.is_unclear = is_unclear
