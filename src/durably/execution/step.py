"""Steps: their requests, reports and handlers; memos, the results of finished steps (spec §5.2)."""

import asyncio
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import msgspec

from durably.protocol.call import check_nesting
from durably.protocol.errors import Error, ErrorCode, ErrorData
from durably.protocol.opcodes import PARALLEL_MODE_OPT, Op, Opcode, ParallelMode, Userland, hash_step_id
from durably.protocol.usage import ModelUsage


class StepRequest(msgspec.Struct):
    """A step as user code requested it.

    One is made for each step of each call, so it must be cheap.

    - ``handler``: Called for steps that run in the app (op ``StepRun``).
    - ``decode``: Converts the memo's data to the step's result; ``None`` for JSON values.
    - ``encode``: Converts the handler's result to the memo's data; ``None`` for JSON values.
    """

    step_id: str
    op: Opcode
    name: str | None = None
    opts: Mapping[str, Any] | None = None
    handler: Callable[..., Any] | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    decode: Callable[[Any], Any] | None = None
    encode: Callable[[Any], Any] | None = None

    @property
    def is_run(self) -> bool:
        return self.op is Opcode.STEP_RUN


_MAX_IDS = 10_000


class StepIds:
    """The ids of one function's steps that this process has seen, with their hashes.

    ``hashes`` has the hash of each id's first use. ``names`` has the ids by hash, because memos have only the latter.
    """

    __slots__ = ("hashes", "names")

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def learn(self, step_id: str, index: int) -> str:
        """The hash of an id's use. Ids that are made from data must not fill the memory, hence the limit."""
        if len(self.names) >= _MAX_IDS:
            self.hashes.clear()
            self.names.clear()
        hashed_id = hash_step_id(step_id, index)
        self.names[hashed_id] = step_id
        if not index:
            self.hashes[step_id] = hashed_id
        return hashed_id


ReplaceStep = Callable[[StepRequest, int], StepRequest]
"""Replaces a step in a test, at an attempt (from 0). Returns the same request, or another of the same ``step_id``."""


class StepInfo(msgspec.Struct, frozen=True):
    """A step as middleware sees it.

    ``id`` is the user's id; ``index`` counts its repetitions from 0.
    """

    id: str
    op: Opcode
    opts: Mapping[str, Any] | None = None
    index: int = 0
    hashed_id: str = ""


class Step(msgspec.Struct):
    """A step that a call reached.

    It has its request, the number of the repetition of its id, and its position among all steps reached.
    ``awaitable_id`` identifies the coroutine that user code got for it. ``transaction`` is the function that its
    handler has called in a database transaction that stores its result (see ``durably.outbox``), and
    ``is_rolled_back`` says that it has failed. ``usage`` is what the handler has recorded of models; it is ``None``
    before and after the attempt. ``nanoseconds`` is the duration of its handler, without the time that it waited for a
    thread.
    """

    request: StepRequest
    hashed_id: str
    index: int
    order: int
    awaitable_id: int = 0
    transaction: Callable[..., Any] | None = None
    is_rolled_back: bool = False
    usage: list[ModelUsage] | None = None
    nanoseconds: int | None = None

    @property
    def name(self) -> str:
        """The step's id as the user wrote it, with the number of its repetition."""
        return f"{self.request.step_id}:{self.index}" if self.index else self.request.step_id

    def info(self) -> StepInfo:
        return StepInfo(self.request.step_id, self.request.op, self.request.opts, self.index, self.hashed_id)

    def to_op(self, op: Opcode | None = None, parallel_mode: ParallelMode | None = None) -> Op:
        request = self.request
        opts = dict(request.opts) if request.opts else None
        if parallel_mode is ParallelMode.RACE:
            opts = {**(opts or {}), PARALLEL_MODE_OPT: parallel_mode.value}
        return Op(
            id=self.hashed_id,
            op=op or request.op,
            name=request.name or request.step_id,
            display_name=request.step_id,
            opts=opts,
            userland=Userland(id=request.step_id, index=self.index or None),
        )


class StepReport(msgspec.Struct):
    """An op for the engine.

    An executed step has its output or error here, not yet encoded.
    """

    op: Op
    step: Step | None = None
    output: Any = msgspec.UNSET
    error: BaseException | None = None
    function_id: str = ""

    @property
    def info(self) -> StepInfo:
        """The step; for an op that the SDK adds, the op."""
        if self.step is not None:
            return self.step.info()
        return StepInfo(self.op.display_name or self.op.op, Opcode(self.op.op), hashed_id=self.op.id)

    @property
    def step_id(self) -> str:
        return self.op.op if self.step is None else self.step.request.step_id

    def replace(self, output: Any, error: BaseException | None) -> None:
        """Replace the step's result by that of middleware.

        An executed step without its error has succeeded.
        """
        if self.error is not None and error is None:
            self.op.op = Opcode.STEP_RUN
        self.output, self.error = output, error


