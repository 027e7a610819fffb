"""What is due when. Only the next minute is held in memory; the rest is read from the database in time.

Of the rest it is known when the first is due, so that where nothing is due for long, nothing is read for as long.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from durably.protocol.text import get_logger

from .clock import Clock, Timer

T = TypeVar("T")


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """``items`` are what is due, each with its time, up to ``reached``; the first thing after that is due at
    ``next_due``, ``None`` where there is none."""

    items: list[tuple[int, T]]
    reached: int
    next_due: int | None


Load = Callable[[int, int], Awaitable[Loaded[T]]]

_WINDOW_MILLISECONDS = 60_000
_AHEAD_MILLISECONDS = 5_000
"""What is stored is read so long before it is due."""
_RETRY_MILLISECONDS = 1_000
_NEVER = 2**63

_logger = get_logger("durably.engine")


class Timeline(Generic[T]):
    """``load(after, until)`` reads what is due in ``(after, until]``; where that is much it may answer with a part
    of it. ``on_due`` is given what is due, in order; what is added while it is being read may be given twice. Times
    are milliseconds since the epoch."""

    def __init__(self, clock: Clock, load: Load[T], on_due: Callable[[list[T]], None]) -> None:
        self._clock = clock
        self._load = load
        self._on_due = on_due
        self._heap: list[tuple[int, int, T]] = []
        self._order = itertools.count()
        self._horizon = -1  # what is due until then is in the heap
        self._next_stored = 0  # between the horizon and then, nothing is stored
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
        if self._is_closed:
            return
        self._look_ahead()
        if is_stored and due > self._horizon:
            self._next_stored = min(self._next_stored, due)
            wakes_at = due - _AHEAD_MILLISECONDS if self._loading is None else _NEVER
        else:
            heapq.heappush(self._heap, (due, next(self._order), item))
            wakes_at = due
        if wakes_at < (_NEVER if self._wakes_at is None else self._wakes_at):
            self._wake_at(wakes_at)

    def _look_ahead(self) -> None:
        """The next minute counts as read, as far as nothing is stored in it."""
        if self._loading is None:
            self._horizon = max(self._horizon, min(self._clock.now() + _WINDOW_MILLISECONDS, self._next_stored - 1))

    def _tick(self) -> None:
        if self._is_closed:
            return
        self._sleep_on()
        now = self._clock.now()
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        self._look_ahead()
        if self._loading is None and self._next_stored - now <= _AHEAD_MILLISECONDS:
            self._clock.hold()
            self._loading = asyncio.get_running_loop().create_task(self._read_on(now + _WINDOW_MILLISECONDS))
            self._loading.add_done_callback(lambda _: self._clock.release())
        if due:
            self._on_due(due)
        self._wake()

    def _wake(self) -> None:
        """Set the timer to when there is something to do next."""
        when = self._heap[0][0] if self._heap else _NEVER
        if self._loading is None:
            when = min(when, self._next_stored - _AHEAD_MILLISECONDS)
        if when < _NEVER - _AHEAD_MILLISECONDS:
            self._wake_at(when)

    def _wake_at(self, when: int) -> None:
        self._sleep_on()
        self._wakes_at = when
        self._timer = self._clock.call_at(when, self._tick)

    def _sleep_on(self) -> None:
        self._wakes_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _read_on(self, until: int) -> None:
        # From now on, what is added up to ``until`` is kept: a transaction that the read does not see yet reports
        # what it adds after this line, and one that it does see may report before, hence things given twice.
        horizon, self._horizon = self._horizon, until
        next_stored, self._next_stored = self._next_stored, _NEVER
        try:
            loaded = await self._load(horizon, until)
        except Exception:
            _logger.exception("reading what is due next failed; trying again")
            self._horizon, self._next_stored = horizon, min(next_stored, self._next_stored)
            self._loading = None
            again = self._clock.now() + _RETRY_MILLISECONDS
            self._wake_at(min(again, self._heap[0][0]) if self._heap else again)
        else:
            for due, item in loaded.items:
                heapq.heappush(self._heap, (due, next(self._order), item))
            self._horizon = loaded.reached
            self._next_stored = min(self._next_stored, _NEVER if loaded.next_due is None else loaded.next_due)
            self._loading = None
            self._tick()
