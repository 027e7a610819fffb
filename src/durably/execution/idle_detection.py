"""Detects that a call of an async function is idle: every task waits for a step.

The module also ends a call's tasks.
"""

import asyncio
from collections.abc import Callable, Collection, Set
from contextvars import Context

from .asyncio_compat import AnyFuture, AnyTask, Wait, awaited_by, classify, forwarded_by, is_note, is_wakeup, waiter_of

_QUIET_ITERATIONS = 5
"""Iterations of the loop without a change after which several tasks count as idle.

A task's end reaches its awaiter through up to three callbacks (the task's, gather's or wait's, the awaiter's own), one
iteration each.
"""

_STALL_SECONDS = 1.0
"""Seconds for which steps wait for a task that waits for something outside and makes no progress.

Continuing without the task is mostly safe: its steps are found later, like those of a slower branch.
"""

_LONG_STALL_SECONDS = 25.0
"""Used when continuing would change nothing. Below the 30 s timeout of many servers and proxies."""


class IdleDetector:
    """Watches the ``tasks`` of one call, and calls ``decide`` whenever they are idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, decide: Callable[[], None], tasks: set[AnyTask]) -> None:
        self._loop = loop
        self._decide = decide
        self.tasks = tasks
        self.ignored: Set[AnyTask] = frozenset()
        """Active tasks that are no longer waited for."""
        self._awaited: AwaitedTasks | None = None  # made when there are several tasks
        self.is_suspended = False
        """Set while a step is executed, because its function must wait."""
        self._is_over = False
        self._active = set(tasks)  # tasks that wait neither for a step nor for other tasks
        self._waiting: set[AnyTask] = set()
        self._watched: dict[AnyFuture, set[AnyTask]] = {}  # by future, the tasks to check when it is done
        self._progress = 0  # counts steps that begin or stop waiting, and tasks that begin or end
        self._moves = 0  # counts changes that may affect what a task waits for
        self._quiet = 0
        self._seen_moves = -1
        self._next_check: asyncio.Handle | None = None
        # Use empty contexts: the loop keeps cancelled timers, which would keep the run's context alive.
        self._stall_timer: asyncio.Handle | None = None
        self._long_stall_timer: asyncio.Handle | None = None
        self._is_long_stall_over = False
        for task in tasks:
            task.add_done_callback(self._untrack)

    def track(self, task: AnyTask) -> None:
        """Count a task as the run's."""
        if task not in self.tasks:
            self.tasks.add(task)
            self._active.add(task)
            task.add_done_callback(self._untrack)
            self.progressed()

    def _untrack(self, task: AnyTask) -> None:
        self.tasks.discard(task)
        self._active.discard(task)
        if self.ignored:
            self.ignored -= {task}
        self.progressed()

    def add_waiting(self, task: AnyTask) -> None:
        """Record that the task waits for a step."""
        self._waiting.add(task)
        self._active.discard(task)
        if self.ignored:
            self.ignored -= {task}
        self.progressed()

    def remove_waiting(self, task: AnyTask) -> None:
        self._waiting.discard(task)
        if task in self.tasks:
            self._active.add(task)
        self.progressed()

    def progressed(self) -> None:
        self._progress += 1
        self._moved()

    def is_any_task_active(self) -> bool:
        """Whether a task of the run is neither done nor waiting for a step."""
        return any(not task.done() and task not in self._waiting for task in self.tasks)

    def was_awaited(self, task: AnyTask) -> bool:
        """Whether the function has ever waited for the task."""
        return self._awaited is not None and self._awaited.was_awaited(
            task, lambda callback: getattr(callback, "__self__", None) is self
        )

    def waits_longer(self) -> bool:
        """Whether to wait for ignored tasks anyway."""
        if self._long_stall_timer is None:
            self._long_stall_timer = self._loop.call_later(_LONG_STALL_SECONDS, self._on_long_stall, context=Context())
        return bool(self.ignored) and not self._is_long_stall_over

    def _on_long_stall(self) -> None:
        self._is_long_stall_over = True
        self._moved()

    def stop(self) -> None:
        """Stop the checks: the call has its outcome."""
        self._is_over = True

    def close(self) -> None:
        self.stop()
        for handle in (self._next_check, self._stall_timer, self._long_stall_timer):
            if handle is not None:
                handle.cancel()
        for waiter in self._watched:
            waiter.remove_done_callback(self._on_watched_done)
        self._watched.clear()
        if self._awaited is not None:
            self._awaited.close()
        self._decide = lambda: None  # breaks a cycle with the call, which would wait for the garbage collector

    # -- looking

    def _moved(self) -> None:
        """Schedule a check after a change."""
        self._moves += 1
        if self._next_check is None and not self._is_over:
            self._next_check = self._loop.call_soon(self._check)

    def _check(self) -> None:
        self._next_check = None
        if self._is_over or not self.tasks:
            return
        if len(self.tasks) > 1:  # otherwise there is no other task to await
            self._awaited = self._awaited or AwaitedTasks()
            for task in self._active:
                self._awaited.note(task, waiter_of(task))
        if self.is_suspended:
            return
        if self._is_moving():
            self._quiet = 0
            if self._waiting and self._stall_timer is None:
                self._stall_timer = self._loop.call_later(
                    _STALL_SECONDS, self._on_stall, self._progress, context=Context()
                )
            return
        if len(self.tasks) > 1 and not self._is_quiet():
            self._next_check = self._loop.call_soon(self._check)
            return
        self._quiet = 0
        self._decide()

    def _is_moving(self) -> bool:
        """Whether a task runs, or waits for something outside. Both cause another check."""
        moving = False
        for task in self._active - self.ignored:
            wait = classify(task, self.tasks)
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
        """Check the task again when the future it waits for is done."""
        waiter = waiter_of(task)
        assert waiter is not None
        if waiter in self._watched:
            self._watched[waiter].add(task)
        else:
            self._watched[waiter] = {task}
            waiter.add_done_callback(self._on_watched_done)

    def _on_watched_done(self, waiter: AnyFuture) -> None:
        tasks = self._watched.pop(waiter, None)  # None: closed when the callback was already due
        if tasks is not None:
            self._active |= (tasks & self.tasks) - self._waiting
        self._moved()

    def _on_stall(self, progress: int) -> None:
        self._stall_timer = None
        if progress == self._progress and self._waiting:
            self.ignored = {task for task in self._active if classify(task, self.tasks) is not Wait.TASKS}
        self._moved()

    def _is_quiet(self) -> bool:
        if self._seen_moves != self._moves:
            self._seen_moves, self._quiet = self._moves, 0
        self._quiet += 1
        return self._quiet > _QUIET_ITERATIONS


