"""Searches of runs: by status, function, app, event, time, id and an expression.

They run in the reader's threads. Results are newest first. No table has counts for each filter, so the runs of each
status are counted along indexes, up to a limit.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from durably.engine.core.expressions import Expression
from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import MatchCount, Run, RunPage, StatusCounts

from .runs import RUN_COLUMNS, FirstCallAt, to_run
from .search_pages import (
    AFTER_IDS,
    AFTER_KEYS,
    Budget,
    Page,
    Searched,
    Walk,
    farthest,
    key_range,
    listed_walk,
    match_ids,
    page_of_ids,
    read_cursor,
    read_page,
    short_walk,
)

LONGEST_OUTPUT = 16 * 1024
"""Bytes of the longest output on a page of runs."""
MOST_OF_EVENT_NAME = 5_000
"""Number of events of a name whose runs are read at once."""
_MOST_EVENTS_OF_ID = 100

_RUNS_OF_EVENTS = (
    "SELECT key AS picked FROM runs WHERE event_key IN ({events}) "
    "UNION SELECT run_key FROM run_events WHERE event_key IN ({events})"
)
_LISTED = "SELECT value FROM json_each(?)"
_HAS_EVENT_NAME = (
    "(events.name = ? OR (is_batch AND EXISTS (SELECT 1 FROM run_events JOIN events AS batched "
    "ON batched.key = run_events.event_key WHERE run_key = runs.key AND batched.name = ?)))"
)
_HAS_RARE_END = "ended_at IS NOT NULL AND status <> 'Completed'"


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The filter of a search for runs.

    - ``started_after``, ``started_before``: A half-open interval of the time of creation, in milliseconds since the
      epoch.
    - ``condition``: Over event and output.
    - ``id``: The id of the run or of one of its events, or the beginning or the end of such an id.
    """

    status: RunStatus | None = None
    function_id: str | None = None
    app_id: str | None = None
    event_name: str | None = None
    started_after: int | None = None
    started_before: int | None = None
    condition: Expression | None = None
    id: str | None = None


def search_runs(
    connection: sqlite3.Connection,
    wanted: RunFilter,
    limit: int,
    cursor: str | None,
    first_call_at: FirstCallAt,
    budget: Budget,
) -> RunPage:
    """Search runs. Raises ``SelectionInvalidError`` for a cursor of another search."""
    rows = _Rows(connection, wanted, first_call_at, budget)
    if wanted.id is None:
        return rows.search(index_walks(connection, wanted), limit, cursor)
    events = _events_of_id(connection, wanted.id)
    if events is None:
        found = _search_by_part_of_id(connection, wanted.id.upper(), limit, cursor, rows)
        if found is not None:
            return found
    if events is None:
        events = match_ids(connection, "events", wanted.id.upper(), AFTER_IDS, _MOST_EVENTS_OF_ID).keys
    listed = msgspec.json.encode(events).decode()
    return rows.search([_walk_of_events(_LISTED, (listed, listed))], limit, cursor)


def index_walks(connection: sqlite3.Connection, wanted: RunFilter) -> list[Walk]:
    """The indexes that fit a filter, the most selective first."""
    walks: list[Walk] = []
    if wanted.status is not None and not wanted.status.has_ended:
        rows = "run_states AS live CROSS JOIN runs ON runs.key = live.run_key"
        walks.append(Walk(key="live.run_key", source="run_states AS live", rows=rows))
    elif wanted.status not in (None, RunStatus.COMPLETED):
        rare, clause = "runs INDEXED BY runs_by_rare_end", f"status = ? AND {_HAS_RARE_END}"
        parts = [(wanted.status,)]
        walks.append(
            Walk(key="runs.key", source=rare, clause=clause, parts=parts, rows=rare, rows_clause=_HAS_RARE_END)
        )
    if wanted.event_name is not None and _is_rare_event(connection, wanted.event_name):
        named = (wanted.event_name, wanted.event_name)
        walks.append(_walk_of_events("SELECT key FROM events WHERE name = ?", named))
    if wanted.function_id is not None:
        walks.append(_walk_of_functions([wanted.function_id]))
    elif wanted.app_id is not None:
        found = connection.execute("SELECT id FROM functions WHERE app_id = ?", (wanted.app_id,))
        walks.append(_walk_of_functions([function_id for (function_id,) in found]))
    # A portion of an index reaches as far as one of all runs, unless the index has several parts.
    if all(len(walk.parts) > 1 for walk in walks):
        walks.append(Walk(key="runs.key", source="runs NOT INDEXED", rows="runs NOT INDEXED"))
    return walks


