"""A call of a sync function: steps return their memos, and the first without one leaves the function.

It leaves by an interrupt derived from ``BaseException``, which ordinary ``except Exception`` lets pass.
"""

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

from durably.protocol.errors import Error, ErrorCode
from durably.protocol.opcodes import Opcode, ParallelMode

from .outcome import Found, Outcome, Raised, Returned, StepReport
from .replay import Replay, refuse_nested, without_own_frames
from .step import Step, StepRequest

T = TypeVar("T")


class AsyncUnsupportedError(Error):
    code = ErrorCode.ASYNC_UNSUPPORTED
    is_retriable = False


class _Interrupt(BaseException):
    """The call has its outcome; what is left of the function is not run."""


class _Skipped(BaseException):
    """A step that is not the call's target, inside ``group.parallel``."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really waits, in this thread and without an event loop.

    Code that decides is written once, as coroutines over a small I/O interface; where that interface
    blocks instead of waiting, this is all it takes to run it.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a coroutine driven without an event loop tried to wait for one")


class SyncCall:
    """One call of one sync function."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._outcome: Outcome | None = None
        self._group: list[StepReport] | None = None
        self._mode: ParallelMode | None = None

    def run(self, function: Callable[[], Any]) -> Outcome:
        """Run the function until it ends or the call does."""
        if not self._replay.memos:
            drive(self._replay.freshen())
        try:
            value = function()
            if inspect.isawaitable(value):
                _discard(value)
                raise AsyncUnsupportedError("a sync function returned an awaitable: make the function async")
            returned: Outcome = Returned(value)
        except (_Interrupt, _Skipped):
            returned = Raised(RuntimeError("the call was interrupted without an outcome"))
        except Exception as error:
            error.__traceback__ = without_own_frames(error.__traceback__)
            returned = Raised(error)
        # A function that swallows the interrupt goes on running, but what the call found stands.
        outcome = self._outcome if self._outcome is not None else returned
        drive(self._replay.freshen())
        return outcome

    def step(self, request: StepRequest) -> Any:
        """Return the step's memo, or leave the function."""
        if self._outcome is not None:
            raise _Interrupt
        refuse_nested(request)
        replay = self._replay
        step = replay.identify(request)
        memo = replay.memos.pop(step.hashed_id)
        if memo is not None:
            if not replay.memos:
                drive(replay.freshen())
            return replay.value(step, memo)
        drive(replay.freshen())
        self._meet(step)

    def _meet(self, step: Step) -> NoReturn:
        replay = self._replay
        if replay.target == step.hashed_id:
            if step.request.is_run:
                self._end(Found([drive(replay.execute(step, _refuse_awaitable))]))
            self._end(Found([StepReport(step.to_op(), step.info())]))
        if replay.target is not None:
            if self._group is None:
                self._end(replay.not_found(replay.target, [step]))
            raise _Skipped
        if self._group is None and replay.runs_at_once(step):
            self._end(Found([drive(replay.execute(step, _refuse_awaitable))]))
        op = Opcode.STEP_PLANNED if step.request.is_run else None
        report = StepReport(step.to_op(op, self._mode), step.info())
        if self._group is None:
            self._end(Found([report]))
        self._group.append(report)
        raise _Skipped

    def parallel(self, callables: Sequence[Callable[[], T]], mode: ParallelMode) -> tuple[T, ...]:
        """Run each callable to its end or to its first step without a memo; report those steps together."""
        outer, outer_mode = self._group, self._mode
        group: list[StepReport] = []
        self._group, self._mode = group, mode
        outputs: list[T] = []
        skipped = False
        try:
            for function in callables:
                try:
                    outputs.append(function())
                except _Skipped:
                    skipped = True
        finally:
            self._group, self._mode = outer, outer_mode
        if not skipped:
            return tuple(outputs)
        if outer is not None:
            outer.extend(group)
            raise _Skipped
        if self._replay.target is not None:
            self._end(self._replay.not_found(self._replay.target, []))
        self._end(Found(group))

    def _end(self, outcome: Outcome) -> NoReturn:
        self._outcome = outcome
        raise _Interrupt


async def _refuse_awaitable(value: Any) -> Any:
    if inspect.isawaitable(value):
        _discard(value)
        raise AsyncUnsupportedError(
            "a sync function's step was given a coroutine function: make the function async, or the step's handler sync"
        )
    return value


def _discard(value: Any) -> None:
    if inspect.iscoroutine(value):
        value.close()