# -- handlers


def is_async(handler: Any) -> bool:
    """Whether a handler is called on the event loop.

    True for a coroutine function, and for an object whose ``__call__`` is one. A sync function that returns a coroutine
    counts as sync, because it may block before it returns.
    """
    if type(handler) is FunctionType and handler.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return True
    return not inspect.isroutine(handler) and inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


class ThreadCall(msgspec.Struct):
    """One call of a handler in a thread. Its result is read on the event loop.

    The handler's exception is stored instead of raised in the thread, because futures refuse ``StopIteration`` and
    treat ``CancelledError`` as a cancellation. ``clock`` measures it.
    """

    call: Callable[[], Any]
    clock: Callable[[], int] | None = None
    value: Any = None
    error: BaseException | None = None
    nanoseconds: int | None = None

    def run(self) -> None:
        began = 0 if self.clock is None else self.clock()
        try:
            self.value = self.call()
        except BaseException as error:
            self.error = error
        if self.clock is not None:
            self.nanoseconds = self.clock() - began

    def result(self) -> Any:
        """The handler's result. Raises the handler's exception."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            if isinstance(error, asyncio.CancelledError):
                raise RuntimeError("the handler raised asyncio.CancelledError") from error
            raise error
        finally:
            del error  # its traceback refers to it: a cycle that only the garbage collector would free


_QUICK_NANOSECONDS = 20_000_000
_TOGETHER_NANOSECONDS = 1_000_000_000
"""The maximum duration of a quick handler, and of all handlers of steps that a call executes together."""


class Durations:
    """How long the handlers of a function's steps have taken in this process, by their code.

    They are the mean durations of steps that were executed together.
    """

    def __init__(self) -> None:
        self._nanoseconds: dict[Any, int] = {}

    def note(self, reports: Sequence[StepReport]) -> None:
        """Record steps that were executed together. A slow handler counts as slow until it was quick several times."""
        found: dict[Any, list[int]] = {}
        for report in reports:
            if (step := report.step) is not None and step.nanoseconds is not None:
                found.setdefault(_code_of(step.request.handler), []).append(step.nanoseconds)
        for code, each in found.items():
            mean = sum(each) // len(each)
            known = self._nanoseconds.get(code, mean)
            self._nanoseconds[code] = mean if mean >= known else known - (known - mean) // 4

    def are_quick(self, steps: Sequence[Step]) -> bool:
        """Whether all handlers are known to be quick, and take little time together."""
        total = 0
        for step in steps:
            expected = self._nanoseconds.get(_code_of(step.request.handler))
            if expected is None or expected > _QUICK_NANOSECONDS:
                return False
            total += expected
        return total <= _TOGETHER_NANOSECONDS


def _code_of(handler: Any) -> Any:
    """What all closures and instances of a handler share: its code, or its name if it is not written in Python."""
    while isinstance(handler, partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)  # a bound method
    return getattr(handler, "__code__", None) or getattr(handler, "__qualname__", type(handler))


_MAX_NESTING = 64


def sendable_arguments(arguments: Sequence[Any], max_bytes: int) -> list[Any] | None:
    """A copy of a step's arguments, or ``None`` if they are not sent.

    Arguments are sent only if they survive a JSON round trip, so that an edited copy has the same types, and if their
    JSON has at most ``max_bytes``. The copy is made before the handler can change them.
    """
    for argument in arguments:
        if type(argument) in (str, list, dict) and len(argument) > max_bytes:
            return None  # saves the cost of its JSON
    try:
        encoded = msgspec.json.encode(arguments)
        if len(encoded) > max_bytes:
            return None
        check_nesting(encoded, _MAX_NESTING)
        copied: list[Any] = msgspec.json.decode(encoded)
        return copied if copied == list(arguments) else None
    except Exception:
        # A value without JSON, or one that cannot be compared. The step runs anyway.
        return None


_RESULT_KEYS = frozenset(("data", "error", "type"))
_INPUT_KEYS = frozenset(("input", "type"))
_NOTHING: Mapping[str, Any] = {}


class Memo(msgspec.Struct, gc=False):
    """One finished step.

    ``data`` and ``error`` may be replaced, which is how middleware decrypts them.
    """

    data: Any = None
    error: ErrorData | None = None


Memos = dict[str, msgspec.Raw | Memo]
"""The memos that no step has taken yet, by hashed step id.