IsOwn = Callable[[object], bool]


class AwaitedTasks:
    """The tasks of one call that other tasks have awaited."""

    __slots__ = ("_awaiting", "_noted")

    def __init__(self) -> None:
        self._awaiting: dict[AnyFuture, set[AnyTask]] = {}
        self._noted: dict[AnyTask, AnyFuture] = {}

    def note(self, task: AnyTask, waiter: AnyFuture | None) -> None:
        """Record that the task is suspended on the future ``waiter``."""
        if waiter is None or self._noted.get(task) is waiter:
            return
        self._noted[task] = waiter
        for future in awaited_by(task, waiter):
            self._awaiting.setdefault(future, set()).add(task)

    def was_awaited(self, task: AnyTask, is_own: IsOwn) -> bool:
        """Whether a task was awaited, or a callback of the function observes it.

        The task counts as awaited if the awaiting task is done, or was awaited itself. Futures that the task's end
        resolves (``gather``, ``shield``) may have been awaited instead. ``is_own`` returns whether a callback of a task
        is the call's own, which does not wait on behalf of the function.
        """
        return self._was_awaited(task, is_own, set())

    def _was_awaited(self, future: AnyFuture, is_own: IsOwn, seen: set[AnyFuture]) -> bool:
        if future in seen:
            return False
        seen.add(future)
        if any(task.done() or self._was_awaited(task, is_own, seen) for task in self._awaiting.get(future, ())):
            return True
        for callback, outers in forwarded_by(future):
            if any(self._was_awaited(outer, is_own, seen) for outer in outers):
                return True
            if not (outers or is_own(callback) or is_wakeup(callback) or is_note(callback)):
                return True
        return False

    def close(self) -> None:
        self._awaiting.clear()
        self._noted.clear()


_GRACE_SECONDS = 5.0
"""Seconds for a cancelled task to clean up before it is cancelled again."""

_MAX_ROUNDS = 3


async def tear_down(tasks: Collection[AnyTask]) -> None:
    """Cancel the tasks and wait for them.

    ``tasks`` changes while they end and create others. A task that swallows its cancellation is not waited for any
    longer, and is reported to the loop's exception handler.
    """
    overdue_rounds = 0
    while True:
        running: list[AnyTask] = []
        for task in tasks:
            if not task.done():
                running.append(task)
        if not running:
            return
        for task in running:
            task.cancel()
        await asyncio.sleep(0)  # enough for a task without cleanup, and cheaper than a wait with a timer
        overdue: set[AnyTask] = set()
        for task in running:
            if not task.done():
                _, overdue = await asyncio.wait(running, timeout=_GRACE_SECONDS)
                break
        for task in running:
            if task not in overdue:
                # Retrieve the error, so that asyncio does not log it: the call has its outcome. The traceback of a
                # cancellation would hold the frames of the function, its memos, and through them the task.
                try:
                    task.exception()
                except asyncio.CancelledError as error:
                    error.__traceback__ = None
        overdue_rounds += bool(overdue)
        if overdue_rounds == _MAX_ROUNDS:
            message = "a durable function's task swallows asyncio.CancelledError, and continues after its call"
            for task in overdue:
                task.get_loop().call_exception_handler({"message": message, "task": task})
            return
