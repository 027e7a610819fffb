"""Timers. Those of the next minute are in memory, the others in the database."""

import asyncio
import heapq
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from durably.engine.core.run_state import Call
from durably.engine.model.settings import Clock, Timer
from durably.engine.sqlite.queries.runs import read_run_state_of
from durably.protocol.text import get_logger

from .after_commit import BucketTimer, CronTimer, DeadlineTimer, ScheduledCall, StepTimer, StoredTimer, ThrottleTimer

T = TypeVar("T")


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """Timers and their times, up to ``reached``.

    ``next_due`` is the time of the first timer after that, if any.
    """

    items: list[tuple[int, T]]
    reached: int
    next_due: int | None


Load = Callable[[int, int], Awaitable[Loaded[T]]]

_WINDOW_MILLISECONDS = 60_000
_AHEAD_MILLISECONDS = 5_000
"""Milliseconds before their due time at which stored timers are read."""
_RETRY_MILLISECONDS = 1_000
_SET_BACK_MILLISECONDS = 1_000
"""Smaller steps of the clock cost no more than their own length."""
_NEVER = 2**63

_logger = get_logger("durably.engine")


class Timers(Generic[T]):
    """Delivers timers when they are due. Reads stored timers shortly before.

    ``load(after, until)`` reads the timers of ``(after, until]``; if they are many, it may return the first of them.
    ``on_due`` gets due timers in order, ``on_set_back`` is called when the clock was set back. A timer that is added
    while it is being read may be delivered twice. Times are milliseconds since the epoch.
    """

    def __init__(
        self,
        clock: Clock,
        load: Load[T],
        on_due: Callable[[list[T]], None],
        on_set_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._load = load
        self._on_due = on_due
        self._on_set_back = on_set_back
        self._ticked_at = 0
        self._heap: list[tuple[int, int, T]] = []
        self._order = itertools.count()
        self._horizon = -1  # all timers due until then are in the heap
        self._next_stored = 0  # no timer is stored between the horizon and this time
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
        """Add a timer.

        A stored timer beyond the horizon is not kept in memory: it is read later.
        """
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
        """Move the horizon a minute ahead, but not past an unread stored timer."""
        if self._loading is None:
            self._horizon = max(self._horizon, min(self._clock.now() + _WINDOW_MILLISECONDS, self._next_stored - 1))

    def _tick(self) -> None:
        if self._is_closed:
            return
        self._sleep_on()
        now = self._clock.now()
        if now < self._ticked_at - _SET_BACK_MILLISECONDS:
            self._on_set_back()
        self._ticked_at = now
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        self._look_ahead()
        if self._loading is None and self._next_stored - now <= _AHEAD_MILLISECONDS:
            self._clock.begin_work()
            self._loading = asyncio.get_running_loop().create_task(self._read_on(now + _WINDOW_MILLISECONDS))
            self._loading.add_done_callback(lambda _: self._clock.end_work())
        if due:
            self._on_due(due)
        self._wake()

    def _wake(self) -> None:
        """Set the clock's timer to the next time at which a timer is due or must be read."""
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
        # From here on, timers up to ``until`` are kept when they are added. A transaction that the read does not
        # include is dispatched after this line. One that it includes may be dispatched before, so a timer may be
        # delivered twice.
        horizon, self._horizon = self._horizon, until
        next_stored, self._next_stored = self._next_stored, _NEVER
        try:
            loaded = await self._load(horizon, until)
        except Exception:
            _logger.exception("the next timers could not be read; trying again")
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
    ("waits", "due", "run_key, step_id, due", StepTimer),
    ("deadlines", "due", "run_key, due", DeadlineTimer),
    ("buckets", "due", "id, due", BucketTimer),
    ("schedules", "due", "function_id, schedule, due", CronTimer),
    ("throttle_times", "ready_at", "ready_at", ThrottleTimer),
)
"""Tables, their columns of times, their other columns, and the timers made of them."""
_CALLS = ("delayed_calls", "due", "run_key, generation, due")


def load_timers(
    connection: sqlite3.Connection, after: int, until: int, limit: int
) -> Loaded[ScheduledCall | StoredTimer]:
    """The timers and delayed calls of ``(after, until]``.

    They are at most about ``limit`` of each kind.
    """
    tables = [(table, time, columns) for table, time, columns, _ in _TIMERS] + [_CALLS]
    found = [_load_until(connection, *table, after, until, limit) for table in tables]
    reached = min(until for _, until in found)
    items: list[tuple[int, ScheduledCall | StoredTimer]] = []
    for (_, _, _, make), (rows, _) in zip(_TIMERS, found, strict=False):
        items += [(row[-1], make(*row)) for row in rows if row[-1] <= reached]
    for run_key, generation, due in found[-1][0]:
        if due <= reached:
            item = _delayed_call(connection, run_key, generation, due)
            items += [] if item is None else [(due, item)]
    return Loaded(items, reached, _next_due(connection, tables, reached))


def _delayed_call(connection: sqlite3.Connection, run_key: int, generation: int, due: int) -> ScheduledCall | None:
    state = read_run_state_of(connection, run_key)
    # A damaged run state is detected when the call is made.
    call = state.call(generation) if state else Call(generation=generation, due=due)
    row = connection.execute(
        "SELECT runs.function_id, run_states.queue_entry IS NOT NULL FROM run_states JOIN runs ON runs.key = "
        "run_states.run_key "
        "WHERE run_states.run_key = ?",
        (run_key,),
    ).fetchone()
    return None if call is None or row is None else ScheduledCall(run_key, call, row[0], has_to_queue=bool(row[1]))


def _next_due(connection: sqlite3.Connection, tables: list[tuple[str, str, str]], after: int) -> int | None:
    """The time of the first timer after a window."""
    queries = (f"SELECT min({time}) FROM {table} WHERE {time} > ?" for table, time, _ in tables)
    dues = [connection.execute(query, (after,)).fetchone()[0] for query in queries]
    return min((due for due in dues if due is not None), default=None)


def _load_until(
    connection: sqlite3.Connection, table: str, time: str, columns: str, after: int, until: int, limit: int
) -> tuple[list[Any], int]:
    """Rows, and the time up to which they are complete.

    The last column of a row is its time.
    """
    select = f"SELECT {columns} FROM {table} WHERE {time}"
    rows = connection.execute(f"{select} > ? AND {time} <= ? ORDER BY {time} LIMIT ?", (after, until, limit)).fetchall()
    if len(rows) < limit:
        return rows, until
    last = rows[-1][-1]
    # Other rows may have the same time as the last one: read all of them.
    rows = [row for row in rows if row[-1] < last]
    return rows + connection.execute(f"{select} = ?", (last,)).fetchall(), last
