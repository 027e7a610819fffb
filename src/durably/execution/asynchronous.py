"""A call of an async function, under real asyncio.

The function runs as a task; the tasks it creates are known through the loop's task factory. Each step
without a result *parks* its task on a future. When every task of the run is parked, or waits for one
that is, and nothing has moved for a few iterations of the loop, the call is *settled* and decides: return
one more memo, in the order of the stack; else execute a step; else end and report what was found.
Returning one memo at a time and settling after each makes races, and the numbering of repeated ids,
replay exactly as they first happened.

Tasks that wait for the outside (I/O, a timer) are waited for, but not for ever: nothing tells a future that I/O
resolves from one that another branch resolves after its step, and some tasks never end (a heartbeat, the reader
of a connection). While steps are parked, a task that has made no progress for a while no longer counts.
"""

import asyncio
import contextvars
import heapq
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from durably.protocol.opcodes import ParallelMode

from . import clocks
from .memos import Memo
from .outcome import Ending, Found, HandedOver, Raised, Returned, StepReport
from .replay import Replay, in_step, raised_by_user, refuse_nested
from .step import Step, StepRequest
from .tasks import AnyFuture, AnyTask, Wait, classify, current_tracker, install_task_factory, waiter_of
from .teardown import tear_down

_QUIET_ITERATIONS = 5
"""Iterations of the loop without any movement before several tasks count as settled.

A task's end reaches its awaiter through up to three callbacks (the task's, gather's or wait's, the
awaiter's own), one iteration each.
"""

_PATIENCE_SECONDS = 1.0
"""How long parked steps wait for a task that waits for the outside and makes no progress.

Going on without it is safe: its steps are found later, as those of a slower branch. Only a call that targets a step
waits on, since what it waits for may be on the way to its target.
"""

_MAX_REFUSALS = 10
"""How many steps a task may call after its cancellation before it is taken to swallow cancellations."""

group_mode: ContextVar[ParallelMode | None] = ContextVar("durably_group_mode", default=None)
"""Set inside ``group.parallel``: the mode of its steps."""


class _Parked:
    __slots__ = ("future", "mode", "step")

    def __init__(self, step: Step, future: asyncio.Future[bool], mode: ParallelMode | None) -> None:
        self.step = step
        self.future = future
        self.mode = mode


