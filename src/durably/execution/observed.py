"""Which tasks of a run were ever awaited.

A step in a task that no code awaits, such as ``asyncio.create_task(ctx.step.run(…))`` or a ``gather`` without
``await``, is lost without a trace when the function returns. A step that lost a race was waited for, and is no mistake.
"""

from collections.abc import Callable, Iterator
from typing import Any

from .tasks import AnyFuture, AnyTask, awaited_by, forwarded_by

IsOwn = Callable[[object], bool]


class Observed:
    """The tasks of one call that other tasks have awaited."""

    __slots__ = ("_awaiting", "_noted")

    def __init__(self) -> None:
        self._awaiting: dict[AnyFuture, set[AnyTask]] = {}
        self._noted: dict[AnyTask, AnyFuture] = {}

    def note(self, task: AnyTask, waiter: AnyFuture | None) -> None:
        """The task waits by ``waiter``, the future it is suspended on."""
        if waiter is None or self._noted.get(task) is waiter:
            return
        self._noted[task] = waiter
        for future in awaited_by(task, waiter):
            self._awaiting.setdefault(future, set()).add(task)

    def was_awaited(self, task: AnyTask, is_own: IsOwn) -> bool:
        """Whether a task that is over, or that was awaited itself, has awaited the task, or a callback looks at it.

        What the task's end resolves (``gather``, ``shield``) may have been awaited in its place. ``is_own`` says
        whether a callback of a task is the call's own, which waits for nothing on behalf of the function.
        """
        return self._was_awaited(task, is_own, set())

    def _was_awaited(self, future: AnyFuture, is_own: IsOwn, seen: set[AnyFuture]) -> bool:
        if future in seen:
            return False
        seen.add(future)
        if any(task.done() or self._was_awaited(task, is_own, seen) for task in self._awaiting.get(future, ())):
            return True
        outers = _looking(future, is_own)
        return any(self._was_awaited(outer, is_own, seen) if outer is not None else True for outer in outers)

    def close(self) -> None:
        self._awaiting.clear()
        self._noted.clear()


def _looking(future: AnyFuture, is_own: IsOwn) -> Iterator[AnyFuture | None]:
    """Futures that this one's end resolves; ``None`` for any other callback of the function's."""
    for callback, outers in forwarded_by(future):
        if outers:
            yield from outers
        elif not is_own(callback) and not _is_wakeup(callback):
            yield None


def _is_wakeup(callback: Any) -> bool:
    """Whether the callback is that of a task that awaits the future, which ``note`` was told of."""
    return "wakeup" in getattr(callback, "__name__", "") or "TaskWakeup" in type(callback).__name__
