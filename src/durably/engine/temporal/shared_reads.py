"""Reads that several requests share.

No answer is older than its request.

Many events at once read the same topics and functions. A read that has begun may miss what was acknowledged since. So a
request never joins it: all requests during it share the next one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class SharedReads(Generic[K]):
    """``read(key)`` begins after each request that it answers.

    At most one read of a key is under way, and one waits. Belongs to one event loop.
    """

    def __init__(self, read: Callable[[K], Coroutine[Any, Any, Any]]) -> None:
        self._read = read
        self._under_way: dict[K, asyncio.Task[Any]] = {}
        self._next: dict[K, asyncio.Task[Any]] = {}

    async def __call__(self, key: K) -> Any:
        task = self._next.get(key)
        if task is None:
            before = self._under_way.get(key)
            task = asyncio.create_task(self._begin(key, before))
            task.add_done_callback(_note_error)
            if before is None:
                self._under_way[key] = task
            else:
                self._next[key] = task
        return await asyncio.shield(task)  # Others may wait for it.

    async def _begin(self, key: K, before: "asyncio.Task[Any] | None") -> Any:
        task = asyncio.current_task()
        assert task is not None
        if before is not None:
            await asyncio.wait([before])
            self._under_way[key] = self._next.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._under_way.get(key) is task:
                del self._under_way[key]


def _note_error(task: "asyncio.Task[Any]") -> None:
    """Prevent the warning about an error that no caller reads.

    All requests for it were cancelled.
    """
    if not task.cancelled():
        task.exception()