class AsyncCall:
    """One call of one async function."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending | None] = self._loop.create_future()
        self._tasks: set[AnyTask] = set()
        self._active: set[AnyTask] = set()  # tasks that are neither parked on a step nor wait for other tasks
        self._ignored: set[AnyTask] = set()  # active tasks that are not waited for any more
        self._watched: dict[AnyFuture, set[AnyTask]] = {}  # by what they wait for, tasks to look at once it has come
        self._parked: dict[str, _Parked] = {}  # by hashed id
        self._parked_tasks: set[AnyTask] = set()
        self._memoized: list[tuple[int, str]] = []  # heap of parked steps that have memos, by place in the stack
        self._progress = 0  # counts steps that park or go on, and tasks that begin or end
        self._moves = 0  # counts whatever may have changed what a task waits for
        self._settling: asyncio.Handle | None = None
        self._patience: asyncio.Handle | None = None
        self._quiet = 0
        self._seen_moves = -1
        self._is_executing = False
        self._is_closing = False
        self._refusals: dict[AnyTask, int] = {}

    # -- running

    async def run(self, function: Callable[[], Awaitable[Any]]) -> Ending:
        """Run the function until it ends or the call does, and take its tasks down."""
        install_task_factory(self._loop)
        if self._replay.is_new:
            await self._replay.freshen()
        main = contextvars.copy_context().run(self._start, function)
        main.add_done_callback(self._on_main_done)
        try:
            outcome = await self._ended
            if outcome is None:
                outcome = _outcome_of(main)
        finally:
            await self._close()
        await self._replay.freshen()
        return outcome

    def _start(self, function: Callable[[], Awaitable[Any]]) -> AnyTask:
        """The function's main task. Nothing of a run that this one is perhaps called from reaches into it."""
        current_tracker.set(self)
        in_step.set(None)
        group_mode.set(None)
        return self._loop.create_task(self._run(function))

    async def _run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        self._track_current()  # an eager task runs before its factory could tell
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
            self._ended.set_result(None)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's, unless a step's handler made it."""
        if in_step.get() is None and task not in self._tasks:
            self._tasks.add(task)
            self._active.add(task)
            task.add_done_callback(self._untrack)
            self._progressed()

    def _untrack(self, task: AnyTask) -> None:
        self._tasks.discard(task)
        self._active.discard(task)
        self._ignored.discard(task)
        self._progressed()

    async def _close(self) -> None:
        self._is_closing = True
        for handle in (self._settling, self._patience):
            if handle is not None:
                handle.cancel()
        for waiter in self._watched:
            waiter.remove_done_callback(self._on_watched_done)
        self._watched.clear()
        await tear_down(self._tasks)
        self._parked.clear()
        self._refusals.clear()

    # -- steps

    def step(self, request: StepRequest) -> Coroutine[Any, Any, Any]:
        """The step, to be awaited. Repetitions of an id are numbered here, when user code makes the step.

        Tasks that are made of a set of steps (``asyncio.wait``, ``as_completed``) start in no fixed order.
        """
        return self._result_of(self._replay.identify(request))

    async def _result_of(self, step: Step) -> Any:
        """Return the memo; park where there is none yet, or where its turn has to be awaited."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._is_closing:
            await self._refuse_in_teardown(task)
        refuse_nested(step.request)
        if task not in self._tasks:
            self.track(task)  # made without the run's context, or started before the factory could tell
        replay = self._replay
        memo = replay.memos.pop(step.hashed_id) if len(self._tasks) == 1 else None
        if memo is None:
            if not await self._park(step, task):
                return replay.value(step, await self._execute(step))
            memo = replay.memos.pop(step.hashed_id)
            assert memo is not None
        if replay.is_last(step):
            await self._freshen()
        return replay.value(step, memo)

    async def _execute(self, step: Step) -> Memo:
        """Run the step's handler, which ends the call unless the step can be handed over."""
        try:
            report = await self._replay.execute(step, _resolve_output)
            ending = await self._conclude(report)
            if isinstance(ending, Memo):
                self._progressed()
                return ending
            self._end(ending)
        except Exception as error:  # a hook's
            self._end(Raised(error))
        finally:
            self._is_executing = False  # left without an end if user code cancels the task
        return await self._loop.create_future()  # type: ignore[no-any-return]  # until the teardown

    async def _conclude(self, report: StepReport) -> Memo | Ending:
        token = current_tracker.set(None)  # tasks that are made to hand the step over are not the run's
        try:
            return await self._replay.conclude(report)
        finally:
            current_tracker.reset(token)

    async def _freshen(self) -> None:
        """What a hook raises here ends the call; it is none of the function's business."""
        try:
            await self._replay.freshen()
        except Exception as error:
            self._end(Raised(error))
            await self._loop.create_future()

    async def _park(self, step: Step, task: AnyTask) -> bool:
        """Wait for the call's decision: True to return the memo, False to execute the step."""
        parked = _Parked(step, self._loop.create_future(), group_mode.get())
        self._parked[step.hashed_id] = parked
        self._parked_tasks.add(task)
        if step.hashed_id in self._replay.memos:
            heapq.heappush(self._memoized, (self._replay.position(step.hashed_id), step.hashed_id))
        self._active.discard(task)
        self._ignored.discard(task)
        self._progressed()
        try:
            return await parked.future
        finally:
            del self._parked[step.hashed_id]
            self._parked_tasks.discard(task)
            if task in self._tasks:
                self._active.add(task)
            self._progressed()

    async def _refuse_in_teardown(self, task: AnyTask) -> None:
        """Steps met while the function's tasks are cancelled are not run: cancellation goes on."""
        refusals = self._refusals[task] = self._refusals.get(task, 0) + 1
        if refusals > _MAX_REFUSALS:
            await self._loop.create_future()
        raise asyncio.CancelledError("the call has ended")

    # -- settling

    def _progressed(self) -> None:
        self._progress += 1
        self._moved()

    def _moved(self) -> None:
        """Something happened: look soon whether the call is settled."""
        self._moves += 1
        if self._settling is None and not self._is_over:
            self._settling = self._loop.call_soon(self._settle)

    @property
    def _is_over(self) -> bool:
        return self._is_closing or self._ended.done()

    def _settle(self) -> None:
        self._settling = None
        if self._is_over or self._is_executing or not self._tasks:
            return
        if self._is_moving():
            self._quiet = 0
            if self._parked and self._patience is None:
                self._patience = self._loop.call_later(_PATIENCE_SECONDS, self._lose_patience, self._progress)
            return
        if len(self._tasks) > 1 and not self._is_quiet():
            self._settling = self._loop.call_soon(self._settle)
            return
        self._quiet = 0
        self._decide()

    def _is_moving(self) -> bool:
        """Whether a task runs, or waits for the outside; either looks again by itself."""
        moving = False
        for task in self._active - self._ignored:
            wait = classify(task, self._tasks)
            if wait is Wait.READY:
                self._moved()
                return True
            self._watch(task)
            if wait is Wait.OUTSIDE:
                moving = True
            else:
                self._active.discard(task)
        return moving

    def _watch(self, task: AnyTask) -> None:
        """Look at the task again once what it waits for has come."""
        waiter = waiter_of(task)
        assert waiter is not None
        if waiter in self._watched:
            self._watched[waiter].add(task)
        else:
            self._watched[waiter] = {task}
            waiter.add_done_callback(self._on_watched_done)

    def _on_watched_done(self, waiter: AnyFuture) -> None:
        self._active |= (self._watched.pop(waiter) & self._tasks) - self._parked_tasks
        self._moved()

    def _lose_patience(self, progress: int) -> None:
        self._patience = None
        if progress == self._progress and self._parked:
            self._ignored = {task for task in self._active if classify(task, self._tasks) is not Wait.TASKS}
        self._moved()

    def _is_quiet(self) -> bool:
        if self._seen_moves != self._moves:
            self._seen_moves, self._quiet = self._moves, 0
        self._quiet += 1
        return self._quiet > _QUIET_ITERATIONS

    def _decide(self) -> None:
        replay, parked = self._replay, self._parked
        if replay.target in parked and replay.target not in replay.memos:
            self._execute_or_report(parked[replay.target])
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
        if (clock := clocks.find_clock(self._tasks, self._ignored)) is not None:
            self._end(Raised(clocks.refusal(clock, [step.request.step_id for step in steps])))
        elif replay.target is not None:
            if not self._ignored:  # else one of those tasks may be on the way to the target
                self._end(replay.not_found(replay.target, steps))
        elif len(found) == 1 and found[0].mode is None and replay.runs_at_once(steps[0]):
            if replay.is_over:
                self._end(HandedOver())
            else:
                self._execute_or_report(found[0])
        else:
            self._end(Found([replay.plan(entry.step, entry.mode, among_several=len(found) > 1) for entry in found]))

    def _execute_or_report(self, entry: _Parked) -> None:
        if entry.step.request.is_run:
            self._is_executing = not entry.future.done()
            _resolve(entry.future, False)
        else:
            self._end(Found([StepReport(entry.step.to_op(), entry.step.info())]))

    def _end(self, ending: Ending) -> None:
        if not self._ended.done():
            self._ended.set_result(ending)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    """Unless the task that waits for it has just been cancelled."""
    if not future.done():
        future.set_result(value)


async def _resolve_output(output: Any) -> Any:
    """In async functions handlers may be sync or async. One that cancels itself has failed like any other."""
    if not inspect.isawaitable(output):
        return output
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
