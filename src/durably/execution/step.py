"""Steps: their requests, reports and handlers.

The module has the request of user code, the step in its run, its report to the engine with its arguments, and the calls
of its handler.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import msgspec

from durably.protocol.call import check_nesting
from durably.protocol.opcodes import Op, Opcode, ParallelMode, Userland

_NO_LOOP = ("no running event loop", "no current event loop")


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
    ``awaitable_id`` identifies the coroutine that user code got for it.
    """

    request: StepRequest
    hashed_id: str
    index: int
    order: int
    awaitable_id: int = 0

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
            opts = {**(opts or {}), "parallelMode": ParallelMode.RACE.value}
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
        return StepInfo(self.op.op, Opcode(self.op.op), hashed_id=self.op.id)

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
    treat ``CancelledError`` as a cancellation.
    """

    call: Callable[[], Any]
    value: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """The handler's result. Raises the handler's exception."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            if isinstance(error, asyncio.CancelledError):
                raise RuntimeError("the handler raised asyncio.CancelledError") from error
            if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_LOOP):
                error.add_note(
                    "A sync handler of an async function runs in a worker thread, which has no event loop: "
                    "make the handler async, or have it return a coroutine, which is awaited on the event loop."
                )
            raise error
        finally:
            del error  # its traceback refers to it: a cycle that only the garbage collector would free


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
