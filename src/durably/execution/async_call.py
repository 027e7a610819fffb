"""A call of an async function, under real asyncio."""

import asyncio
import contextvars
import heapq
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from durably.protocol.opcodes import Opcode, ParallelMode

from .async_checks import Unawaited, clock_refusal, find_clock
from .asyncio_compat import AnyTask, RunTask, cancelling
from .memos import Memo
from .replay import (
    Checkpointed,
    Ending,
    Found,
    Raised,
    Replay,
    Returned,
    apart_from_run,
    current_tracker,
    in_step,
    nested,
    raised_by_user,
    value_of,
)
from .settling import Settling, tear_down
from .step import Step, StepReport, StepRequest, ThreadCall, is_async

T = TypeVar("T")

_MAX_REFUSALS = 10
"""The number of steps that a task may call after its cancellation. After more it is taken to swallow cancellations."""

group_mode: ContextVar[ParallelMode | None] = ContextVar("durably_group_mode", default=None)
"""Set inside ``group.parallel``: the mode of its steps."""


def install_task_factory(loop: asyncio.AbstractEventLoop) -> None:
    """Install a task factory that reports a function's new tasks to its call.

    An existing factory is kept and chained.
    """
    inner = loop.get_task_factory()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        context: Context | None = kwargs.get("context")
        tracker = current_tracker.get() if context is None else context.get(current_tracker)
        if inner is not None:
            task = inner(loop, coro, **kwargs)
        else:
            task = (asyncio.Task if tracker is None else RunTask)(coro, loop=loop, **kwargs)
        if tracker is not None and isinstance(task, asyncio.Task) and not task.done():
            tracker.track(task)
        return task

    factory.tracks_durably = True  # type: ignore[attr-defined]
    loop.set_task_factory(factory)


class _Parked:
    """A step that waits for the call's decision.

    ``is_new``: it was reached after the memos were returned, so no earlier call can have found it.
    """

    __slots__ = ("future", "is_new", "mode", "step", "task")

    def __init__(
        self, step: Step, task: AnyTask, future: asyncio.Future[bool], mode: ParallelMode | None, is_new: bool
    ) -> None:
        self.step = step
        self.task = task
        self.future = future
        self.mode = mode
        self.is_new = is_new

    @property
    def is_to_execute(self) -> bool:
        """Whether it was decided that the step is executed."""
        return self.future.done() and not self.future.cancelled() and not self.future.result()


