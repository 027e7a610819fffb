"""Pages of a search.

A page has the rows of a walk that match. It ends when it is full, or when the budget is spent.
"""

import datetime as dt
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from durably.engine.views import to_datetime

from .walks import read_id_time

Item = TypeVar("Item")

MOST_EVALUATED = 2_000
LONGEST_SECONDS = 0.1
MOST_PAGE_BYTES = 1024 * 1024
"""Bytes of items after which a page ends."""


class Budget:
    """The number and the time of a request's evaluations of an expression.

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
    """Items, and where the search continues; see ``RunPage``."""

    items: list[Item]
    cursor: str | None
    searched_until: dt.datetime | None = None


class Searched(msgspec.Struct, frozen=True):
    """A table, its column of times, and the keys of a request.

    The request looks at keys from ``end`` until before ``high``; ``low`` is the end of the whole search.
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

    ``match`` maps a row, whose first column is its key, to its item; ``None`` if it does not match.
    """
    items: list[Item] = []
    last, end, size = searched.high, searched.end, 0
    for row in rows:
        item = match(row)
        if item is not None:
            size += bytes_of(row)
            if items and (len(items) == limit or size > MOST_PAGE_BYTES):
                return Page(items, str(last))
            items.append(item)
            last = row[0]
        if budget.is_spent:
            end = row[0]
            break
    if end <= searched.low:
        return Page(items, None)
    return Page(items, str(end), _time_at(connection, searched, end))


def page_of_ids(connection: sqlite3.Connection, table: str, page: Page[Item], end: str | None) -> Page[Item]:
    """A page of a search by id, which continues before an id.

    ``end`` is the id at which the search for ids ended. If the page ends before, its cursor is the key of a row.
    """
    if page.cursor is not None:
        (end,) = connection.execute(f"SELECT id FROM {table} WHERE key = ?", (int(page.cursor),)).fetchone()
    return Page(page.items, end, None if end is None else read_id_time(end))


def _time_at(connection: sqlite3.Connection, searched: Searched, key: int) -> dt.datetime | None:
    query = f"SELECT {searched.column} FROM {searched.table} WHERE key >= ? ORDER BY key LIMIT 1"
    row = connection.execute(query, (key,)).fetchone()
    return to_datetime(row[0]) if row else None
