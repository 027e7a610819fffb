"""Ending calls that take too long. All of them may take equally long, so one timer does for all."""

import asyncio
from typing import Any

AnyTask = asyncio.Task[Any]


class Deadlines:
    """Cancels tasks that have not ended ``seconds`` after they began."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[AnyTask, float] = {}  # by the loop's time; those that began first come first
        self._late: set[AnyTask] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: AnyTask) -> None:
        """Let the task, which is the running one, take so long from now on."""
        loop = task.get_loop()
        self._due[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)

    def end(self, task: AnyTask) -> bool:
        """Whether the task was cancelled for this alone, and goes on."""
        self._due.pop(task, None)
        if task not in self._late:
            return False
        self._late.remove(task)
        return task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()
