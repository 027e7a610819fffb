"""Inputs of the run machine, and the commands that it returns, as plain values.

Times are milliseconds since the epoch. A memo is the JSON that apps get for a finished step.
"""

from typing import Any

import msgspec

from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode
from durably.protocol.questions import QuestionInfo
from durably.protocol.usage import ModelUsage

from .calls import Answer
from .run_state import Call, RunStatus


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A call has ended.

    ``memoised`` are the steps of the answer, and the call's own target, that already have a memo, because the run state
    does not have them. ``called_at`` is when the call was made, if known. It affects no decision.
    """

    generation: int
    answer: Answer
    memoised: frozenset[str] = frozenset()
    called_at: int | None = None


class AnsweredTogether(msgspec.Struct, frozen=True):
    """Calls that shared a request have ended. Stale ones are ignored."""

    answers: tuple[Answered, ...]

    @property
    def generation(self) -> int:
        return self.answers[0].generation

    @property
    def called_at(self) -> int | None:
        return self.answers[0].called_at


class Checkpointed(msgspec.Struct, frozen=True, gc=False):
    """A call reports steps that it has finished, and continues.

    ``memoised`` and ``called_at`` are as in ``Answered``.
    """

    generation: int
    ops: list[Op]
    memoised: frozenset[str] = frozenset()
    called_at: int | None = None


OfCall = Answered | AnsweredTogether | Checkpointed
"""Inputs of calls, which are stale if the run has given the call up."""


class TimerFired(msgspec.Struct, frozen=True, gc=False):
    """A sleep is over, or a wait has timed out."""

    step_id: str


class WaitResolved(msgspec.Struct, frozen=True, gc=False):
    """A step has received the result that it waits for.

    The result is the event, the signal or the invoked run's end.
    """

    step_id: str
    memo: bytes
    failed: bool = False


class SignalConflicted(msgspec.Struct, frozen=True):
    """Another run already waits for the signal, and this one does not replace it."""

    step_id: str
    signal: str


class RequestFinished(msgspec.Struct, frozen=True):
    """A request that the engine made for a step has ended.

    ``memo`` is the step's result, ``{data}``, or ``{error}`` if it ``failed``. A failure that ``is_retriable`` is
    retried while attempts are left. ``usage`` is that of a model.
    """

    step_id: str
    generation: int
    memo: bytes
    failed: bool = False
    is_retriable: bool = False
    usage: tuple[ModelUsage, ...] = ()


class RequestLost(msgspec.Struct, frozen=True):
    """The options of a request are lost, with the process that had them."""

    step_id: str
    generation: int


class CancelRequested(msgspec.Struct, frozen=True):
    """``reason`` becomes the message of the run's error."""

    reason: str = "the run was cancelled by request"


class DelaysSkipped(msgspec.Struct, frozen=True):
    """End sleeps and delayed attempts now.

    ``step_id`` limits this to one step, by its written or hashed id; ``only_unreached`` to calls that did not reach
    their app.
    """

    step_id: str | None = None
    only_unreached: bool = False


class Recovered(msgspec.Struct, frozen=True):
    """The engine has restarted.

    Calls and requests that were under way when it stopped are lost.
    """


Input = (
    Answered
    | AnsweredTogether
    | Checkpointed
    | TimerFired
    | WaitResolved
    | SignalConflicted
    | RequestFinished
    | RequestLost
    | CancelRequested
    | DelaysSkipped
    | Recovered
)


class FailedAttempt(msgspec.Struct, frozen=True):
    """An attempt that another follows.

    ``step_id`` is ``DISCOVER`` for the function's own code. ``timing`` and ``usage`` are the op's.
    """

    step_id: str
    error: ErrorData
    timing: Any = None
    usage: tuple[ModelUsage, ...] = ()


class MakeCall(msgspec.Struct, frozen=True, gc=False):
    """Make a call. ``failed`` is the attempt that it repeats, if any."""

    call: Call
    failed: FailedAttempt | None = None


class WriteMemo(msgspec.Struct, frozen=True, gc=False):
    """Store the memo of a finished step.

    - ``attempts``: The number of attempts that the step took.
    - ``failed``: The memo is an error.
    - ``timing``: When the app executed the step, as in its op, if the app sends it.
    - ``arguments``: The step's arguments, a JSON array, if the app sends them.
    - ``usage``: The tokens of models in the step's last attempt.
    """

    step_id: str
    name: str
    op: Opcode
    memo: bytes
    attempts: int = 1
    failed: bool = False
    timing: Any = None
    arguments: Any = None
    usage: tuple[ModelUsage, ...] = ()


class Sleep(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    until: int


class AwaitEvent(msgspec.Struct, frozen=True):
    step_id: str
    name: str
    event: str
    expression: str | None
    until: int


class AwaitSignal(msgspec.Struct, frozen=True):
    """Wait for a signal.

    ``replaces``: the wait replaces another step's wait for the signal. ``question`` describes the message that the
    signal brings, if the run waits for one.
    """

    step_id: str
    name: str
    signal: str
    replaces: bool
    until: int
    question: QuestionInfo | None = None


class Invoke(msgspec.Struct, frozen=True):
    """Invoke a function for a step.

    ``payload`` is an event without a name: ``data``, and optionally ``user``, ``v``, ``id``, ``ts``.
    """

    step_id: str
    name: str
    function_id: str
    payload: dict[str, Any]
    until: int


class MakeRequest(msgspec.Struct, frozen=True):
    """Make a request for a step.

    ``opts`` may contain credentials, so it must not be stored. ``None`` stands for those of the previous attempt.
    ``failed`` is the memo of that attempt.
    """

    step_id: str
    name: str
    op: Opcode
    generation: int
    attempt: int
    scheduled_at: int
    opts: dict[str, Any] | None
    failed: bytes | None = None

    def __repr__(self) -> str:
        return f"MakeRequest(step_id={self.step_id!r}, generation={self.generation}, attempt={self.attempt})"


class CloseWait(msgspec.Struct, frozen=True, gc=False):
    step_id: str


class Defer(msgspec.Struct, frozen=True):
    """Start a function when the run has ended.

    ``data`` is the data of its event, a JSON object, and ``sessions`` are those of its event.
    """

    step_id: str
    function_id: str
    data: bytes
    sessions: dict[str, str] = {}


class AbortDeferred(msgspec.Struct, frozen=True):
    step_id: str


class RefuseDeferred(msgspec.Struct, frozen=True):
    """Report that a function cannot be deferred.

    ``name`` is the user's id of the step.
    """

    name: str
    reason: str


class EndRun(msgspec.Struct, frozen=True, gc=False):
    """The run has ended, with its outstanding calls and waits.

    ``output`` is JSON: the result, or the error. ``by_engine``: the run failed, and the app has not reported the error.
    """

    status: RunStatus
    output: bytes
    by_engine: bool = False


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
