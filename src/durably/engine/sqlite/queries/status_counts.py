"""Numbers of runs by status, for the list of runs.

No table has them for each filter. So the runs of each status are counted along indexes, up to a limit.
"""

import sqlite3

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.engine.reports import MatchCount, StatusCounts

from .run_search import RunFilter, index_walks, row_conditions
from .views import FirstCallAt
from .walks import Walk, farthest, key_range

MOST_COUNTED = 1_000
"""The largest number of runs of a status."""
PORTION = 10_000
"""Entries of an index that are looked at for a status."""
ROWS_PORTION = 2_000
"""Runs that are looked at for a status if the filter needs their rows."""


def count_by_status(connection: sqlite3.Connection, wanted: RunFilter, first_call_at: FirstCallAt) -> StatusCounts:
    """Count the runs of a filter that has no ``status``, ``condition`` and ``id``."""
    low, high = key_range(connection, "runs", "created_at", wanted.started_after, wanted.started_before)
    counts = _count_live(connection, wanted, low, high, first_call_at)
    for status in RunStatus:
        if status.has_ended:
            rows = _Rows(connection, msgspec.structs.replace(wanted, status=status), low, high)
            counts[status] = _limited(rows.count("1"), rows.are_all)
    return StatusCounts(counts=counts)


def _count_live(
    connection: sqlite3.Connection, wanted: RunFilter, low: int, high: int, first_call_at: FirstCallAt
) -> dict[RunStatus, MatchCount]:
    """The numbers of scheduled and running runs.

    The database stores the start of a run late.
    """
    rows = _Rows(connection, msgspec.structs.replace(wanted, status=RunStatus.RUNNING), low, high)
    most = 2 * MOST_COUNTED
    unstarted = rows.keys("started_at IS NULL", most + 1)
    scheduled = sum(first_call_at(key) is None for key in unstarted)
    running = rows.count("started_at IS NOT NULL") + len(unstarted) - scheduled
    are_all = rows.are_all and len(unstarted) <= most
    return {RunStatus.SCHEDULED: _limited(scheduled, are_all), RunStatus.RUNNING: _limited(running, are_all)}


def _limited(count: int, are_all: bool) -> MatchCount:
    return MatchCount(count=min(count, MOST_COUNTED), is_complete=are_all and count <= MOST_COUNTED)


class _Rows:
    """The newest rows of a filter. ``are_all``: the filter has no older ones."""

    def __init__(self, connection: sqlite3.Connection, wanted: RunFilter, low: int, high: int) -> None:
        self._connection = connection
        walks = index_walks(connection, wanted)
        walk, end = farthest(connection, walks, low, high, ROWS_PORTION)
        narrowing: Walk | None = None
        if end > low and wanted.event_name is None:
            walk = walks[0]
            end = walk.reach(connection, low, high, PORTION)
            if len(walks) > 1:
                # Few runs of a function may have the status, and few with the status be the function's.
                narrowing = walks[1]
                end = max(end, narrowing.reach(connection, low, high, PORTION))
        self.are_all = end <= low
        self._source = _source_of(walk, wanted)
        self._where, self._values = row_conditions(wanted, walk, end, high)
        if narrowing is not None:
            keys = f"SELECT runs.key FROM {narrowing.rows} WHERE {narrowing.rows_clause} AND runs.key >= ?"
            self._where += f" AND {walk.key} IN ({keys})"
            self._values += [*narrowing.values, end]

    def count(self, condition: str) -> int:
        """The number of rows that meet a condition, up to one more than ``MOST_COUNTED``."""
        query = f"SELECT count(*) FROM (SELECT 1 FROM {self._source} WHERE {self._where} AND {condition} LIMIT ?)"
        (count,) = self._connection.execute(query, (*self._values, MOST_COUNTED + 1)).fetchone()
        return int(count)

    def keys(self, condition: str, limit: int) -> list[int]:
        query = f"SELECT runs.key FROM {self._source} WHERE {self._where} AND {condition} LIMIT ?"
        return [key for (key,) in self._connection.execute(query, (*self._values, limit))]


def _source_of(walk: Walk, wanted: RunFilter) -> str:
    if wanted.event_name is None:
        return walk.rows
    return f"{walk.rows} CROSS JOIN events ON events.key = runs.event_key"
