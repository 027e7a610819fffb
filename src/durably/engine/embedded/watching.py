"""Handing what happens to those who watch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from .views import RunUpdate

_MOST_UNREAD = 10_000


class Watchers:
    """``on_change`` is told whether anybody watches."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._watchers: set[_Watcher] = set()

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[RunUpdate]]:
        watcher = _Watcher()
        self._watchers.add(watcher)
        self._on_change(True)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._on_change(bool(self._watchers))

    def tell(self, updates: Iterable[RunUpdate]) -> None:
        for update in updates:
            for watcher in self._watchers:
                watcher.put(update)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.put(None)


class _Watcher(AsyncIterator[RunUpdate]):
    def __init__(self) -> None:
        self._queue: asyncio.Queue[RunUpdate | None] = asyncio.Queue()

    def put(self, update: RunUpdate | None) -> None:
        if self._queue.qsize() >= _MOST_UNREAD:
            self._queue.get_nowait()
        self._queue.put_nowait(update)

    async def __anext__(self) -> RunUpdate:
        update = await self._queue.get()
        if update is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return update
