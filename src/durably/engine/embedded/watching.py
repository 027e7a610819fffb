"""Handing what happens to those who watch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from .updates import Note
from .views import RunUpdate

_MOST_UNREAD = 10_000


class Watchers:
    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._listeners: set[Callable[[RunUpdate], None]] = set()
        self._is_closed = False

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[RunUpdate]]:
        watcher = _Watcher()
        if self._is_closed:
            watcher.put(None)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    @contextmanager
    def listen(self, listener: Callable[[RunUpdate], None]) -> Iterator[None]:
        """Tell ``listener`` at once, and of everything; it must be quick, and not raise."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def tell(self, note: Note) -> None:
        if not self._watchers and not self._listeners:
            return
        update = note.to_update()
        for listener in self._listeners:
            listener(update)
        for watcher in self._watchers:
            watcher.put(update)

    def close(self) -> None:
        """Let those who watch come to an end."""
        self._is_closed = True
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
