"""A call of an async function, under real asyncio."""

import asyncio
import contextvars
import heapq
import inspect
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from durably.protocol.errors import FunctionConfigInvalidError
from durably.protocol.opcodes import Opcode, ParallelMode

from .asyncio_compat import AnyTask, RunTask, Unawaited, cancelling, clock_refusal, find_clock
from .idle_detection import IdleDetector, tear_down
from .replay import (
    Checkpointed,
    Checkpointer,
    Ending,
    FoundSteps,
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
from .step import Memo, Step, StepReport, StepRequest, ThreadCall, is_async

T = TypeVar("T")

_MAX_REFUSALS = 10
"""Steps that a task may call after its cancellation. After more it counts as swallowing cancellations."""

_BEGUN_AT_ONCE = 32
"""The number of steps that begin in one iteration of the loop if a call executes several together."""

group_mode: ContextVar[ParallelMode | None] = ContextVar("durably_group_mode", default=None)
"""The mode of the steps inside ``group.parallel``."""


def install_task_factory(loop: asyncio.AbstractEventLoop) -> None:
    """Install a task factory that reports a function's new tasks to its call.

    An existing factory is kept and called.
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


class _WaitingStep:
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
        """Whether the decision was to execute the step."""
        return self.future.done() and not self.future.cancelled() and not self.future.result()


class AsyncCall:
    """One call of one async function.

    The ``IdleDetector`` is created lazily: a function with a single task often needs none.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending | None] = self._loop.create_future()
        self._tasks: set[AnyTask] = set()
        self._idle_detector: IdleDetector | None = None
        self._waiting: dict[str, _WaitingStep] = {}  # by hashed id
        self._memoized: list[tuple[int, str]] = []  # heap of waiting steps that have memos, by position in the stack
        self._executing = 0
        self._executed: list[StepReport] = []
        self._is_together = False  # steps that were found at once are executed, and then stored
        self._storing: AnyTask | None = None
        self._is_closing = False
        self._refusals: dict[AnyTask, int] = {}
        self._unawaited = Unawaited()

    # -- running

    async def run(self, function: Callable[[], Awaitable[Any]]) -> Ending:
        """Run the function until it or the call ends, and cancel its tasks."""
        if not hasattr(self._loop.get_task_factory(), "tracks_durably"):
            install_task_factory(self._loop)
        replay = self._replay
        if replay.is_new:
            await replay.start_new_code()
        # Use a fresh context, so that an enclosing run cannot leak into this one.
        main = contextvars.copy_context().run(self._create_main, function)
        main.add_done_callback(lambda _: self._end(None))
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
        # Without ``context=``: task factories written for Python before 3.11 do not take it.
        return self._loop.create_task(self._run(function))

    async def _run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        if not self._tasks:  # an eager task runs before its factory could track it
            self.track(_current_task())
        try:
            return await function()
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
            # Drop the error: its traceback would keep the task alive in a cycle.
        except SystemExit as error:
            # ``SystemExit`` in a task would stop the server's event loop.
            raise raised_by_user(error) from None

    def _ending_of(self, main: AnyTask) -> Ending:
        ending = _result_of_main(main)
        if not isinstance(ending, Returned):
            if self._replay.diagnostics is not None and (error := self._unawaited.any()) is not None:
                self._replay.diagnostics.not_awaited(str(error))
            return ending
        if (error := self._unawaited.any()) is not None:
            return Raised(error)
        if (diverged := self._divergence(None)) is not None:
            return diverged
        if self._replay.diagnostics is not None and (left := self._unfinished_steps()):
            self._replay.diagnostics.unfinished_steps(left)
        return ending

    def _unfinished_steps(self) -> list[str]:
        """Ids of unfinished steps in tasks that no code has awaited, in creation order."""
        memos, detector = self._replay.memos, self._idle_detector
        if detector is None:
            return []
        left = [
            entry.step
            for entry in self._waiting.values()
            if entry.step.hashed_id not in memos and not cancelling(entry.task) and not detector.was_awaited(entry.task)
        ]
        return [step.request.step_id for step in sorted(left, key=lambda step: step.order)]

    def _divergence(self, found: str | None) -> Raised | None:
        """The call's outcome if the function certainly missed a memo, else ``None``.

        A task that neither has ended nor waits for a step may still reach memos.
        """
        detector = self._idle_detector
        if detector is not None and (detector.ignored or (found is None and detector.is_any_task_active())):
            return None
        return self._replay.divergence(found)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's, unless a step's handler created it.

        Tasks on another thread's event loop inherit the run's context too, but belong to that thread.
        """
        if in_step.get() is not None or task.get_loop() is not self._loop:
            return
        if self._tasks:
            self._open_idle_detector().track(task)
        else:
            self._tasks.add(task)
        if self._unawaited.awaitables:
            self._unawaited.leave_to_task(task.get_coro())

    def _open_idle_detector(self) -> IdleDetector:
        if self._idle_detector is None:
            self._idle_detector = IdleDetector(self._loop, self._decide, self._tasks)
            self._idle_detector.is_suspended = bool(self._executing)
        return self._idle_detector

    async def _close(self) -> None:
        self._is_closing = True
        if self._storing is not None:
            self._storing.cancel()
        if self._idle_detector is not None:
            self._idle_detector.close()
        for task in self._tasks:
            if not task.done():
                await tear_down(self._tasks)
                break
        # Contexts of tasks refer to these. Clear them, so that no cycle waits for the garbage collector.
        self._tasks.clear()
        self._waiting.clear()
        self._refusals.clear()

    # -- steps

    def step(self, request: StepRequest) -> Coroutine[Any, Any, Any]:
        """Create the awaitable of a step.

        Repetitions of an id are numbered here, when user code creates the step. Tasks that are created from a set of
        steps (``asyncio.wait``, ``as_completed``) start in no fixed order.
        """
        if (outer := in_step.get()) is not None:
            raise nested(request, outer)
        step = self._replay.identify(request)
        if self._is_closing:
            return self._result_of(step)
        result = self._unawaited.add(f'step "{request.step_id}"', self._result_of(step))
        step.awaitable_id = id(result)
        return result

    def group(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """Create the awaitable of a group of steps. ``work`` creates them."""
        number = 0

        async def group() -> T:
            self._unawaited.awaitables.pop(number, None)
            return await work()

        result = self._unawaited.add(name, group())
        number = id(result)
        return result

    async def _result_of(self, step: Step) -> Any:
        """Return the memo.

        Wait if there is none yet, or if earlier memos have to be returned first.
        """
        self._unawaited.awaitables.pop(step.awaitable_id, None)
        if asyncio.get_running_loop() is not self._loop:
            raise FunctionConfigInvalidError(
                f'step "{step.request.step_id}" is awaited on another event loop than that of its function: await it '
                "in the function, not by asyncio.run in a thread"
            )
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._is_closing:
            # Refuse a step that is reached while the function's tasks are cancelled. The cancellation continues.
            refusals = self._refusals[task] = self._refusals.get(task, 0) + 1
            if refusals > _MAX_REFUSALS:
                await self._loop.create_future()
            raise asyncio.CancelledError("the call has ended")
        if (outer := in_step.get()) is not None:
            raise nested(step.request, outer)
        if task not in self._tasks:
            self.track(task)  # created without the run's context, or started before the factory could track it
        unawaited = self._unawaited
        if (unawaited.awaitables or unawaited.lost) and not self._executing and (error := unawaited.dropped()):
            await self._end_and_wait(Raised(error))
        replay = self._replay
        is_alone = len(self._tasks) == 1
        memo = None
        if is_alone:
            memo = replay.take(step, in_order=self._idle_detector is None or not self._idle_detector.ignored)
        if memo is None:
            if (is_alone and self._goes_ahead(step, task)) or not await self._park(step, task):
                if not self._is_together:
                    return value_of(await self._execute(step), step.request.decode)
                await self._execute_together(step, task)
            memo = replay.take(step, in_order=self._idle_detector is None or not self._idle_detector.ignored)
            assert memo is not None
        if replay.step_memos.refusals and (refusal := replay.refusal(step)) is not None:
            await self._end_and_wait(Raised(refusal))
        if replay.is_last_taken and replay.is_replaying:
            try:
                await replay.start_new_code()
            except Exception as error:  # Error of a middleware hook, which the function cannot catch.
                await self._end_and_wait(Raised(error))
        return value_of(memo, step.request.decode)

    def _goes_ahead(self, step: Step, task: AnyTask) -> bool:
        """Whether the function's only task need not wait for the call's decision.

        It can continue if the decision is certain to be *execute*. If a clock may run around the step, the task must
        wait, because clocks are looked for in waiting tasks.
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
        if self._idle_detector is not None:
            self._idle_detector.is_suspended = True
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
            else:
                replay.host.durations.note([report])
                if (memo := await apart_from_run(checkpointer.take(report))) is not None:
                    return memo
                self._end(Checkpointed())
        except Exception as error:  # error of a middleware hook
            self._end(Raised(error))
        finally:
            self._finish_executing()
        if len(self._tasks) == 1 and self._ended.done():
            self._is_closing = True
            raise asyncio.CancelledError("the call has ended")  # the teardown would do this one loop iteration later
        return await self._loop.create_future()  # type: ignore[no-any-return]  # until the teardown

    async def _execute_together(self, step: Step, task: AnyTask) -> None:
        """Run the handler of one of several steps, and wait until all are stored and this one's memo is next."""
        try:
            mode = group_mode.get() or ParallelMode.RACE
            self._executed.append(await self._replay.execute(step, mode, self._call_handler))
        except Exception as error:  # the lease could not be confirmed
            self._end(Raised(error))
        finally:
            self._finish_executing()
        await self._park(step, task)

    async def _call_handler(self, step: Step, args: Sequence[Any]) -> Any:
        """Call the handler of a step.

        Async handlers run on the event loop, sync handlers in a thread.
        """
        replay, request = self._replay, step.request
        handler = request.handler
        assert handler is not None
        if replay.host.threads is None or is_async(handler):
            output = handler(*args, **request.kwargs)
        else:
            call = ThreadCall(partial(handler, *args, **request.kwargs), replay.host.clock)
            abandon = (
                None if replay.diagnostics is None else partial(replay.diagnostics.abandoned_thread, request.step_id)
            )
            await replay.host.threads.run(call.run, on_abandoned=abandon)
            step.nanoseconds = call.nanoseconds
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

        Also called if user code has cancelled the step's task. Then the step is not reported.
        """
        self._executing -= 1
        if self._executing:
            return
        if self._executed:
            self._replay.host.durations.note(self._executed)
            if self._is_together and self._replay.checkpointer is not None:
                self._executing = 1  # makes no decision before the steps are stored
                context = contextvars.copy_context()
                context.run(current_tracker.set, None)
                self._storing = self._loop.create_task(self._store(self._replay.checkpointer), context=context)
                return
            self._end(FoundSteps(self._executed))
        self._is_together = False
        if self._idle_detector is not None:
            self._idle_detector.is_suspended = False
            if len(self._tasks) > 1:  # otherwise only the continuing task is left
                self._idle_detector.progressed()

    async def _store(self, checkpointer: Checkpointer) -> None:
        """Store the steps that were executed together. Their memos are then returned in this order, as in a replay."""
        reports, self._executed = self._executed, []
        try:
            memos = await checkpointer.take_all(reports)
        except Exception as error:
            self._end(Raised(error))
            return
        if memos is None:
            self._end(FoundSteps(reports))
            return
        steps = [report.step for report in reports if report.step is not None]
        self._replay.add(steps, memos)
        for step in steps:
            if step.hashed_id in self._waiting:
                heapq.heappush(self._memoized, (self._replay.position(step.hashed_id), step.hashed_id))
        self._finish_executing()
        self._open_idle_detector().progressed()

    async def _park(self, step: Step, task: AnyTask) -> bool:
        """Wait for the call's decision about a step.

        Returns ``True`` to return the memo, ``False`` to execute the step.
        """
        replay, detector = self._replay, self._open_idle_detector()
        waiting = _WaitingStep(step, task, self._loop.create_future(), group_mode.get(), not replay.is_replaying)
        self._waiting[step.hashed_id] = waiting
        if step.hashed_id in replay.memos:
            heapq.heappush(self._memoized, (replay.position(step.hashed_id), step.hashed_id))
        detector.add_waiting(task)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting.is_to_execute:  # cancelled after the decision, before it could continue
                self._finish_executing()
            raise
        finally:
            del self._waiting[step.hashed_id]
            detector.remove_waiting(task)

    # -- deciding

    def _decide(self) -> None:
        replay, waiting, detector = self._replay, self._waiting, self._idle_detector
        assert detector is not None
        targets = [waiting[each] for each in replay.targets if each in waiting and each not in replay.memos]
        if targets:
            self._execute_or_report(targets)
            return
        while self._memoized:
            _, hashed_id = heapq.heappop(self._memoized)
            if hashed_id in waiting and hashed_id in replay.memos:
                if not (future := waiting[hashed_id].future).done():  # otherwise its task has just been cancelled
                    future.set_result(True)
                return
        if not waiting or any(entry.future.done() for entry in waiting.values()):
            return  # the function waits for something that will wake it, or is about to wake
        found = sorted(waiting.values(), key=lambda entry: entry.step.order)
        steps = [entry.step for entry in found]
        if (clock := find_clock(self._tasks, detector.ignored)) is not None:
            self._end(Raised(clock_refusal(clock, [step.request.step_id for step in steps])))
        elif replay.target is not None:
            if not detector.ignored:  # otherwise one of those tasks may still reach the target
                self._end(replay.not_found(steps))
        elif detector.ignored and not any(entry.is_new for entry in found) and detector.waits_longer():
            return  # the engine knows all of these, and would not call again before one of them ends
        elif len(found) == 1 and found[0].mode is None and replay.runs_at_once(steps[0]):
            if replay.is_over:
                self._end(Checkpointed())
            else:
                self._execute_or_report(found)
        elif (diverged := self._divergence(steps[0].request.step_id)) is not None:
            self._end(diverged)
        elif replay.runs_together(steps):
            self._is_together = detector.is_suspended = True
            self._executing = 1
            self._execute_some(deque(found))
        else:
            self._end(
                FoundSteps([replay.plan(entry.step, entry.mode, among_several=len(found) > 1) for entry in found])
            )

    def _execute_or_report(self, entries: Sequence[_WaitingStep]) -> None:
        for entry in entries:
            if not entry.step.request.is_run:
                self._executed.append(self._replay.plan(entry.step, entry.mode, among_several=False))
            elif not entry.future.done():  # otherwise its task has just been cancelled
                self._executing += 1
                entry.future.set_result(False)
        self._open_idle_detector().is_suspended = bool(self._executing)
        if self._executed and not self._executing:
            self._end(FoundSteps(self._executed))

    def _execute_some(self, entries: deque[_WaitingStep]) -> None:
        """Begin with steps that are executed together, and leave the others to later iterations of the loop.

        So quick handlers block the loop for a moment only.
        """
        for entry in itertools.islice(entries, _BEGUN_AT_ONCE):
            if not entry.future.done():  # otherwise its task has just been cancelled
                self._executing += 1
                entry.future.set_result(False)
        for _ in range(min(_BEGUN_AT_ONCE, len(entries))):
            entries.popleft()
        if entries:
            self._loop.call_soon(self._execute_some, entries, context=Context())
        else:
            self._finish_executing()

    def _end(self, ending: Ending | None) -> None:
        """End the call. ``ending`` is ``None`` if the function has ended."""
        if not self._ended.done():
            if self._idle_detector is not None:
                self._idle_detector.stop()
            self._ended.set_result(ending)

    async def _end_and_wait(self, ending: Ending) -> None:
        """End the call, and wait until its tasks are cancelled."""
        self._end(ending)
        await self._loop.create_future()


def _current_task() -> AnyTask:
    task = asyncio.current_task()
    assert task is not None
    return task


def _result_of_main(main: AnyTask) -> Ending:
    if main.cancelled():
        return Raised(RuntimeError("the function was cancelled by its own code (asyncio.CancelledError)"))
    if (error := main.exception()) is None:
        return Returned(main.result())
    if isinstance(error, Exception):
        return Raised(raised_by_user(error))
    raise error


def running_step(frame: FrameType) -> tuple[str, str | None] | None:
    """The function that a thread runs, and the step whose handler runs.

    Either is ``None`` if there is none.
    """
    step_id: str | None = None
    found: FrameType | None = frame
    while found is not None:
        if found.f_code is AsyncCall._call_handler.__code__:
            step_id = found.f_locals["step"].request.step_id
        if found.f_code is AsyncCall._run.__code__ or found.f_code is AsyncCall._call_handler.__code__:
            return found.f_locals["self"]._replay.assignment.function_id, step_id
        found = found.f_back
    return None
