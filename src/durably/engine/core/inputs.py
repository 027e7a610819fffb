"""What can happen to a run (inputs) and what the machine then wants done (commands), as plain values.

Times are milliseconds since the epoch. A memo is the JSON that apps get for a finished step.
"""

from typing import Any

import msgspec

from durably.protocol.opcodes import Op, Opcode

from .answers import Answer
from .op_options import DeferOptions, EventWaitOptions, InvokeOptions, SignalWaitOptions
from .run_state import Call, RunStatus


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A call came to its end. ``memoised`` are those of the answer's step ids, and of the call's own target,
    that have a memo already: the run state does not know."""

    generation: int
    answer: Answer
    memoised: frozenset[str] = frozenset()


class AnsweredTogether(msgspec.Struct, frozen=True):
    """Calls that shared a request came to their ends. Those that are stale change nothing."""

    answers: tuple[Answered, ...]

    @property
    def generation(self) -> int:
        return self.answers[0].generation


class Checkpointed(msgspec.Struct, frozen=True, gc=False):
    """A call that goes on hands over steps that it has finished. ``memoised`` as in ``Answered``."""

    generation: int
    ops: list[Op]
    memoised: frozenset[str] = frozenset()


OfCall = Answered | AnsweredTogether | Checkpointed
"""What comes from calls, and is stale where the run has given them up."""


class TimerFired(msgspec.Struct, frozen=True, gc=False):
    """A sleep is over, or a wait has timed out."""

    step_id: str


class WaitResolved(msgspec.Struct, frozen=True, gc=False):
    """What an outstanding step waited for has come: an event, a signal, an invoked run's end."""

    step_id: str
    memo: bytes
    failed: bool = False


class SignalConflicted(msgspec.Struct, frozen=True):
    """Another run waits for the signal already, and this one does not replace it."""

    step_id: str
    signal: str


class RequestFinished(msgspec.Struct, frozen=True):
    """A request that the engine made for a step is over. ``memo`` is what the step comes to, ``{data}`` or, where it
    ``failed``, ``{error}``, unless it ``is_retriable`` and has attempts left."""

    step_id: str
    generation: int
    memo: bytes
    failed: bool = False
    is_retriable: bool = False


class CancelRequested(msgspec.Struct, frozen=True):
    """``reason`` becomes the message of the run's error."""

    reason: str = "the run was cancelled by request"


class Recovered(msgspec.Struct, frozen=True):
    """The engine starts again: whatever was under way when it stopped will not be heard of any more."""


Input = (
    Answered
    | AnsweredTogether
    | Checkpointed
    | TimerFired
    | WaitResolved
    | SignalConflicted
    | RequestFinished
    | CancelRequested
    | Recovered
)


class MakeCall(msgspec.Struct, frozen=True, gc=False):
    call: Call


class WriteMemo(msgspec.Struct, frozen=True, gc=False):
    """``attempts`` is how many it took; ``failed`` whether the memo is an error."""

    step_id: str
    name: str
    op: Opcode
    memo: bytes
    attempts: int = 1
    failed: bool = False


class Sleep(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    until: int


class AwaitEvent(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    options: EventWaitOptions


class AwaitSignal(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    options: SignalWaitOptions


class Invoke(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    options: InvokeOptions


class MakeRequest(msgspec.Struct, frozen=True):
    """``opts`` may hold credentials: it must not be stored. ``None`` means the same as for the attempt before."""

    step_id: str
    name: str
    op: Opcode
    generation: int
    attempt: int
    due: int
    opts: dict[str, Any] | None

    def __repr__(self) -> str:
        return f"MakeRequest(step_id={self.step_id!r}, generation={self.generation}, attempt={self.attempt})"


class CloseWait(msgspec.Struct, frozen=True, gc=False):
    step_id: str


class Defer(msgspec.Struct, frozen=True):
    """Start a function when the run has ended."""

    step_id: str
    options: DeferOptions


class AbortDeferred(msgspec.Struct, frozen=True):
    step_id: str


class RefuseDeferred(msgspec.Struct, frozen=True):
    """Say that a function cannot be deferred. ``name`` is the user's id of it."""

    name: str
    reason: str


class EndRun(msgspec.Struct, frozen=True, gc=False):
    """Everything of the run that is outstanding is void. ``output`` is JSON: the result, or the error."""

    status: RunStatus
    output: bytes


Command = (
    MakeCall
    | WriteMemo
    | Sleep
    | AwaitEvent
    | AwaitSignal
    | Invoke
    | MakeRequest
    | CloseWait
    | Defer
    | AbortDeferred
    | RefuseDeferred
    | EndRun
)
KEPT_BY_FAILURES = WriteMemo | CloseWait | Defer | AbortDeferred | RefuseDeferred
"""Commands that are executed even if the run fails in the same transition: they report finished work."""
