"""Reading what is due from the database: rows into what the timeline holds. Runs in the reader's threads."""

import sqlite3
from collections.abc import Callable
from typing import Any

from durably.engine.head import Call

from .effects import BucketAt, CallAt, DeadlineAt, OpeningAt, StoredTimer, TickAt, TimerAt
from .queries import run_head
from .timeline import Loaded

_TIMERS: tuple[tuple[str, str, str, Callable[..., StoredTimer]], ...] = (
    ("waits", "due", "run_key, step_id, due", TimerAt),
    ("deadlines", "due", "run_key, due", DeadlineAt),
    ("buckets", "due", "id, due", BucketAt),
    ("schedules", "due", "function_id, schedule, due", TickAt),
    ("openings", "opens_at", "opens_at", OpeningAt),
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
    head = run_head(connection, run_key)
    # Where the head is damaged, those who make the call find out.
    call = head.call(generation) if head else Call(generation=generation, due=due)
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
