"""A call of an async function, under real asyncio.

The function runs as a task; the tasks it creates are known through the loop's task factory. Each step
without a result *parks* its task on a future. When every task of the run is parked, or waits for one
that is, and nothing has moved for a few iterations of the loop, the call is *settled* and decides: return
one more memo, in the order of the stack; else execute a step; else end and report what was found.
Returning one memo at a time and settling after each makes races, and the numbering of repeated ids,
replay exactly as they first happened.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from durably.protocol.opcodes import Opcode, ParallelMode

from . import clocks
from .outcome import Found, Outcome, Raised, Returned, StepReport
from .replay import Replay, in_step, refuse_nested, resolve, without_own_frames
from .step import Step, StepRequest
from .tasks import AnyFuture, AnyTask, Wait, classify, current_tracker, install_task_factory, waiter_of

_QUIET_ITERATIONS = 5
"""Iterations of the loop without any movement before several tasks count as settled.

A task's end reaches its awaiter through up to three callbacks (the task's, gather's or wait's, the
awaiter's own), one iteration each.
"""

_MAX_TEARDOWN_STEPS = 100

group_mode: ContextVar[ParallelMode | None] = ContextVar("durably_group_mode", default=None)
"""Set inside ``group.parallel``: the mode of its steps."""


class _TornDown(BaseException):
    """Ends a task that keeps calling steps although its call is over."""


class _Parked:
    __slots__ = ("future", "mode", "step", "task")

    def __init__(self, step: Step, task: AnyTask, future: asyncio.Future[bool], mode: ParallelMode | None) -> None:
        self.step = step
        self.task = task
        self.future = future
        self.mode = mode


class AsyncCall:
    """One call of one async function."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Outcome | None] = self._loop.create_future()
        self._tasks: set[AnyTask] = set()
        self._active: set[AnyTask] = set()  # tasks that are not parked on a step
        self._parked: dict[str, _Parked] = {}  # by hashed id, in the order of finding
        self._memoized: list[tuple[int, str]] = []  # heap of parked steps that have memos, by place in the stack
        self._moves = 0
        self._settling: asyncio.Handle | None = None
        self._quiet = 0
        self._seen_moves = -1
        self._watched: set[AnyFuture] = set()
        self._is_executing = False
        self._is_closing = False
        self._teardown_steps = 0

    # -- running

    async def run(self, function: Callable[[], Awaitable[Any]]) -> Outcome:
        """Run the function until it ends or the call does, and take its tasks down."""
        install_task_factory(self._loop)
        if not self._replay.memos:
            await self._replay.freshen()
        token = current_tracker.set(self)
        try:
            main = self._loop.create_task(_run(function))
        finally:
            current_tracker.reset(token)
        self.track(main)
        main.add_done_callback(self._on_main_done)
        try:
            outcome = await self._ended
            if outcome is None:
                outcome = _outcome_of(main)
        finally:
            await self._tear_down()
        await self._replay.freshen()
        return outcome

    def _on_main_done(self, main: AnyTask) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's, unless a step's handler made it."""
        if in_step.get() is None and task not in self._tasks:
            self._tasks.add(task)
            self._active.add(task)
            task.add_done_callback(self._untrack)
            self._moved()

    def _untrack(self, task: AnyTask) -> None:
        self._tasks.discard(task)
        self._active.discard(task)
        self._moved()

    async def _tear_down(self) -> None:
        self._is_closing = True
        if self._settling is not None:
            self._settling.cancel()
        while tasks := [task for task in self._tasks if not task.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._parked.clear()
        self._watched.clear()

    # -- steps

    def step(self, request: StepRequest) -> Coroutine[Any, Any, Any]:
        """The step, to be awaited. Repetitions of an id are numbered here, when user code makes the step.

        Tasks that are made of a set of steps (``asyncio.wait``, ``as_completed``) start in no fixed order.
        """
        return self._result_of(self._replay.identify(request))

    async def _result_of(self, step: Step) -> Any:
        """Return the memo; park where there is none yet, or where its turn has to be awaited."""
        if self._is_closing:
            self._refuse_in_teardown()
        refuse_nested(step.request)
        replay = self._replay
        memo = replay.memos.pop(step.hashed_id) if len(self._tasks) == 1 else None
        if memo is None:
            if not await self._park(step):
                self._end(Found([await replay.execute(step, resolve)]))
                return await self._loop.create_future()  # until the teardown
            memo = replay.memos.pop(step.hashed_id)
            assert memo is not None
        if not replay.memos:
            await replay.freshen()
        return replay.value(step, memo)

    async def _park(self, step: Step) -> bool:
        """Wait for the call's decision: True to return the memo, False to execute the step."""
        task = asyncio.current_task()
        assert task is not None
        self.track(task)
        parked = _Parked(step, task, self._loop.create_future(), group_mode.get())
        self._parked[step.hashed_id] = parked
        if step.hashed_id in self._replay.memos:
            heapq.heappush(self._memoized, (self._replay.position(step.hashed_id), step.hashed_id))
        self._active.discard(task)
        self._moved()
        try:
            return await parked.future
        finally:
            if self._parked.get(step.hashed_id) is parked:
                del self._parked[step.hashed_id]
            if task in self._tasks:
                self._active.add(task)
            self._moved()

    def _refuse_in_teardown(self) -> None:
        """Steps met while the function's tasks are cancelled are not run: cancellation goes on."""
        self._teardown_steps += 1
        if self._teardown_steps > _MAX_TEARDOWN_STEPS:
            raise _TornDown
        raise asyncio.CancelledError("the call has ended")

    # -- settling

    def _moved(self) -> None:
        """Something happened: look soon whether the call is settled."""
        self._moves += 1
        if self._settling is None and not self._is_closing and not self._ended.done():
            self._settling = self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = None
        if self._ended.done() or self._is_executing or self._is_closing or not self._tasks:
            return
        if self._is_moving():
            self._quiet = 0
            return
        if len(self._tasks) > 1 and not self._is_quiet():
            self._settling = self._loop.call_soon(self._settle)
            return
        self._quiet = 0
        self._decide()

    def _is_moving(self) -> bool:
        """Whether a task runs, or waits for the outside; either looks again by itself."""
        moving = False
        for task in self._active:
            wait = classify(task, self._tasks)
            if wait is Wait.READY:
                self._moved()
                return True
            self._watch(waiter_of(task))
            moving = moving or wait is Wait.OUTSIDE
        return moving

    def _watch(self, waiter: AnyFuture | None) -> None:
        """Look again once what a task waits for has come."""
        if waiter is not None and waiter not in self._watched:
            self._watched.add(waiter)
            waiter.add_done_callback(self._on_watched_done)

    def _on_watched_done(self, waiter: AnyFuture) -> None:
        self._watched.discard(waiter)
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
                parked[hashed_id].future.set_result(True)
                return
        if not parked:
            return  # nothing to report: the function waits for something that will wake it
        found = list(parked.values())
        steps = [entry.step for entry in found]
        if (clock := clocks.find_clock(self._tasks)) is not None:
            self._end(Raised(clocks.refusal(clock, [step.request.step_id for step in steps])))
        elif replay.target is not None:
            self._end(replay.not_found(replay.target, steps))
        elif len(found) == 1 and found[0].mode is None and replay.runs_at_once(steps[0]):
            self._execute_or_report(found[0])
        else:
            self._end(Found([_plan(entry, among_several=len(found) > 1) for entry in found]))

    def _execute_or_report(self, entry: _Parked) -> None:
        if entry.step.request.is_run:
            self._is_executing = True
            entry.future.set_result(False)
        else:
            self._end(Found([StepReport(entry.step.to_op(), entry.step.info())]))

    def _end(self, outcome: Outcome) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome)


def _plan(entry: _Parked, *, among_several: bool) -> StepReport:
    """Steps that plain asyncio found together race: the engine asks for discovery after each of them."""
    mode = entry.mode or (ParallelMode.RACE if among_several else None)
    op = Opcode.STEP_PLANNED if entry.step.request.is_run else None
    return StepReport(entry.step.to_op(op, mode), entry.step.info())


async def _run(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def _outcome_of(main: AnyTask) -> Outcome:
    if main.cancelled():
        return Raised(RuntimeError("the function was cancelled by its own code (asyncio.CancelledError)"))
    if (error := main.exception()) is None:
        return Returned(main.result())
    if isinstance(error, Exception):
        error.__traceback__ = without_own_frames(error.__traceback__)
        return Raised(error)
    raise error
