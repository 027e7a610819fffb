"""Searches of a table, from the newest rows to older ones, in pages.

A search without a matching index must not read a million rows for one request. It reads a portion, and returns a
cursor, the id of a row. If several indexes fit a filter, the search takes the one whose portion reaches furthest back.
A page has the matching rows of a walk along an index. It ends when it is full, or when the budget is spent.
"""

import datetime as dt
import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from ulid import ULID

from durably.engine.core.expressions import Expression, ExpressionInvalidError, compile_expression
from durably.engine.model.runs import to_datetime
from durably.protocol.engine_errors import SelectionInvalidError

Item = TypeVar("Item")

PORTION = 20_000
"""Number of rows that a request reads, each with its event."""
PARTS_PORTION = 2_000
"""Number of rows of an index of several parts that a request reads. They are sorted."""
ID_PORTION = 50_000
"""Number of ids that a request reads to find those that end in a string."""
MOST_EVALUATED = 2_000
LONGEST_SECONDS = 0.1
MOST_PAGE_BYTES = 1024 * 1024
"""Bytes of items after which a page ends."""
AFTER_KEYS, AFTER_IDS = 2**62, "~"
"""Positions after all keys, and after all ids."""
_CLOCK_STEP_MILLISECONDS = 10_000
"""Keys grow with time, except if the clock was set back. Steps of up to 10 s do not hide rows from a search by time."""


