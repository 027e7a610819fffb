"""Errors between the processes of one database."""

from durably.errors import Error


class CallHandedBackError(Error):
    """A process that stops gives back a call that it has not finished."""


class WorkerLostError(Error):
    """The process that had the call is gone, or has shown no sign of life for too long."""


class MemberClosedError(Error):
    """This process has stopped, or started anew elsewhere, while something was asked."""


class PlaceLostError(Error):
    """The engine is not, or not any more, where it was asked. ``is_unclear``: what it was asked may have happened."""

    def __init__(self, message: str, *, is_unclear: bool) -> None:
        super().__init__(message)
        self.is_unclear = is_unclear
