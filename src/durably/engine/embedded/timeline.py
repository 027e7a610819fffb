"""What is due when. Only the next minute is held in memory; the rest is read from the database in time."""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .clock import Clock, Timer

T = TypeVar("T")
Load = Callable[[int, int], Awaitable[tuple[list[tuple[int, T]], int]]]

_WINDOW_MILLISECONDS = 60_000
_AHEAD_MILLISECONDS = 5_000
"""The next window is read so long before this one ends."""
_RETRY_MILLISECONDS = 1_000

_logger = logging.getLogger("durably.engine")


class Timeline(Generic[T]):
    """``load(after, until)`` reads what is due in ``(after, until]``; where that is much it may answer with a part
    of it, and how far it got. ``on_due`` is given what is due, in order; what is added while it is being read may be
    given twice. Times are milliseconds since the epoch."""

    def __init__(self, clock: Clock, load: Load[T], on_due: Callable[[list[T]], None]) -> None:
        self._clock = clock
        self._load = load
        self._on_due = on_due
        self._heap: list[tuple[int, int, T]] = []
        self._order = itertools.count()
        self._horizon = -1
        self._loading: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._wakes_at: int | None = None
        self._is_closed = False

    def start(self) -> None:
        self._tick()

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._loading is not None:
            self._loading.cancel()

    def add(self, due: int, item: T, *, is_stored: bool = True) -> None:
        """What is stored, and due only after what has been read so far, is left to be read in time."""
        if self._is_closed or (is_stored and due > self._horizon):
            return
        heapq.heappush(self._heap, (due, next(self._order), item))
        if self._wakes_at is None or due < self._wakes_at:
            self._wake_at(due)

    def _tick(self) -> None:
        if self._is_closed:
            return
        self._wakes_at = None
        now = self._clock.now()
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        if self._loading is None and self._horizon - now < _AHEAD_MILLISECONDS:
            self._loading = asyncio.get_running_loop().create_task(self._read_on(now + _WINDOW_MILLISECONDS))
        if due:
            self._on_due(due)
        self._wake()

    def _wake(self) -> None:
        """Set the timer to when there is something to do next."""
        times = [self._heap[0][0]] if self._heap else []
        if self._loading is None:
            times.append(self._horizon - _AHEAD_MILLISECONDS)
        if times:
            self._wake_at(min(times))

    def _wake_at(self, when: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = self._clock.call_at(when, self._tick)

    async def _read_on(self, until: int) -> None:
        # From now on, what is added up to ``until`` is kept: a transaction that the read does not see yet reports
        # what it adds after this line, and one that it does see may report before, hence things given twice.
        before, self._horizon = self._horizon, until
        try:
            items, self._horizon = await self._load(before, until)
            for due, item in items:
                heapq.heappush(self._heap, (due, next(self._order), item))
        except Exception:
            _logger.exception("reading what is due next failed; trying again")
            self._horizon = before
            self._loading = None
            self._wake_at(self._clock.now() + _RETRY_MILLISECONDS)
        else:
            self._loading = None
            self._tick()