def check_condition(text: str, *, has_output: bool = False) -> Expression:
    """A condition over ``event`` and, if it ``has_output``, ``output``.

    Raises ``SelectionInvalidError``.
    """
    try:
        expression = compile_expression(text, has_async=False, has_output=has_output)
    except ExpressionInvalidError as error:
        raise SelectionInvalidError(f"the expression is not valid: {error}") from error
    if expression.missing_field:
        raise SelectionInvalidError(f"the expression `{text}` {expression.missing_field}")
    return expression


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """An index, and the rows of a filter in it."""

    key: str
    """The column that orders the rows."""
    source: str = ""
    """The FROM clause for the index alone."""
    clause: str = "1"
    """The condition of its rows."""
    parts: Sequence[Sequence[object]] = ((),)
    """The parameters of ``clause`` for each part of the index, such as each of several functions. A walk without parts
    is so short that it is read at once."""
    rows: str
    """The FROM clause of the rows themselves."""
    rows_clause: str = "1"
    """Their condition."""
    values: Sequence[object] = ()
    """The parameters of both."""

    def reach(self, connection: sqlite3.Connection, low: int, high: int, portion: int) -> int:
        """The key down to which a portion of the rows below ``high`` reaches.

        ``low`` if the portion has all of them.
        """
        query = (
            f"SELECT {self.key} FROM {self.source} WHERE {self.clause} AND {self.key} >= ? AND {self.key} < ? "
            f"ORDER BY {self.key} DESC LIMIT 1 OFFSET ?"
        )
        offset = max(portion // max(len(self.parts), 1) - 1, 0)
        found = (connection.execute(query, (*part, low, high, offset)).fetchone() for part in self.parts)
        reached: list[int] = [row[0] for row in found if row is not None]
        return max([low, *reached])


def listed_walk(table: str, keys: Sequence[int]) -> Walk:
    """The rows of a table with these keys."""
    rows = f"(SELECT value FROM json_each(?)) AS listed CROSS JOIN {table} ON {table}.key = listed.value"
    return Walk(key=f"{table}.key", parts=(), rows=rows, values=(msgspec.json.encode(keys).decode(),))


def farthest(
    connection: sqlite3.Connection, walks: Sequence[Walk], low: int, high: int, portion: int | None = None
) -> tuple[Walk, int]:
    """The walk whose portion reaches furthest back, and its end. The first of equals.

    A portion has by default ``PORTION`` rows, or ``PARTS_PORTION``.
    """
    found: tuple[Walk, int] | None = None
    for walk in walks:
        end = walk.reach(connection, low, high, portion or (PORTION if len(walk.parts) < 2 else PARTS_PORTION))
        if found is None or end < found[1]:
            found = walk, end
        if end == low:
            break
    assert found is not None, "there is at least the walk of all rows"
    return found


class Budget:
    """Limits the number and the time of a request's evaluations of an expression.

    ``now`` is the value of ``now()``.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._left = MOST_EVALUATED
        self._deadline: float | None = None

    def matches(self, condition: Expression, event: bytes, output: bytes | None = None) -> bool:
        self._left -= 1
        if self._deadline is None:
            self._deadline = time.monotonic() + LONGEST_SECONDS
        value = None if output is None else msgspec.json.decode(output)
        return condition.matches(msgspec.json.decode(event, type=dict[str, Any]), value, now=self._now)

    @property
    def is_spent(self) -> bool:
        return self._deadline is not None and (not self._left or time.monotonic() > self._deadline)


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Items, and the cursor of the next page; see ``RunPage``."""

    items: list[Item]
    cursor: str | None = None
    searched_until: dt.datetime | None = None


class Search(Generic[Item]):
    """A search in a table. Subclasses read the rows of a walk, and convert those that match.

    ``times`` is a half-open interval of ``column``, in milliseconds since the epoch.
    """

    table: str
    column: str

    def __init__(self, connection: sqlite3.Connection, times: tuple[int | None, int | None], budget: Budget) -> None:
        self.connection = connection
        self.budget = budget
        self.low, self.high = key_range(connection, self.table, self.column, *times)

    def read(self, walk: Walk, end: int, high: int) -> Iterable[Any]:
        """The rows of a walk from the key ``end`` until before ``high``. The first column is their key."""
        raise NotImplementedError

    def match(self, row: Any) -> Item | None:
        """The item of a row, if it meets the conditions that SQL does not compare."""
        raise NotImplementedError

    def size_of(self, row: Any) -> int:
        """The bytes that a row adds to a page."""
        return 0

    def by_walk(self, walks: Sequence[Walk], limit: int, cursor: str | None) -> Page[Item]:
        """The next page of a search that may walk any of these indexes. Raises ``SelectionInvalidError``."""
        high = min(self.high, self._read_cursor(cursor))
        walk, end = farthest(self.connection, walks, self.low, high)
        return self._page(walk, self.low, end, high, limit)

    def by_part_of_id(self, text: str, limit: int, cursor: str | None) -> Page[Item]:
        """Rows whose id begins with a string in upper case or, if there are none, ends in it."""
        if not (text.isascii() and text.isalnum()):
            return Page([])
        self._read_cursor(cursor)
        keys, end = match_ids(self.connection, self.table, text, cursor or AFTER_IDS, limit)
        page = self._page(listed_walk(self.table, keys), 0, 0, AFTER_KEYS, limit)
        end = page.cursor or end
        return Page(page.items, end, None if end is None else read_id_time(end))

    def _read_cursor(self, cursor: str | None) -> int:
        """The key before which a search continues."""
        if cursor is None:
            return AFTER_KEYS
        row = self.connection.execute(f"SELECT key FROM {self.table} WHERE id = ?", (cursor,)).fetchone()
        if row is None:
            raise SelectionInvalidError(
                f"the cursor {cursor!r} is not one that this search has returned, or what it names is deleted: search "
                "again"
            )
        return int(row[0])

    def _page(self, walk: Walk, low: int, end: int, high: int, limit: int) -> Page[Item]:
        """The first matching rows of a walk. ``low`` is the end of the whole search."""
        items: list[Item] = []
        last, size = high, 0
        for row in self.read(walk, end, high):
            item = self.match(row)
            if item is not None:
                size += self.size_of(row)
                if items and (len(items) == limit or size > MOST_PAGE_BYTES):
                    return Page(items, self._row_at(last)[0])
                items.append(item)
                last = row[0]
            if self.budget.is_spent:
                end = row[0]
                break
        return Page(items) if end <= low else Page(items, *self._row_at(end))

    def _row_at(self, key: int) -> tuple[str, dt.datetime]:
        query = f"SELECT id, {self.column} FROM {self.table} WHERE key = ?"
        row_id, milliseconds = self.connection.execute(query, (key,)).fetchone()
        return row_id, to_datetime(milliseconds)


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


def match_ids(
    connection: sqlite3.Connection, table: str, text: str, before: str, limit: int
) -> tuple[list[int], str | None]:
    """The keys of rows whose id begins with a string or, if there are none, ends in it, newest first.

    Reads a portion of the ids. ``text`` is in upper case. Also returns the id before which the search continues.
    """
    source = f"{table} INDEXED BY sqlite_autoindex_{table}_1"
    clause, values, end = "id >= ? AND id < ?", (text, f"{text}~"), None
    if not connection.execute(f"SELECT 1 FROM {source} WHERE {clause}", values).fetchone():
        query = f"SELECT id FROM {source} WHERE id < ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        row = connection.execute(query, (before, ID_PORTION - 1)).fetchone()
        end = row[0] if row else None
        clause, values = f"substr(id, -{len(text)}) = ? AND id >= ?", (text, end or "")
    rows = connection.execute(
        f"SELECT key, id FROM {source} WHERE {clause} AND id < ? ORDER BY id DESC LIMIT ?", (*values, before, limit)
    ).fetchall()
    return [key for key, _ in rows], rows[-1][1] if len(rows) == limit else end


def given(conditions: dict[str, object]) -> tuple[list[str], list[object]]:
    """The clauses that have a value, and the values. A tuple has those of several parameters."""
    clauses = [clause for clause, value in conditions.items() if value is not None]
    values: list[object] = []
    for clause in clauses:
        value = conditions[clause]
        values += value if isinstance(value, tuple) else (value,)
    return clauses, values