Each is decoded when it is taken. A thousand memos as Python objects would trigger the garbage collector, which costs
more than the rest of the replay.
"""


class MemoUnreadableError(Error):
    """A step's stored output cannot be restored.

    The message names the step and the reason. The error ends the call, and the function cannot catch it, because the
    step itself has succeeded.
    """

    code = ErrorCode.MEMO_UNREADABLE
    include_stack = False


class StepMemos:
    """The memos of a call, by hashed step id, as middleware sees and changes them."""

    __slots__ = ("memos", "refusals")

    def __init__(self, memos: Mapping[str, msgspec.Raw | Memo] | None = None) -> None:
        self.memos: Memos = memos if isinstance(memos, dict) else dict(memos or {})
        self.refusals: Mapping[str, str] = _NOTHING
        """The reasons why memos cannot be restored, by hashed step id."""

    def __contains__(self, hashed_id: str) -> bool:
        return hashed_id in self.memos

    def __len__(self) -> int:
        return len(self.memos)

    @property
    def size(self) -> int:
        return len(self.memos)

    def ids(self) -> Collection[str]:
        return self.memos.keys()

    def values(self) -> Iterator[Memo]:
        return (memo for _, memo in self.items())

    def items(self) -> Iterator[tuple[str, Memo]]:
        for hashed_id, value in list(self.memos.items()):
            memo = self.memos[hashed_id] = to_memo(value)
            yield hashed_id, memo

    def pop(self, hashed_id: str) -> Memo | None:
        """Take the memo; ``None`` if there is none."""
        value = self.memos.pop(hashed_id, None)
        return None if value is None else to_memo(value)

    def refuse(self, hashed_id: str, reason: str) -> None:
        """Mark a memo that cannot be restored.

        If the function reaches its step, the call ends with the reason.
        """
        self.refusals = {**self.refusals, hashed_id: reason}


def take_inputs(memos: Memos) -> Mapping[str, Sequence[Any]]:
    """Take inputs out of the memos, by hashed step id.

    Inputs are arguments for steps that run again with another input.
    """
    inputs: dict[str, Sequence[Any]] = {}
    for hashed_id, raw in list(memos.items()):
        value = None if isinstance(raw, Memo) else _decode(raw)
        if isinstance(value, dict) and "input" in value and _INPUT_KEYS.issuperset(value):
            inputs[hashed_id] = value["input"] if isinstance(value["input"], list) else [value["input"]]
            del memos[hashed_id]
    return inputs


class _Result(Memo, forbid_unknown_fields=True, gc=False):
    """The shape of nearly all memos."""

    type: Any = None


decode_result = msgspec.json.Decoder(_Result | None).decode
"""Decode nearly all memos. Raises ``msgspec.DecodeError`` for the others."""
_decode_strictly = msgspec.json.Decoder().decode


def to_memo(value: msgspec.Raw | Memo) -> Memo:
    """Decode a memo. Sleeps and timeouts have null as their memo."""
    if isinstance(value, Memo):
        return value
    try:
        return decode_result(value) or Memo()
    except msgspec.DecodeError:
        return to_rare_memo(value)


def to_rare_memo(raw: msgspec.Raw) -> Memo:
    """Decode a memo that ``decode_result`` refuses."""
    value = _decode(raw)
    if isinstance(value, dict) and "data" in value and _RESULT_KEYS.issuperset(value):
        return Memo(value["data"])
    if isinstance(value, dict) and "error" in value and _RESULT_KEYS.issuperset(value):
        return Memo(error=ErrorData(name="Error", message=str(value["error"])))  # not the usual form of an error
    return Memo(value)  # the memo of a wait is the event itself


def _decode(raw: msgspec.Raw) -> Any:
    try:
        return _decode_strictly(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw))  # an unpaired surrogate, which JavaScript and Python can write


class ReplayDivergedError(Error):
    """The function no longer reaches steps that its run has finished.

    Raised with strict replay only.
    """

    code = ErrorCode.REPLAY_DIVERGED
    is_retriable = False
    include_stack = False


class StepIdUnstableError(Error):
    """The ids of a function's steps change from call to call.

    The steps' handlers would run again and again.
    """

    code = ErrorCode.STEP_ID_UNSTABLE
    is_retriable = False
    include_stack = False


class Divergence(msgspec.Struct, frozen=True):
    """A replay that differs from the run's memos.

    - ``unreached``: Hashed ids of finished steps that were not reached, in the order in which they finished.
    - ``found``: The new step that is about to run; ``None`` if the function returned.
    - ``early``: A finished step that was reached earlier than in the call that finished it.
    """

    unreached: Sequence[str]
    found: str | None = None
    early: str | None = None