class AsyncCall:
    """One call of one async function.

    A function with one task that reaches no step it must wait for needs no ``Settling``. It is made when it is needed.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending | None] = self._loop.create_future()
        self._tasks: set[AnyTask] = set()
        self._settling: Settling | None = None
        self._parked: dict[str, _Parked] = {}  # by hashed id
        self._memoized: list[tuple[int, str]] = []  # heap of parked steps that have memos, by place in the stack
        self._executing = 0
        self._executed: list[StepReport] = []
        self._is_closing = False
        self._refusals: dict[AnyTask, int] = {}
        self._unawaited = Unawaited()

    # -- running

    async def run(self, function: Callable[[], Awaitable[Any]]) -> Ending:
        """Run the function until it ends or the call does, and take its tasks down."""
        if not hasattr(self._loop.get_task_factory(), "tracks_durably"):
            install_task_factory(self._loop)
        replay = self._replay
        if replay.is_new:
            await replay.start_new_code()
        # In a context of its own: nothing of a run that this one is perhaps called from reaches into it.
        main = contextvars.copy_context().run(self._create_main, function)
        main.add_done_callback(self._on_main_done)
        try:
            ending = await self._ended
            if ending is None:
                ending = self._ending_of(main)
        finally:
            await self._close()
        if replay.is_replaying:
            await replay.start_new_code()
        return ending

    def _create_main(self, function: Callable[[], Awaitable[Any]]) -> AnyTask:
        current_tracker.set(self)
        in_step.set(None)
        group_mode.set(None)
        # Without ``context=``, which task factories of before Python 3.11 do not take.
        return self._loop.create_task(self._run(function))

    async def _run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        if not self._tasks:  # an eager task runs before its factory could track it
            self.track(_current_task())
        try:
            return await function()
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
            # With the error, the task would keep its traceback, and with that, in a cycle, itself.
        except SystemExit as error:
            # Out of a task it would stop the server's event loop.
            raise raised_by_user(error) from None

    def _on_main_done(self, main: AnyTask) -> None:
        self._end(None)

    def _ending_of(self, main: AnyTask) -> Ending:
        ending = _result_of_main(main)
        if not isinstance(ending, Returned):
            if self._replay.findings is not None and (error := self._unawaited.any()) is not None:
                self._replay.findings.not_awaited(str(error))
            return ending
        if (error := self._unawaited.any()) is not None:
            return Raised(error)
        if (diverged := self._divergence(None)) is not None:
            return diverged
        if self._replay.findings is not None and (left := self._unfinished_steps()):
            self._replay.findings.unfinished_steps(left)
        return ending

    def _unfinished_steps(self) -> list[str]:
        """Ids of unfinished steps in tasks that no code has awaited.

        They are in the order in which they were made.
        """
        memos, settling = self._replay.memos, self._settling
        if settling is None:
            return []
        left = [
            entry.step
            for entry in self._parked.values()
            if entry.step.hashed_id not in memos and not cancelling(entry.task) and not settling.was_awaited(entry.task)
        ]
        return [step.request.step_id for step in sorted(left, key=lambda step: step.order)]

    def _divergence(self, found: str | None) -> Raised | None:
        """The end of the call if its function surely did not reach all memos, or ``None``.

        It is unknown whether a task that neither has ended nor waits for a step will reach memos.
        """
        settling = self._settling
        if settling is not None and (settling.ignored or (found is None and settling.is_any_task_active())):
            return None
        return self._replay.divergence(found)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's, unless a step's handler made it.

        Tasks on the event loop of another thread inherit the run's context too, but belong to that thread.
        """
        if in_step.get() is not None or task.get_loop() is not self._loop:
            return
        if self._tasks:
            self._start_settling().track(task)
        else:
            self._tasks.add(task)
        if self._unawaited.awaitables:
            self._unawaited.leave_to_task(task.get_coro())

    def _start_settling(self) -> Settling:
        if self._settling is None:
            self._settling = Settling(self._loop, self._decide, self._tasks)
            self._settling.is_suspended = bool(self._executing)
        return self._settling

    async def _close(self) -> None:
        self._is_closing = True
        if self._settling is not None:
            self._settling.close()
        for task in self._tasks:
            if not task.done():
                await tear_down(self._tasks)
                break
        # The contexts of tasks refer to this: together they would wait for the garbage collector.
        self._tasks.clear()
        self._parked.clear()
        self._refusals.clear()

    # -- steps

    def step(self, request: StepRequest) -> Coroutine[Any, Any, Any]:
        """The step, to be awaited.

        Repetitions of an id are numbered here, when user code makes the step.

        Tasks that are made of a set of steps (``asyncio.wait``, ``as_completed``) start in no fixed order.
        """
        if (outer := in_step.get()) is not None:
            raise nested(request, outer)
        step = self._replay.identify(request)
        if self._is_closing:
            return self._result_of(step)
        result = self._unawaited.create(f'step "{request.step_id}"', partial(self._result_of, step))
        step.awaitable_id = id(result)
        return result

    def group(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """A group of steps, to be awaited. ``work`` makes them."""
        number = 0

        async def group() -> T:
            self._unawaited.awaitables.pop(number, None)
            return await work()

        result = self._unawaited.create(name, group)
        number = id(result)
        return result

    async def _result_of(self, step: Step) -> Any:
        """Return the memo.

        Park if there is none yet, or if the memo's turn has to be awaited.
        """
        self._unawaited.awaitables.pop(step.awaitable_id, None)
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._is_closing:
            await self._refuse_in_teardown(task)
        if (outer := in_step.get()) is not None:
            raise nested(step.request, outer)
        if task not in self._tasks:
            self.track(task)  # made without the run's context, or started before the factory could track it
        unawaited = self._unawaited
        if (unawaited.awaitables or unawaited.lost) and not self._executing and (error := unawaited.dropped()):
            await self._end_and_wait(Raised(error))
        replay = self._replay
        is_alone = len(self._tasks) == 1
        memo = None
        if is_alone:
            memo = replay.take(step, in_order=self._settling is None or not self._settling.ignored)
        if memo is None:
            if (is_alone and self._goes_ahead(step, task)) or not await self._park(step, task):
                return value_of(step, await self._execute(step))
            memo = replay.take(step, in_order=self._settling is None or not self._settling.ignored)
            assert memo is not None
        if replay.refusals and (refusal := replay.refusal(step)) is not None:
            await self._end_and_wait(Raised(refusal))
        if replay.is_last_taken and replay.is_replaying:
            if replay.hooks is not None:
                await self._start_new_code()
            replay.is_replaying = False
        return value_of(step, memo)

    def _goes_ahead(self, step: Step, task: AnyTask) -> bool:
        """Whether the function's only task need not wait for the call's decision.

        It need not wait if the decision would surely be to execute the step.

        If a clock may be running around the step, the task must wait: clocks are found in tasks that wait.
        """
        replay = self._replay
        if (
            not isinstance(task, RunTask)
            or task.may_be_timed
            or asyncio.Task.cancelling(task)
            or replay.targets
            or step.request.op is not Opcode.STEP_RUN
            or replay.disable_immediate
            or group_mode.get() is not None
            or (replay.checkpointer is not None and replay.checkpointer.is_over)
            or self._ended.done()
        ):
            return False
        self._executing += 1
        if self._settling is not None:
            self._settling.is_suspended = True
        return True

    async def _execute(self, step: Step) -> Memo:
        """Run the step's handler.

        This ends the call unless a checkpoint can store the step.
        """
        replay = self._replay
        checkpointer = replay.checkpointer
        try:
            if (replay.memos or replay.early) and (diverged := self._divergence(step.request.step_id)) is not None:
                await self._end_and_wait(diverged)
            report = await replay.execute(step, group_mode.get(), self._call_handler)
            if checkpointer is None:
                self._executed.append(report)
            elif (memo := await apart_from_run(checkpointer.take(report))) is not None:
                return memo
            else:
                self._end(Checkpointed())
        except Exception as error:  # a hook's
            self._end(Raised(error))
        finally:
            self._finish_executing()
        if len(self._tasks) == 1 and self._ended.done():
            self._is_closing = True
            raise asyncio.CancelledError("the call has ended")  # as the teardown would, an iteration of the loop later
        return await self._loop.create_future()  # type: ignore[no-any-return]  # until the teardown

    async def _call_handler(self, step: Step, args: Sequence[Any]) -> Any:
        """Call the handler of a step.

        Async handlers run on the event loop, sync handlers in a thread.
        """
        replay, request = self._replay, step.request
        handler = request.handler
        assert handler is not None
        if replay.threads is None or is_async(handler):
            output = handler(*args, **request.kwargs)
        else:
            call = ThreadCall(partial(handler, *args, **request.kwargs))
            abandon = None if replay.findings is None else partial(replay.findings.abandoned_thread, request.step_id)
            await replay.threads.run(call.run, on_abandoned=abandon)
            output = call.result()
        if not inspect.isawaitable(output):
            return output
        # A handler that cancels itself has failed like any other. Its own clocks have ended with it, so they do not
        # mark the task.
        task = _current_task()
        requests = cancelling(task)
        may_be_timed = isinstance(task, RunTask) and task.may_be_timed
        try:
            return await output
        except asyncio.CancelledError as error:
            if cancelling(task) > requests:
                raise
            raise RuntimeError("the handler was cancelled by its own code (asyncio.CancelledError)") from error
        finally:
            if isinstance(task, RunTask):
                task.may_be_timed = may_be_timed

    def _finish_executing(self) -> None:
        """End the call with the executed steps when the last handler has finished.

        Also called if user code has cancelled the step's task, and there is nothing to report of it.
        """
        self._executing -= 1
        if self._executing:
            return
        if self._executed:
            self._end(Found(self._executed))
        if self._settling is not None:
            self._settling.is_suspended = False
            if len(self._tasks) > 1:  # otherwise the task that continues is the only one
                self._settling.progressed()

    async def _start_new_code(self) -> None:
        """End the replay. An error of a hook ends the call; the function cannot catch it."""
        try:
            await self._replay.start_new_code()
        except Exception as error:
            await self._end_and_wait(Raised(error))

    async def _park(self, step: Step, task: AnyTask) -> bool:
        """Wait for the call's decision about a step.

        Returns ``True`` to return the memo, ``False`` to execute the step.
        """
        replay, settling = self._replay, self._start_settling()
        parked = _Parked(step, task, self._loop.create_future(), group_mode.get(), not replay.is_replaying)
        self._parked[step.hashed_id] = parked
        if step.hashed_id in replay.memos:
            heapq.heappush(self._memoized, (replay.position(step.hashed_id), step.hashed_id))
        settling.park(task)
        try:
            return await parked.future
        except asyncio.CancelledError:
            if parked.is_to_execute:  # cancelled after the decision, before it could go on
                self._finish_executing()
            raise
        finally:
            del self._parked[step.hashed_id]
            settling.unpark(task)

    async def _refuse_in_teardown(self, task: AnyTask) -> None:
        """Refuse a step that is reached while the function's tasks are cancelled.

        The cancellation continues.
        """
        refusals = self._refusals[task] = self._refusals.get(task, 0) + 1
        if refusals > _MAX_REFUSALS:
            await self._loop.create_future()
        raise asyncio.CancelledError("the call has ended")

    # -- deciding

    def _decide(self) -> None:
        replay, parked, settling = self._replay, self._parked, self._settling
        assert settling is not None
        if targets := [parked[step_id] for step_id in replay.targets if self._is_unmemoized(step_id)]:
            self._execute_or_report(targets)
            return
        while self._memoized:
            _, hashed_id = heapq.heappop(self._memoized)
            if hashed_id in parked and hashed_id in replay.memos:
                _resolve(parked[hashed_id].future, True)
                return
        if not parked or any(entry.future.done() for entry in parked.values()):
            return  # the function waits for something that will wake it, or is about to wake
        found = sorted(parked.values(), key=lambda entry: entry.step.order)
        steps = [entry.step for entry in found]
        if (clock := find_clock(self._tasks, settling.ignored)) is not None:
            self._end(Raised(clock_refusal(clock, [step.request.step_id for step in steps])))
        elif replay.target is not None:
            if not settling.ignored:  # else one of those tasks may be on the way to the target
                self._end(replay.not_found(steps))
        elif settling.ignored and not any(entry.is_new for entry in found) and settling.waits_longer():
            return  # the engine knows all of these, and would not call again before one of them has ended
        elif len(found) == 1 and found[0].mode is None and replay.runs_at_once(steps[0]):
            if replay.is_over:
                self._end(Checkpointed())
            else:
                self._execute_or_report(found)
        elif (diverged := self._divergence(steps[0].request.step_id)) is not None:
            self._end(diverged)
        else:
            self._end(Found([replay.plan(entry.step, entry.mode, among_several=len(found) > 1) for entry in found]))

    def _is_unmemoized(self, hashed_id: str) -> bool:
        return hashed_id in self._parked and hashed_id not in self._replay.memos

    def _execute_or_report(self, entries: Sequence[_Parked]) -> None:
        for entry in entries:
            if not entry.step.request.is_run:
                self._executed.append(self._replay.plan(entry.step, entry.mode, among_several=False))
            elif not entry.future.done():  # else its task has just been cancelled
                self._executing += 1
                entry.future.set_result(False)
        self._start_settling().is_suspended = bool(self._executing)
        if self._executed and not self._executing:
            self._end(Found(self._executed))

    def _end(self, ending: Ending | None) -> None:
        """End the call; ``None`` if the function has ended."""
        if not self._ended.done():
            if self._settling is not None:
                self._settling.stop()
            self._ended.set_result(ending)

    async def _end_and_wait(self, ending: Ending) -> None:
        """End the call, and wait until its tasks are cancelled."""
        self._end(ending)
        await self._loop.create_future()


def _current_task() -> AnyTask:
    task = asyncio.current_task()
    assert task is not None
    return task


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    """Unless the task that waits for it has just been cancelled."""
    if not future.done():
        future.set_result(value)


def _result_of_main(main: AnyTask) -> Ending:
    if main.cancelled():
        return Raised(RuntimeError("the function was cancelled by its own code (asyncio.CancelledError)"))
    if (error := main.exception()) is None:
        return Returned(main.result())
    if isinstance(error, Exception):
        return Raised(raised_by_user(error))
    raise error


def running_step(frame: FrameType) -> tuple[str, str | None] | None:
    """The function that runs in a stack's thread, and the step whose handler runs.

    Either is ``None`` if there is none.
    """
    step_id: str | None = None
    found: FrameType | None = frame
    while found is not None:
        if found.f_code is AsyncCall._call_handler.__code__:
            step_id = found.f_locals["step"].request.step_id
        if found.f_code is AsyncCall._run.__code__ or found.f_code is AsyncCall._call_handler.__code__:
            return found.f_locals["self"]._replay.function_id, step_id
        found = found.f_back
    return None
