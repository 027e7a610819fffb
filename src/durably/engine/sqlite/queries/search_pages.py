"""Pages of a search, and walks along an index, from the newest rows to older ones.

A search without a matching index must not read a million rows for one request. It reads a portion, and returns a
cursor. If several indexes fit a filter, the search takes the one whose portion reaches furthest back. A page has the
matching rows of a walk. It ends when it is full, or when the budget is spent.
"""

import datetime as dt
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from ulid import ULID

from durably.engine.model.runs import to_datetime
from durably.protocol.engine_errors import SelectionInvalidError

PORTION = 20_000
"""Number of rows that a request reads, each with its event."""
PARTS_PORTION = 2_000
"""Number of rows of an index of several parts that a request reads. They are sorted."""
ID_PORTION = 50_000
"""Number of ids that a request reads to find those that end in a string."""
AFTER_KEYS, AFTER_IDS = 2**62, "~"
"""Positions after all keys, and after all ids."""
_CLOCK_STEP_MILLISECONDS = 10_000
"""Keys grow with time, except if the clock was set back. Steps of up to 10 s do not hide rows from a search by time."""


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """An index, and the rows of a filter in it.

    - ``source``: The FROM clause for the index alone.
    - ``clause``: The condition of its rows.
    - ``parts``: The parameters of ``clause`` for each part of the index, such as each of several functions. A walk
      without parts is so short that it is read at once.
    - ``rows``: The FROM clause of the rows themselves.
    - ``rows_clause``: Their condition.
    - ``values``: The parameters of both.
    - ``key``: The column that orders the rows.
    """

    key: str
    source: str = ""
    clause: str = "1"
    parts: Sequence[Sequence[object]] = ((),)
    rows: str
    rows_clause: str = "1"
    values: Sequence[object] = ()

    def reach(self, connection: sqlite3.Connection, low: int, high: int, portion: int) -> int:
        """The key down to which a portion of the rows below ``high`` reaches.

        ``low`` if the portion has all of them.
        """
        query = (
            f"SELECT {self.key} FROM {self.source} WHERE {self.clause} AND {self.key} >= ? AND {self.key} < ? "
            f"ORDER BY {self.key} DESC LIMIT 1 OFFSET ?"
        )
        offset = max(portion // max(len(self.parts), 1) - 1, 0)
        reached = low
        for values in self.parts:
            row = connection.execute(query, (*values, low, high, offset)).fetchone()
            if row is not None:
                reached = max(reached, row[0])
        return reached


def short_walk(key: str, rows: str, values: Sequence[object]) -> Walk:
    return Walk(key=key, parts=(), rows=rows, values=values)


def listed_walk(table: str, keys: Sequence[int]) -> Walk:
    """The rows of a table with these keys."""
    rows = f"(SELECT value FROM json_each(?)) AS listed CROSS JOIN {table} ON {table}.key = listed.value"
    return short_walk(f"{table}.key", rows, (msgspec.json.encode(keys).decode(),))


def farthest(
    connection: sqlite3.Connection, walks: Sequence[Walk], low: int, high: int, portion: int | None = None
) -> tuple[Walk, int]:
    """The walk whose portion reaches furthest back, and its end. The first of equals.

    A portion has by default ``PORTION`` rows, or ``PARTS_PORTION``.
    """
    found: tuple[Walk, int] | None = None
    for walk in walks:
        rows = PORTION if len(walk.parts) < 2 else PARTS_PORTION
        end = walk.reach(connection, low, high, rows if portion is None else portion)
        if found is None or end < found[1]:
            found = walk, end
        if end == low:
            break
    assert found is not None, "there is at least the walk of all rows"
    return found


def read_cursor(connection: sqlite3.Connection, table: str, cursor: str | None) -> int:
    """The key before which a search continues. A cursor is the id of a row. Raises ``SelectionInvalidError``."""
    if cursor is None:
        return AFTER_KEYS
    row = connection.execute(f"SELECT key FROM {table} WHERE id = ?", (cursor,)).fetchone()
    if row is None:
        raise SelectionInvalidError(
            f"the cursor {cursor!r} is not one that this search has returned, or what it names is deleted: search again"
        )
    return int(row[0])


def read_id_time(item_id: str) -> dt.datetime | None:
    """The time in an id, which is a ULID; ``None`` if it has none."""
    try:
        return to_datetime(ULID.from_str(item_id).milliseconds)
    except (ValueError, OverflowError):
        return None


def key_at(connection: sqlite3.Connection, table: str, column: str, time: int) -> int:
    """The key of the first row whose time is ``time`` or later.

    ``AFTER_KEYS`` if there is none. A binary search, because times have no index. It assumes that times grow with keys.
    """
    # One aggregate per query: SQLite reads the whole table for two.
    (low,) = connection.execute(f"SELECT min(key) FROM {table}").fetchone()
    (last,) = connection.execute(f"SELECT max(key) + 1 FROM {table}").fetchone()
    if low is None:
        return AFTER_KEYS
    query = f"SELECT key, {column} FROM {table} WHERE key >= ? ORDER BY key LIMIT 1"
    high = last
    while low < high:
        middle = (low + high) // 2
        key, found = connection.execute(query, (middle,)).fetchone()
        low, high = (key + 1, high) if found < time else (low, middle)
    return low if low < last else AFTER_KEYS


def key_range(
    connection: sqlite3.Connection, table: str, column: str, after: int | None, before: int | None
) -> tuple[int, int]:
    """Half-open key range of all rows in a time range.

    It may contain other rows, so also compare times. Times are milliseconds since the epoch.
    """
    low = 0 if after is None else key_at(connection, table, column, after - _CLOCK_STEP_MILLISECONDS)
    high = AFTER_KEYS if before is None else key_at(connection, table, column, before + _CLOCK_STEP_MILLISECONDS)
    return low, high


class IdMatches(msgspec.Struct, frozen=True):
    """The keys of rows whose ids match a string.

    ``end`` is the id before which the search continues, if it does.
    """

    keys: list[int]
    end: str | None


def match_ids(connection: sqlite3.Connection, table: str, text: str, before: str, limit: int) -> IdMatches:
    """Rows whose id begins with a string or, if there are none, ends in it.

    The newest rows come first. Reads a portion of the ids. ``text`` is in upper case.
    """
    source = f"{table} INDEXED BY sqlite_autoindex_{table}_1"
    begins, bounds = "id >= ? AND id < ?", (text, f"{text}~")
    end: str | None = None
    values: tuple[object, ...]
    if connection.execute(f"SELECT 1 FROM {source} WHERE {begins}", bounds).fetchone():
        clause, values = begins, bounds
    else:
        query = f"SELECT id FROM {source} WHERE id < ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        row = connection.execute(query, (before, ID_PORTION - 1)).fetchone()
        end = row[0] if row else None
        clause, values = "substr(id, ?) = ? AND id >= ?", (-len(text), text, end or "")
    rows = connection.execute(
        f"SELECT key, id FROM {source} WHERE {clause} AND id < ? ORDER BY id DESC LIMIT ?", (*values, before, limit)
    ).fetchall()
    return IdMatches([key for key, _ in rows], rows[-1][1] if len(rows) == limit else end)


Item = TypeVar("Item")

MOST_EVALUATED = 2_000
LONGEST_SECONDS = 0.1
MOST_PAGE_BYTES = 1024 * 1024
"""Bytes of items after which a page ends."""


class Budget:
    """Limits the number and the time of a request's evaluations of an expression.

    ``now`` is the value of ``now()``.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self._left = MOST_EVALUATED
        self._deadline: float | None = None

    def spend(self) -> None:
        self._left -= 1
        if self._deadline is None:
            self._deadline = time.monotonic() + LONGEST_SECONDS

    @property
    def is_spent(self) -> bool:
        return self._deadline is not None and (not self._left or time.monotonic() > self._deadline)


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Items, and the cursor of the next page; see ``RunPage``."""

    items: list[Item]
    cursor: str | None
    searched_until: dt.datetime | None = None


class Searched(msgspec.Struct, frozen=True):
    """A table, its column of times, and the keys of a request.

    The request reads keys from ``end`` until before ``high``. ``low`` is the end of the whole search.
    """

    table: str
    column: str
    low: int
    end: int
    high: int


def _no_bytes(row: Any) -> int:
    return 0


def read_page(
    connection: sqlite3.Connection,
    rows: Iterable[Any],
    match: Callable[[Any], Item | None],
    searched: Searched,
    limit: int,
    budget: Budget,
    bytes_of: Callable[[Any], int] = _no_bytes,
) -> Page[Item]:
    """The first items of the rows, at most ``limit``.

    ``match`` converts a row, whose first column is its key, to its item; ``None`` if it does not match.
    """
    items: list[Item] = []
    last, end, size = searched.high, searched.end, 0
    for row in rows:
        item = match(row)
        if item is not None:
            size += bytes_of(row)
            if items and (len(items) == limit or size > MOST_PAGE_BYTES):
                return Page(items, _row_at(connection, searched, last)[0])
            items.append(item)
            last = row[0]
        if budget.is_spent:
            end = row[0]
            break
    if end <= searched.low:
        return Page(items, None)
    return Page(items, *_row_at(connection, searched, end))


def _row_at(connection: sqlite3.Connection, searched: Searched, key: int) -> tuple[str, dt.datetime]:
    """The id and the time of a row."""
    query = f"SELECT id, {searched.column} FROM {searched.table} WHERE key = ?"
    row_id, time = connection.execute(query, (key,)).fetchone()
    return row_id, to_datetime(time)


def page_of_ids(page: Page[Item], end: str | None) -> Page[Item]:
    """A page of a search by id, which continues before an id.

    ``end`` is the id at which the search for ids ended, if the page does not end before it.
    """
    end = page.cursor or end
    return Page(page.items, end, None if end is None else read_id_time(end))
