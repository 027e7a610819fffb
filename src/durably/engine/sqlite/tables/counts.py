"""Statements for numbers of runs by minute and function.

Minutes are counted from the epoch.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from durably.engine.core.run_state import RunStatus
from durably.engine.sqlite.queries.search import key_at

MINUTE = 60_000
"""Milliseconds of a minute."""
QUARTER, HOUR, DAY = 15, 60, 1440
"""Minutes of the intervals of counts."""
MINUTES_FOR, QUARTERS_FOR, DAYS_KEPT = 3 * HOUR, 3 * DAY, 30
"""Counts by minute are kept for three hours, those by quarters of an hour for three days."""
COLUMNS = ("created", "completed", "failed", "cancelled", "skipped")
CREATED, COMPLETED, FAILED = range(3)
ENDS = {
    RunStatus.COMPLETED: COMPLETED,
    RunStatus.FAILED: FAILED,
    RunStatus.CANCELLED: 3,
    RunStatus.SKIPPED: 4,
}
"""Indexes of counts: created runs, and ended runs by status."""

Counts = dict[int, dict[str, list[int]]]
"""Numbers of runs in the order of ``COLUMNS``, by minute and function."""

_ADD = ", ".join(f"{column} = {column} + excluded.{column}" for column in COLUMNS)
_SUMS = ", ".join(f"sum({column})" for column in COLUMNS)
_NAMES = ", ".join(COLUMNS)


def add_count(counts: Counts, minute: int, function_id: str, place: int, number: int = 1) -> None:
    functions = counts.get(minute)
    if functions is None:
        functions = counts[minute] = {}
    numbers = functions.get(function_id)
    if numbers is None:
        numbers = functions[function_id] = [0] * len(COLUMNS)
    numbers[place] += number


def counted_until(connection: sqlite3.Connection) -> int | None:
    """The minute before which all counts are stored; ``None`` if none are."""
    (minute,) = connection.execute("SELECT counted_until FROM statistics").fetchone()
    return minute if minute is None else int(minute)


def put_counts(connection: sqlite3.Connection, counts: Mapping[int, Mapping[str, list[int]]], until: int) -> None:
    """Store the counts of the minutes before ``until``, which are not stored yet."""
    rows = [
        (minute, function_id, *numbers)
        for minute, functions in counts.items()
        if minute < until
        for function_id, numbers in functions.items()
    ]
    connection.executemany(
        f"INSERT INTO run_counts (minute, function_id, {_NAMES}) VALUES (?, ?, ?, ?, ?, ?, ?) "
        f"ON CONFLICT DO UPDATE SET {_ADD}",
        rows,
    )
    connection.execute("UPDATE statistics SET counted_until = ?", (until,))


def join_counts(connection: sqlite3.Connection, now: int) -> None:
    """Merge the counts of old minutes, and delete those that are too old.

    ``now`` is a minute.
    """
    for length, before in ((QUARTER, now - MINUTES_FOR), (HOUR, now - QUARTERS_FOR)):
        before -= before % length
        old = f"minute < ? AND minute % {length} <> 0"
        connection.execute(
            f"INSERT INTO run_counts (minute, function_id, {_NAMES}) "
            f"SELECT minute - minute % {length}, function_id, {_SUMS} FROM run_counts WHERE {old} GROUP BY 1, 2 "
            f"ON CONFLICT DO UPDATE SET {_ADD}",
            (before,),
        )
        connection.execute(f"DELETE FROM run_counts WHERE {old}", (before,))
    connection.execute("DELETE FROM run_counts WHERE minute < ?", (now - DAYS_KEPT * DAY,))


def stored_counts(
    connection: sqlite3.Connection, since: int, until: int, interval: int, function_id: str | None = None
) -> Iterator[tuple[int, str, list[int]]]:
    """Counts of ``[since, until)`` by the first minute of an interval and function.

    Intervals begin at ``since``, and have ``interval`` minutes.
    """
    rows = connection.execute(
        f"SELECT ? + (minute - ?) / ? * ?, function_id, {_SUMS} FROM run_counts "
        "WHERE minute >= ? AND minute < ? AND (? IS NULL OR function_id = ?) GROUP BY 1, 2",
        (since, since, interval, interval, since, until, function_id, function_id),
    )
    return ((minute, found, list(numbers)) for minute, found, *numbers in rows)


def count_runs(connection: sqlite3.Connection, since: int) -> Counts:
    """The counts of the minutes from ``since`` on, from the runs themselves."""
    counts: Counts = {}
    start = since * MINUTE
    created: Iterable[tuple[int, str, int]] = connection.execute(
        "SELECT created_at / ?, function_id, count(*) FROM runs WHERE key >= ? AND created_at >= ? GROUP BY 1, 2",
        (MINUTE, key_at(connection, "runs", "created_at", start - MINUTE), start),
    )
    for minute, function_id, number in created:
        add_count(counts, minute, function_id, CREATED, number)
    ended: Iterable[tuple[int, str, str, int]] = connection.execute(
        "SELECT ended_at / ?, function_id, status, count(*) FROM runs WHERE ended_at >= ? GROUP BY 1, 2, 3",
        (MINUTE, start),
    )
    for minute, function_id, status, number in ended:
        add_count(counts, minute, function_id, ENDS[RunStatus(status)], number)
    return counts


def count_live(connection: sqlite3.Connection) -> dict[str, int]:
    """Numbers of runs that have not ended, by function."""
    return dict(
        connection.execute(
            "SELECT function_id, count(*) FROM run_states CROSS JOIN runs ON runs.key = run_states.run_key GROUP BY "
            "function_id"
        )
    )
