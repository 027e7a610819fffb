"""The context of a run, which functions get, and its groups of steps.

The steps are in ``durably.steps``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar, overload

import msgspec

from durably.execution.async_call import group_mode
from durably.functions.config import FunctionDefinition
from durably.protocol.durations import Duration
from durably.protocol.events import Event
from durably.protocol.opcodes import ParallelMode

from .errors import AsyncUnsupportedError, DeadlineError, FunctionConfigInvalidError
from .events import Model
from .execution import AsyncCall, SyncCall
from .steps import Step, StepSync, sleep_request

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")
AsyncBranch = Callable[[], Awaitable[T]]
Branch = Callable[[], T]


class Publisher(Protocol):
    """Takes what a call reports; see ``functions.publishing``."""

    def progress(self, fraction: float, message: str) -> None: ...

    def publish(self, topic: str, data: Any, channel: str | None) -> None: ...


class DeferredRun(Protocol):
    """A function that a run has deferred."""

    def abort(self) -> None:
        """Take it back: it does not run."""


class Defers(Protocol):
    """Takes the functions that a call defers; see ``functions.defers``."""

    def add(self, step_id: str, function: FunctionDefinition[Any], data: Any) -> DeferredRun: ...


@dataclass
class _RunContext:
    """The fields of ``Context`` and ``ContextSync``.

    - ``event``, ``events``: The event that triggered the run; all events of a batch.
    - ``attempt``: Counts from 0 to ``max_attempts - 1``.
    - ``logger``: Silent while memos are replayed.
    - ``request_id``, ``job_id``: Name the call to the engine.
    - ``function_id``: Begins with the app's id. That of a failure handler ends with ``-failure``.
    """

    event: Event
    events: list[Event]
    run_id: str
    attempt: int
    logger: Any
    step: Any
    group: Any
    request_id: str | None = None
    job_id: str | None = None
    max_attempts: int | None = None
    function_id: str = ""
    _publisher: Publisher | None = None
    _defers: Defers | None = None

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how far the run is, from 0 to 1, with a short message.

        The engine stores the last value with the run. The function does not wait, and at most five values a second are
        sent. Does nothing while memos are replayed.
        """
        if self._publisher is not None:
            self._publisher.progress(fraction, message)

    def publish(self, topic: str, data: Any, *, channel: str | None = None) -> None:
        """Publish a message for those who listen to the run now. Does nothing while memos are replayed.

        See ``durably.publish``, which also works in handlers of steps.
        """
        if self._publisher is not None:
            self._publisher.publish(topic, data, channel)

    def defer(
        self, step_id: str, *, function: FunctionDefinition[Any], data: Mapping[str, Any] | Model | None = None
    ) -> DeferredRun:
        """Run another function once this run has ended, with any status.

        ``data`` is the data of the function's event. The function needs ``TriggerDeferred``. Call this outside of
        steps, without ``await``: it stores nothing by itself, and each call of the function repeats it. The engine
        gets it with the next steps, or with the end of the function.
        """
        assert self._defers is not None
        return self._defers.add(step_id, function, data)


class Context(_RunContext):
    """The argument of an async function."""

    step: Step
    group: "Group"


class ContextSync(_RunContext):
    """The argument of a sync function."""

    step: StepSync
    group: "GroupSync"