def _walk_of_events(events: str, values: Sequence[object]) -> Walk:
    picked = _RUNS_OF_EVENTS.format(events=events)
    return short_walk("runs.key", f"({picked}) CROSS JOIN runs ON runs.key = picked", values)


def _walk_of_functions(function_ids: Sequence[str]) -> Walk:
    indexed = "runs INDEXED BY runs_by_function"
    return Walk(
        key="runs.key",
        source=indexed,
        clause="function_id = ?",
        parts=[(function_id,) for function_id in function_ids],
        rows=indexed,
        rows_clause=f"function_id IN ({_LISTED})",
        values=[msgspec.json.encode(function_ids).decode()],
    )


def _is_rare_event(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT count(*) FROM (SELECT 1 FROM events WHERE name = ? LIMIT ?)"
    (count,) = connection.execute(query, (name, MOST_OF_EVENT_NAME + 1)).fetchone()
    return int(count) <= MOST_OF_EVENT_NAME


def row_conditions(wanted: RunFilter, walk: Walk, end: int, high: int) -> tuple[str, list[object]]:
    """The WHERE clause for rows of a walk, and its values.

    The rows are those from ``end`` until before ``high``. With an event name they are joined with ``events``. Each
    status of live runs selects the rows of all live runs.
    """
    clauses = [walk.rows_clause, f"{walk.key} >= ?", f"{walk.key} < ?"]
    values = [*walk.values, end, high]
    named = None if wanted.event_name is None else (wanted.event_name, wanted.event_name)
    ended = wanted.status if wanted.status is not None and wanted.status.has_ended else None
    if wanted.status is not None and not wanted.status.has_ended:
        clauses.append("ended_at IS NULL")
    for clause, value in (
        ("status = ?", ended),
        ("function_id = ?", wanted.function_id),
        ("app_id = ?", wanted.app_id),
        ("created_at >= ?", wanted.started_after),
        ("created_at < ?", wanted.started_before),
        (_HAS_EVENT_NAME, named),
    ):
        if value is not None:
            clauses.append(clause)
            values += value if isinstance(value, tuple) else (value,)
    return " AND ".join(clauses), values


class _Rows:
    """The rows of a walk that match a filter."""

    def __init__(
        self, connection: sqlite3.Connection, wanted: RunFilter, first_call_at: FirstCallAt, budget: Budget
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._first_call_at = first_call_at
        self._budget = budget

    def search(self, walks: Sequence[Walk], limit: int, cursor: str | None) -> RunPage:
        """The next page of a search that may walk any of these indexes."""
        wanted = self._wanted
        low, high = key_range(self._connection, "runs", "created_at", wanted.started_after, wanted.started_before)
        high = min(high, read_cursor(self._connection, "runs", cursor))
        walk, end = farthest(self._connection, walks, low, high)
        return _to_runs(self.page(walk, low, end, high, limit))

    def page(self, walk: Walk, low: int, end: int, high: int, limit: int) -> Page[Run]:
        searched = Searched("runs", "created_at", low, end, high)
        return read_page(self._connection, self._read(walk, end, high), self._match, searched, limit, self._budget)

    def _read(self, walk: Walk, end: int, high: int) -> sqlite3.Cursor:
        where, values = row_conditions(self._wanted, walk, end, high)
        short_output = f"CASE WHEN length(output) <= {LONGEST_OUTPUT} THEN output END"
        output = short_output if self._wanted.condition is None else "output"
        return self._connection.execute(
            f"SELECT {RUN_COLUMNS}, {output}, events.body FROM {walk.rows} "
            "CROSS JOIN events ON events.key = runs.event_key LEFT JOIN run_states ON run_states.run_key = runs.key "
            f"WHERE {where} ORDER BY {walk.key} DESC",
            values,
        )

    def _match(self, row: Any) -> Run | None:
        """The run of a row, if it meets the conditions that SQL does not compare."""
        *columns, output, event = row
        status = self._wanted.status
        if status is not None and not status.has_ended and status is not self._live_status(row[0], row[7]):
            return None
        condition = self._wanted.condition
        if condition is not None:
            self._budget.spend()
            fields = msgspec.json.decode(event, type=dict[str, Any])
            value = None if output is None else msgspec.json.decode(output)
            if not condition.matches(fields, value, now=self._budget.now):
                return None
        shown = output if output is not None and len(output) <= LONGEST_OUTPUT else None
        return to_run(self._connection, (*columns, shown), self._first_call_at)

    def _live_status(self, key: int, started_at: int | None) -> RunStatus:
        """The status of a run that has not ended. The database stores its start late."""
        is_running = started_at is not None or self._first_call_at(key) is not None
        return RunStatus.RUNNING if is_running else RunStatus.SCHEDULED


def _to_runs(page: Page[Run]) -> RunPage:
    return RunPage(runs=page.items, cursor=page.cursor, searched_until=page.searched_until)


# ids


def _events_of_id(connection: sqlite3.Connection, text: str) -> list[int] | None:
    """The events with this id of the engine or of their sender.

    ``None`` if there are none.
    """
    rows = connection.execute(
        "SELECT key FROM events WHERE id = ? UNION SELECT key FROM events WHERE sender_id = ? LIMIT ?",
        (text.upper(), text, _MOST_EVENTS_OF_ID),
    ).fetchall()
    return [key for (key,) in rows] or None


def _search_by_part_of_id(
    connection: sqlite3.Connection, text: str, limit: int, cursor: str | None, rows: _Rows
) -> RunPage | None:
    """The runs whose id begins with a string or ends in it.

    ``None`` if the string may be part of an event's id.
    """
    if not (text.isascii() and text.isalnum()):
        return RunPage(runs=[], cursor=None)
    read_cursor(connection, "runs", cursor)
    matches = match_ids(connection, "runs", text, cursor or AFTER_IDS, limit)
    if not matches.keys and matches.end is None and match_ids(connection, "events", text, AFTER_IDS, 1).keys:
        return None
    page = rows.page(listed_walk("runs", matches.keys), 0, 0, AFTER_KEYS, limit)
    return _to_runs(page_of_ids(page, matches.end))


MOST_COUNTED = 1_000
"""Maximum counted runs of a status."""
COUNTED_PORTION = 10_000
"""Number of entries of an index that are read for a status."""
COUNTED_ROWS_PORTION = 2_000
"""Number of runs that are read for a status if the filter needs their rows."""


def count_by_status(connection: sqlite3.Connection, wanted: RunFilter, first_call_at: FirstCallAt) -> StatusCounts:
    """Count the runs of a filter that has no ``status``, ``condition`` and ``id``."""
    low, high = key_range(connection, "runs", "created_at", wanted.started_after, wanted.started_before)
    counts = _count_live(connection, wanted, low, high, first_call_at)
    for status in RunStatus:
        if status.has_ended:
            rows = _CountedRows(connection, msgspec.structs.replace(wanted, status=status), low, high)
            counts[status] = _limited(rows.count("1"), rows.are_all)
    return StatusCounts(counts=counts)


def _count_live(
    connection: sqlite3.Connection, wanted: RunFilter, low: int, high: int, first_call_at: FirstCallAt
) -> dict[RunStatus, MatchCount]:
    """The numbers of scheduled and running runs.

    The database stores the start of a run late.
    """
    rows = _CountedRows(connection, msgspec.structs.replace(wanted, status=RunStatus.RUNNING), low, high)
    most = 2 * MOST_COUNTED
    unstarted = rows.keys("started_at IS NULL", most + 1)
    scheduled = sum(first_call_at(key) is None for key in unstarted)
    running = rows.count("started_at IS NOT NULL") + len(unstarted) - scheduled
    are_all = rows.are_all and len(unstarted) <= most
    return {RunStatus.SCHEDULED: _limited(scheduled, are_all), RunStatus.RUNNING: _limited(running, are_all)}


def _limited(count: int, are_all: bool) -> MatchCount:
    return MatchCount(count=min(count, MOST_COUNTED), is_complete=are_all and count <= MOST_COUNTED)


class _CountedRows:
    """The newest rows of a filter. ``are_all``: the filter has no older ones."""

    def __init__(self, connection: sqlite3.Connection, wanted: RunFilter, low: int, high: int) -> None:
        self._connection = connection
        walks = index_walks(connection, wanted)
        walk, end = farthest(connection, walks, low, high, COUNTED_ROWS_PORTION)
        second_index: Walk | None = None
        if end > low and wanted.event_name is None:
            walk = walks[0]
            end = walk.reach(connection, low, high, COUNTED_PORTION)
            if len(walks) > 1:
                # Few runs of a function may have the status, and few with the status may be the function's.
                second_index = walks[1]
                end = max(end, second_index.reach(connection, low, high, COUNTED_PORTION))
        self.are_all = end <= low
        self._source = _source_of(walk, wanted)
        self._where, self._values = row_conditions(wanted, walk, end, high)
        if second_index is not None:
            keys = f"SELECT runs.key FROM {second_index.rows} WHERE {second_index.rows_clause} AND runs.key >= ?"
            self._where += f" AND {walk.key} IN ({keys})"
            self._values += [*second_index.values, end]

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
