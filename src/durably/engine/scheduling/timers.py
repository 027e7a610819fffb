"""Timers: what is due when. The next minute is in memory, the rest in the database."""

import asyncio
import heapq
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from durably.engine.core.run_state import Call
from durably.engine.settings import Clock, Timer
from durably.engine.sqlite.queries import read_run_state_of
from durably.protocol.text import get_logger

from .outbox import BucketAt, CallAt, DeadlineAt, StoredTimer, ThrottleAt, TickAt, TimerAt

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


class Timers(Generic[T]):
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


_TIMERS: tuple[tuple[str, str, str, Callable[..., StoredTimer]], ...] = (
    ("waits", "due", "run_key, step_id, due", TimerAt),
    ("deadlines", "due", "run_key, due", DeadlineAt),
    ("buckets", "due", "id, due", BucketAt),
    ("schedules", "due", "function_id, schedule, due", TickAt),
    ("openings", "opens_at", "opens_at", ThrottleAt),
)
"""Tables, their column of times, and what else of their rows makes which timer."""
_CALLS = ("delayed_calls", "due", "run_key, generation, due")


def load_due(connection: sqlite3.Connection, after: int, until: int, limit: int) -> Loaded[CallAt | StoredTimer]:
    """What is due in ``(after, until]``, at most about ``limit`` of each kind."""
    tables = [(table, time, columns) for table, time, columns, _ in _TIMERS] + [_CALLS]
    found = [_load_until(connection, *table, after, until, limit) for table in tables]
    reached = min(until for _, until in found)
    items: list[tuple[int, CallAt | StoredTimer]] = []
    for (_, _, _, make), (rows, _) in zip(_TIMERS, found, strict=False):
        items += [(row[-1], make(*row)) for row in rows if row[-1] <= reached]
    for run_key, generation, due in found[-1][0]:
        if due <= reached:
            item = _delayed_call(connection, run_key, generation, due)
            items += [] if item is None else [(due, item)]
    return Loaded(items, reached, _next_due(connection, tables, reached))


def _delayed_call(connection: sqlite3.Connection, run_key: int, generation: int, due: int) -> CallAt | None:
    state = read_run_state_of(connection, run_key)
    # Where the run state is damaged, those who make the call find out.
    call = state.call(generation) if state else Call(generation=generation, due=due)
    row = connection.execute(
        "SELECT runs.function_id, heads.ticket IS NOT NULL FROM heads JOIN runs ON runs.key = heads.run_key "
        "WHERE heads.run_key = ?",
        (run_key,),
    ).fetchone()
    return None if call is None or row is None else CallAt(run_key, call, row[0], has_to_queue=bool(row[1]))


def _next_due(connection: sqlite3.Connection, tables: list[tuple[str, str, str]], after: int) -> int | None:
    """When the first of what comes after a window is due."""
    queries = (f"SELECT min({time}) FROM {table} WHERE {time} > ?" for table, time, _ in tables)
    dues = [connection.execute(query, (after,)).fetchone()[0] for query in queries]
    return min((due for due in dues if due is not None), default=None)


def _load_until(
    connection: sqlite3.Connection, table: str, time: str, columns: str, after: int, until: int, limit: int
) -> tuple[list[Any], int]:
    """Rows that end in their time, and how far they go."""
    select = f"SELECT {columns} FROM {table} WHERE {time}"
    rows = connection.execute(f"{select} > ? AND {time} <= ? ORDER BY {time} LIMIT ?", (after, until, limit)).fetchall()
    if len(rows) < limit:
        return rows, until
    last = rows[-1][-1]
    # Others may be due in the same millisecond as the last: all of that, or none.
    rows = [row for row in rows if row[-1] < last]
    return rows + connection.execute(f"{select} = ?", (last,)).fetchall(), last
