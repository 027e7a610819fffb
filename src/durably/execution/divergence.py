"""Replays that differ from the calls that made their memos. Pure: another module reports them."""

from collections.abc import Sequence
from dataclasses import dataclass

from durably.protocol.errors import Error, ErrorCode


class ReplayDivergedError(Error):
    """The function no longer reaches steps that its run has finished, and strict replay is on."""

    code = ErrorCode.REPLAY_DIVERGED
    is_retriable = False
    include_stack = False


class StepIdUnstableError(Error):
    """The ids of a function's steps change from call to call, so their handlers would run again and again."""

    code = ErrorCode.STEP_ID_UNSTABLE
    is_retriable = False
    include_stack = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """``unreached`` are the hashed ids of finished steps that were not reached, in the order in which they finished.

    ``found`` is the new step that is about to run; ``None`` if the function returned. ``early`` names a finished step
    that was reached earlier than in the call that finished it.
    """

    unreached: Sequence[str]
    found: str | None = None
    early: str | None = None