class Group(msgspec.Struct, eq=False):
    """Several steps at once, in async functions.

    Plain ``asyncio.gather`` and ``TaskGroup`` work as well.
    """

    _call: AsyncCall

    @overload
    async def parallel(
        self, callables: tuple[AsyncBranch[T1], AsyncBranch[T2]], parallel_mode: ParallelMode = ...
    ) -> tuple[T1, T2]: ...
    @overload
    async def parallel(
        self, callables: tuple[AsyncBranch[T1], AsyncBranch[T2], AsyncBranch[T3]], parallel_mode: ParallelMode = ...
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def parallel(
        self,
        callables: tuple[AsyncBranch[T1], AsyncBranch[T2], AsyncBranch[T3], AsyncBranch[T4]],
        parallel_mode: ParallelMode = ...,
    ) -> tuple[T1, T2, T3, T4]: ...
    @overload
    async def parallel(
        self,
        callables: tuple[AsyncBranch[T1], AsyncBranch[T2], AsyncBranch[T3], AsyncBranch[T4], AsyncBranch[T5]],
        parallel_mode: ParallelMode = ...,
    ) -> tuple[T1, T2, T3, T4, T5]: ...
    @overload
    async def parallel(
        self,
        callables: tuple[
            AsyncBranch[T1], AsyncBranch[T2], AsyncBranch[T3], AsyncBranch[T4], AsyncBranch[T5], AsyncBranch[T6]
        ],
        parallel_mode: ParallelMode = ...,
    ) -> tuple[T1, T2, T3, T4, T5, T6]: ...
    @overload
    async def parallel(
        self, callables: Sequence[AsyncBranch[T]], parallel_mode: ParallelMode = ...
    ) -> tuple[T, ...]: ...
    def parallel(
        self, callables: Sequence[AsyncBranch[Any]], parallel_mode: ParallelMode = ParallelMode.WAIT
    ) -> Coroutine[Any, Any, tuple[Any, ...]]:
        """Run callables that contain steps at the same time. Returns their results.

        The results are in the order of the callables. ``parallel_mode`` ``WAIT`` costs the fewest calls. With ``RACE``,
        branches of several steps do not wait for each other.
        """
        _check_callables(callables, "make them async functions, or lambdas: `lambda: ctx.step.run(…)`")
        return self._call.group("group.parallel", partial(_run_together, callables, parallel_mode))

    def timeout(self, step_id: str, duration: Duration) -> "DurableTimeout":
        """Limit the time of an ``async with`` block.

        ``async with ctx.group.timeout("deadline", timedelta(hours=1)):`` raises ``DeadlineError``, a ``TimeoutError``,
        when the time is over. The clock is a durable sleep with that id, which races the steps inside.
        """
        return DurableTimeout(self._call, step_id, duration)


def _check_callables(callables: Sequence[Any], advice: str) -> None:
    """Raises ``FunctionConfigInvalidError`` for callables that were already called."""
    for number, branch in enumerate(callables):
        if not callable(branch):
            raise FunctionConfigInvalidError(
                f"group.parallel takes functions, which it calls itself; number {number + 1} is a "
                f"{type(branch).__name__}: {advice}"
            )


async def _run_together(callables: Sequence[AsyncBranch[Any]], parallel_mode: ParallelMode) -> tuple[Any, ...]:
    token = group_mode.set(parallel_mode)
    try:
        tasks = [asyncio.ensure_future(_await(function)) for function in callables]
    finally:
        group_mode.reset(token)
    return tuple(await asyncio.gather(*tasks))


class DurableTimeout:
    """A sleep that races the steps of an ``async with`` block.

    If the sleep wins, it cancels the block.
    """

    def __init__(self, call: AsyncCall, step_id: str, duration: Duration) -> None:
        self._call = call
        self._request = sleep_request(step_id, duration)
        self._has_expired = False

    async def __aenter__(self) -> "DurableTimeout":
        self._owner = asyncio.current_task()
        assert self._owner is not None
        self._cancelling = self._owner.cancelling()
        # The engine must call after the sleep and after each step, even if a group waits for all of its steps.
        self._outer_mode = group_mode.get()
        group_mode.set(ParallelMode.RACE)
        self._clock = asyncio.ensure_future(self._call.step(self._request))
        self._clock.add_done_callback(self._expire)
        return self

    def _expire(self, clock: asyncio.Future[Any]) -> None:
        if not clock.cancelled() and clock.exception() is None and self._owner is not None:
            self._has_expired = True
            self._owner.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        owner, self._owner = self._owner, None
        group_mode.set(self._outer_mode)
        self._clock.cancel()
        was_ours = self._has_expired and owner is not None and owner.uncancel() <= self._cancelling
        if was_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise DeadlineError(f'group.timeout "{self._request.step_id}" is over') from error


class GroupSync(msgspec.Struct, eq=False):
    """Several steps at once, in sync functions."""

    _call: SyncCall

    @overload
    def parallel(
        self, callables: tuple[Branch[T1], Branch[T2]], parallel_mode: ParallelMode = ...
    ) -> tuple[T1, T2]: ...
    @overload
    def parallel(
        self, callables: tuple[Branch[T1], Branch[T2], Branch[T3]], parallel_mode: ParallelMode = ...
    ) -> tuple[T1, T2, T3]: ...
    @overload
    def parallel(
        self, callables: tuple[Branch[T1], Branch[T2], Branch[T3], Branch[T4]], parallel_mode: ParallelMode = ...
    ) -> tuple[T1, T2, T3, T4]: ...
    @overload
    def parallel(
        self,
        callables: tuple[Branch[T1], Branch[T2], Branch[T3], Branch[T4], Branch[T5]],
        parallel_mode: ParallelMode = ...,
    ) -> tuple[T1, T2, T3, T4, T5]: ...
    @overload
    def parallel(
        self,
        callables: tuple[Branch[T1], Branch[T2], Branch[T3], Branch[T4], Branch[T5], Branch[T6]],
        parallel_mode: ParallelMode = ...,
    ) -> tuple[T1, T2, T3, T4, T5, T6]: ...
    @overload
    def parallel(self, callables: Sequence[Branch[T]], parallel_mode: ParallelMode = ...) -> tuple[T, ...]: ...
    def parallel(
        self, callables: Sequence[Branch[Any]], parallel_mode: ParallelMode = ParallelMode.WAIT
    ) -> tuple[Any, ...]:
        """See ``Group.parallel``.

        The steps run at the same time; the code between them does not.
        """
        _check_callables(callables, "make them functions, or lambdas: `lambda: ctx.step.run(…)`")
        return self._call.parallel(callables, parallel_mode)

    def timeout(self, step_id: str, duration: Duration) -> Any:
        """Not possible in a sync function; raises ``AsyncUnsupportedError``.

        The code of a sync function cannot be interrupted.
        """
        raise AsyncUnsupportedError(
            f'group.timeout("{step_id}") needs an async function: sync code cannot be interrupted. '
            "Give wait_for_event, wait_for_signal or invoke a timeout of their own"
        )


async def _await(function: AsyncBranch[T]) -> T:
    return await function()
