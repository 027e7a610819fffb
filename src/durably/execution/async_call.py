"""A call of an async function, under real asyncio."""

import asyncio
import contextvars
import heapq
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from durably.protocol.opcodes import ParallelMode

from . import clocks, handlers
from .memos import Memo
from .outcome import Checkpointed, Ending, Found, Raised, Returned, StepReport
from .replay import Replay, apart_from_run, in_step, raised_by_user, refuse_nested
from .settling import Settling
from .step import Step, StepRequest
from .tasks import AnyTask, current_tracker, install_task_factory, tear_down
from .unawaited import Unawaited

T = TypeVar("T")

_MAX_REFUSALS = 10
"""How many steps a task may call after its cancellation before it is taken to swallow cancellations."""

group_mode: ContextVar[ParallelMode | None] = ContextVar("durably_group_mode", default=None)
"""Set inside ``group.parallel``: the mode of its steps."""


class _Parked:
    """``is_new``: it was met after the memos were returned, so no call before this one can have found it."""

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
    """One call of one async function."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending | None] = self._loop.create_future()
        self._settling = Settling(self._loop, self._decide)
        self._tasks = self._settling.tasks
        self._parked: dict[str, _Parked] = {}  # by hashed id
        self._memoized: list[tuple[int, str]] = []  # heap of parked steps that have memos, by place in the stack
        self._executing = 0
        self._executed: list[StepReport] = []
        self._is_closing = False
        self._refusals: dict[AnyTask, int] = {}
        self._unawaited = Unawaited()
        self._groups = 0

    # -- running

    async def run(self, function: Callable[[], Awaitable[Any]]) -> Ending:
        """Run the function until it ends or the call does, and take its tasks down."""
        install_task_factory(self._loop)
        if self._replay.is_new:
            await self._replay.start_new_code()
        main = self._start(function)
        main.add_done_callback(self._on_main_done)
        try:
            outcome = await self._ended
            if outcome is None:
                outcome = self._outcome_of(main)
        finally:
            await self._close()
        await self._replay.start_new_code()
        return outcome

    def _outcome_of(self, main: AnyTask) -> Ending:
        outcome = _outcome_of(main)
        if not isinstance(outcome, Returned):
            return outcome
        if (error := self._unawaited.any()) is not None:
            return Raised(error)
        if (diverged := self._divergence(None)) is not None:
            return diverged
        if self._replay.findings is not None and (left := self._left_steps()):
            self._replay.findings.left_steps(left)
        return outcome

    def _left_steps(self) -> list[str]:
        """Ids of unfinished steps, in the order in which they were made, in tasks that no code has awaited."""
        memos, settling = self._replay.memos, self._settling
        left = [
            entry.step
            for entry in self._parked.values()
            if entry.step.hashed_id not in memos
            and not entry.task.cancelling()
            and not settling.was_awaited(entry.task)
        ]
        return [step.request.step_id for step in sorted(left, key=lambda step: step.order)]

    def _divergence(self, found: str | None) -> Raised | None:
        """It is unknown whether a task that neither has ended nor waits for a step will reach memos."""
        if self._settling.ignored or (found is None and self._settling.is_anyone_under_way()):
            return None
        return self._replay.divergence(found)

    def _start(self, function: Callable[[], Awaitable[Any]]) -> AnyTask:
        """The function's main task. Nothing of a run that this one is perhaps called from reaches into it."""
        return contextvars.copy_context().run(self._create_main, function)

    def _create_main(self, function: Callable[[], Awaitable[Any]]) -> AnyTask:
        current_tracker.set(self)
        in_step.set(None)
        group_mode.set(None)
        # Without ``context=``, which task factories of before Python 3.11 do not take.
        return self._loop.create_task(self._run(function))

    async def _run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        self._track_current()  # an eager task runs before its factory could track it
        try:
            return await function()
        except SystemExit as error:
            # Out of a task it would stop the server's event loop.
            raise raised_by_user(error) from None

    def _track_current(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.track(task)

    def _on_main_done(self, main: AnyTask) -> None:
        if not self._ended.done():
            self._settling.stop()
            self._ended.set_result(None)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's, unless a step's handler made it."""
        if in_step.get() is None:
            self._settling.track(task)
            if self._unawaited:
                self._unawaited.leave_to_task(task.get_coro())

    async def _close(self) -> None:
        self._is_closing = True
        self._settling.close()
        await tear_down(self._tasks)
        self._parked.clear()
        self._refusals.clear()

    # -- steps

    def step(self, request: StepRequest) -> Coroutine[Any, Any, Any]:
        """The step, to be awaited. Repetitions of an id are numbered here, when user code makes the step.

        Tasks that are made of a set of steps (``asyncio.wait``, ``as_completed``) start in no fixed order.
        """
        refuse_nested(request)
        step = self._replay.identify(request)
        result = self._result_of(step)
        if not self._is_closing:
            self._unawaited.add(step.order, f'step "{request.step_id}"', result)
        return result

    def group(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """``work``, which makes several steps, to be awaited."""
        self._groups += 1
        group = self._await_group(-self._groups, work)
        self._unawaited.add(-self._groups, name, group)
        return group

    async def _await_group(self, number: int, work: Coroutine[Any, Any, T]) -> T:
        self._unawaited.begin(number)
        return await work

    async def _result_of(self, step: Step) -> Any:
        """Return the memo; park where there is none yet, or where its turn has to be awaited."""
        self._unawaited.begin(step.order)
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._is_closing:
            await self._refuse_in_teardown(task)
        refuse_nested(step.request)
        if task not in self._tasks:
            self.track(task)  # made without the run's context, or started before the factory could track it
        if self._unawaited and not self._executing and (error := self._unawaited.dropped()) is not None:
            self._end(Raised(error))
            await self._loop.create_future()  # until the teardown
        replay = self._replay
        memo = replay.take(step, in_order=not self._settling.ignored) if len(self._tasks) == 1 else None
        if memo is None:
            if self._goes_ahead(step, task) or not await self._park(step, task):
                return replay.value(step, await self._execute(step))
            memo = replay.take(step, in_order=not self._settling.ignored)
            assert memo is not None
        if replay.memos.refusals and (refusal := replay.refusal(step)) is not None:
            self._end(Raised(refusal))
            await self._loop.create_future()  # until the teardown
        if replay.is_last(step):
            await self._start_new_code()
        return replay.value(step, memo)

    def _goes_ahead(self, step: Step, task: AnyTask) -> bool:
        """Whether the call's decision would surely be to execute the step: then there is no need to wait for it."""
        replay = self._replay
        if (
            len(self._tasks) > 1
            or task.cancelling()
            or replay.targets
            or group_mode.get() is not None
            or not replay.runs_at_once(step)
            or replay.is_over
            or self._ended.done()
            or clocks.may_surround_caller(AsyncCall._run.__code__)
        ):
            return False
        self._executing += 1
        self._settling.is_suspended = True
        return True

    async def _execute(self, step: Step) -> Memo:
        """Run the step's handler, which ends the call unless a checkpoint can store the step."""
        try:
            if (diverged := self._divergence(step.request.step_id)) is not None:
                self._end(diverged)
                return await self._loop.create_future()  # type: ignore[no-any-return]
            report = await self._replay.execute(step, group_mode.get(), self._call_handler)
            ending = await apart_from_run(self._replay.conclude(report))
            if isinstance(ending, Memo):
                return ending
            if isinstance(ending, Found):
                self._executed += ending.reports
            else:
                self._end(ending)
        except Exception as error:  # a hook's
            self._end(Raised(error))
        finally:
            self._finish_executing()
        return await self._loop.create_future()  # type: ignore[no-any-return]  # until the teardown

    async def _call_handler(self, step: Step, args: Sequence[Any]) -> Any:
        """Call the handler: async handlers run on the event loop, sync handlers in a thread."""
        threads = self._replay.threads
        if threads is None or handlers.is_async(step.request.handler):
            output = step.request.call(args)
        else:
            attempt = handlers.Attempt(partial(step.request.call, args))
            await threads.run(step.info(), attempt.make)
            output = attempt.result()
        return await _resolve_output(output) if inspect.isawaitable(output) else output

    def _finish_executing(self) -> None:
        """Also where user code has cancelled the step's task, and there is nothing to report of it."""
        self._executing -= 1
        if not self._executing:
            if self._executed:
                self._end(Found(self._executed))
            self._settling.is_suspended = False
            if len(self._tasks) > 1:  # else the task that goes on is the only one
                self._settling.progressed()

    async def _start_new_code(self) -> None:
        """What a hook raises here ends the call; it is none of the function's business."""
        try:
            await self._replay.start_new_code()
        except Exception as error:
            self._end(Raised(error))
            await self._loop.create_future()

    async def _park(self, step: Step, task: AnyTask) -> bool:
        """Wait for the call's decision: True to return the memo, False to execute the step."""
        replay = self._replay
        parked = _Parked(step, task, self._loop.create_future(), group_mode.get(), not replay.is_replaying)
        self._parked[step.hashed_id] = parked
        if step.hashed_id in replay.memos:
            heapq.heappush(self._memoized, (replay.position(step.hashed_id), step.hashed_id))
        self._settling.park(task)
        try:
            return await parked.future
        except asyncio.CancelledError:
            if parked.is_to_execute:  # cancelled after the decision, before it could go on
                self._finish_executing()
            raise
        finally:
            del self._parked[step.hashed_id]
            self._settling.unpark(task)

    async def _refuse_in_teardown(self, task: AnyTask) -> None:
        """Steps met while the function's tasks are cancelled are not run: cancellation goes on."""
        refusals = self._refusals[task] = self._refusals.get(task, 0) + 1
        if refusals > _MAX_REFUSALS:
            await self._loop.create_future()
        raise asyncio.CancelledError("the call has ended")

    # -- deciding

    def _decide(self) -> None:
        replay, parked = self._replay, self._parked
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
        settling = self._settling
        if (clock := clocks.find_clock(self._tasks, settling.ignored)) is not None:
            self._end(Raised(clocks.refusal(clock, [step.request.step_id for step in steps])))
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
        self._settling.is_suspended = bool(self._executing)
        if self._executed and not self._executing:
            self._end(Found(self._executed))

    def _end(self, ending: Ending) -> None:
        if not self._ended.done():
            self._settling.stop()
            self._ended.set_result(ending)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    """Unless the task that waits for it has just been cancelled."""
    if not future.done():
        future.set_result(value)


async def _resolve_output(output: Awaitable[Any]) -> Any:
    """A handler that cancels itself has failed like any other."""
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    try:
        return await output
    except asyncio.CancelledError as error:
        if task.cancelling() > cancelling:
            raise
        raise RuntimeError("the handler was cancelled by its own code (asyncio.CancelledError)") from error


def _outcome_of(main: AnyTask) -> Ending:
    if main.cancelled():
        return Raised(RuntimeError("the function was cancelled by its own code (asyncio.CancelledError)"))
    if (error := main.exception()) is None:
        return Returned(main.result())
    if isinstance(error, Exception):
        return Raised(raised_by_user(error))
    raise error


def running_step(frame: FrameType) -> tuple[str, str | None] | None:
    """The function that runs in the thread of a stack, and the step whose handler runs; ``None`` if there is none."""
    step_id: str | None = None
    found: FrameType | None = frame
    while found is not None:
        if found.f_code is AsyncCall._call_handler.__code__:
            step_id = found.f_locals["step"].request.step_id
        if found.f_code is AsyncCall._run.__code__ or found.f_code is AsyncCall._call_handler.__code__:
            return found.f_locals["self"]._replay.function_id, step_id
        found = found.f_back
    return None
