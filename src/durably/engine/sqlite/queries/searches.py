"""Searches of runs and of events, and numbers of runs.

They run in the reader's threads. Results are newest first. No table has counts for each filter, so runs are counted
along indexes, up to a limit.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import (
    EventFilter,
    EventPage,
    MatchCount,
    Run,
    RunFilter,
    RunPage,
    StatusCounts,
    StoredEvent,
    to_optional_milliseconds,
)
from durably.protocol.events import INTERNAL_PREFIX

from .runs import RUN_COLUMNS, FirstCallAt, runs_of_keys, to_event, to_run
from .search import AFTER_IDS, Budget, Search, Walk, check_condition, farthest, given, listed_walk, match_ids

LONGEST_OUTPUT = 16 * 1024
"""Bytes of the longest output on a page of runs."""
MOST_OF_EVENT_NAME = 5_000
"""Number of events of a name whose runs are read at once."""
MOST_RUNS = 50
"""Maximum number of runs of one event on a page."""
MOST_COUNTED = 1_000
"""Maximum counted runs of a status."""
COUNTED_PORTION = 10_000
"""Number of entries of an index that are read for a status."""
COUNTED_ROWS_PORTION = 2_000
"""Number of runs that are read for a status if the filter needs their events."""
MOST_MATCHED = 20_000
"""Number of a function's runs of a status that the count for a bulk operation looks at."""
_MOST_OF_ID = 100

_LISTED = "SELECT value FROM json_each(?)"
_HAS_EVENT_NAME = (
    "(events.name = ? OR (is_batch AND EXISTS (SELECT 1 FROM run_events JOIN events AS batched "
    "ON batched.key = run_events.event_key WHERE run_key = runs.key AND batched.name = ?)))"
)
_HAS_RARE_END = "ended_at IS NOT NULL AND status <> 'Completed'"
_JOINED_EVENTS = "CROSS JOIN events ON events.key = runs.event_key"


class _RunSearch(Search[Run]):
    table, column = "runs", "created_at"

    def __init__(
        self, connection: sqlite3.Connection, wanted: RunFilter, first_call_at: FirstCallAt, budget: Budget
    ) -> None:
        interval = to_optional_milliseconds(wanted.started_after), to_optional_milliseconds(wanted.started_before)
        super().__init__(connection, interval, budget)
        self._wanted, self._interval = wanted, interval
        self._condition = check_condition(wanted.if_exp, has_output=True) if wanted.if_exp else None
        self._first_call_at = first_call_at

    def read(self, walk: Walk, end: int, high: int) -> Iterable[Any]:
        return self.select(
            f"{RUN_COLUMNS}, output, events.body",
            walk,
            f"{_JOINED_EVENTS} LEFT JOIN run_states ON run_states.run_key = runs.key",
            end,
            high,
        )

    def select(self, columns: str, walk: Walk, joins: str, end: int, high: int) -> sqlite3.Cursor:
        """Rows of a walk that meet the conditions that SQL compares. A filter with an event name needs the events.

        Each status of live runs selects the rows of all live runs.
        """
        wanted, status, name = self._wanted, self._wanted.status, self._wanted.event_name
        clauses, values = given(
            {
                "status = ?": status if status is not None and status.has_ended else None,
                "function_id = ?": wanted.function_id,
                "app_id = ?": wanted.app_id,
                "created_at >= ?": self._interval[0],
                "created_at < ?": self._interval[1],
                _HAS_EVENT_NAME: None if name is None else (name, name),
            }
        )
        if status is not None and not status.has_ended:
            clauses.append("ended_at IS NULL")
        where = " AND ".join([walk.rows_clause, f"{walk.key} >= ?", f"{walk.key} < ?", *clauses])
        query = f"SELECT {columns} FROM {walk.rows} {joins} WHERE {where} ORDER BY {walk.key} DESC"
        return self.connection.execute(query, (*walk.values, end, high, *values))

    def match(self, row: Any) -> Run | None:
        *columns, output, event = row
        if not self.has_status(row[0], row[7]):
            return None
        condition = self._condition
        if condition is not None and not self.budget.matches(condition, event, output):
            return None
        shown = output if output is not None and len(output) <= LONGEST_OUTPUT else None
        return to_run(self.connection, (*columns, shown), self._first_call_at)

    def has_status(self, key: int, started_at: int | None) -> bool:
        """Whether a run has the status of the filter. The database stores the start of a run late."""
        status = self._wanted.status
        if status is None or status.has_ended:
            return True
        is_running = started_at is not None or self._first_call_at(key) is not None
        return status is (RunStatus.RUNNING if is_running else RunStatus.SCHEDULED)

    def walks(self) -> list[Walk]:
        """The indexes that fit the filter, the most selective first."""
        wanted, walks = self._wanted, list[Walk]()
        if wanted.status is not None and not wanted.status.has_ended:
            rows = "run_states AS live CROSS JOIN runs ON runs.key = live.run_key"
            walks.append(Walk(key="live.run_key", source="run_states AS live", rows=rows))
        elif wanted.status not in (None, RunStatus.COMPLETED):
            rare, clause = "runs INDEXED BY runs_by_rare_end", f"status = ? AND {_HAS_RARE_END}"
            parts = [(wanted.status,)]
            walks.append(
                Walk(key="runs.key", source=rare, clause=clause, parts=parts, rows=rare, rows_clause=_HAS_RARE_END)
            )
        if wanted.event_name is not None:
            query = "SELECT count(*) FROM (SELECT 1 FROM events WHERE name = ? LIMIT ?)"
            (count,) = self.connection.execute(query, (wanted.event_name, MOST_OF_EVENT_NAME + 1)).fetchone()
            if count <= MOST_OF_EVENT_NAME:
                walks.append(_walk_of_events("SELECT key FROM events WHERE name = ?", wanted.event_name))
        if wanted.function_id is not None or wanted.app_id is not None:
            ids = [wanted.function_id or ""]
            if wanted.function_id is None:
                found = self.connection.execute("SELECT id FROM functions WHERE app_id = ?", (wanted.app_id,))
                ids = [function_id for (function_id,) in found]
            walk = Walk(
                key="runs.key",
                source="runs INDEXED BY runs_by_function",
                clause="function_id = ?",
                parts=[(function_id,) for function_id in ids],
                rows="runs INDEXED BY runs_by_function",
                rows_clause=f"function_id IN ({_LISTED})",
                values=[msgspec.json.encode(ids).decode()],
            )
            walks.append(walk)
        # A portion of an index reaches as far as one of all runs, unless the index has several parts.
        if all(len(walk.parts) > 1 for walk in walks):
            walks.append(Walk(key="runs.key", source="runs NOT INDEXED", rows="runs NOT INDEXED"))
        return walks

    def count(self, most: int, portion: int) -> MatchCount:
        """The number of runs of a filter with a status, up to ``most``, from a portion of an index."""
        walk, end = farthest(self.connection, self.walks(), self.low, self.high, portion)
        condition, count = self._condition, 0
        needs_event = condition is not None or self._wanted.event_name is not None
        body, output = ("NULL", "NULL") if condition is None else ("events.body", "output")
        columns, joins = f"runs.key, started_at, {body}, {output}", _JOINED_EVENTS if needs_event else ""
        for key, started_at, event, result in self.select(columns, walk, joins, end, self.high):
            if self.budget.is_spent:
                return MatchCount(count=count, is_complete=False)
            if self.has_status(key, started_at) and (
                condition is None or self.budget.matches(condition, event, result)
            ):
                if count == most:
                    return MatchCount(count=most, is_complete=False)
                count += 1
        return MatchCount(count=count, is_complete=end <= self.low)


def _walk_of_events(events: str, value: object) -> Walk:
    """The runs of events. ``events`` selects their keys."""
    picked = (
        f"SELECT key AS picked FROM runs WHERE event_key IN ({events}) "
        f"UNION SELECT run_key FROM run_events WHERE event_key IN ({events})"
    )
    rows = f"({picked}) CROSS JOIN runs ON runs.key = picked"
    return Walk(key="runs.key", parts=(), rows=rows, values=(value, value))


def search_runs(
    connection: sqlite3.Connection,
    wanted: RunFilter,
    limit: int,
    cursor: str | None,
    first_call_at: FirstCallAt,
    budget: Budget,
) -> RunPage:
    """Search runs. Raises ``SelectionInvalidError`` for a cursor of another search."""
    search = _RunSearch(connection, wanted, first_call_at, budget)
    if wanted.id is None:
        page = search.by_walk(search.walks(), limit, cursor)
    else:
        text = wanted.id.upper()
        events = _keys(
            connection,
            "SELECT key FROM events WHERE id = ? UNION SELECT key FROM events WHERE sender_id = ? LIMIT ?",
            (text, wanted.id, _MOST_OF_ID),
        )
        if not events and text and not match_ids(connection, "runs", text, AFTER_IDS, 1)[0]:
            events, _ = match_ids(connection, "events", text, AFTER_IDS, _MOST_OF_ID)
        if events:
            page = search.by_walk([_walk_of_events(_LISTED, msgspec.json.encode(events).decode())], limit, cursor)
        else:
            page = search.by_part_of_id(text, limit, cursor)
    return RunPage(runs=page.items, cursor=page.cursor, searched_until=page.searched_until)


def count_by_status(connection: sqlite3.Connection, wanted: RunFilter, first_call_at: FirstCallAt) -> StatusCounts:
    """Count the runs of a filter that has no ``status``, ``if_exp`` and ``id``."""
    portion = COUNTED_PORTION if wanted.event_name is None else COUNTED_ROWS_PORTION
    counts = {
        status: _RunSearch(connection, replace(wanted, status=status), first_call_at, Budget(0)).count(
            MOST_COUNTED, portion
        )
        for status in RunStatus
    }
    return StatusCounts(counts=counts)


def count_matching_runs(
    connection: sqlite3.Connection,
    wanted: RunFilter,
    statuses: Collection[RunStatus],
    first_call_at: FirstCallAt,
    budget: Budget,
) -> MatchCount:
    """The number of runs of a filter that have one of the statuses. The filter's condition is over ``event``."""
    if wanted.if_exp:
        check_condition(wanted.if_exp)
    counts = [
        _RunSearch(connection, replace(wanted, status=status), first_call_at, budget).count(MOST_MATCHED, MOST_MATCHED)
        for status in statuses
    ]
    return MatchCount(count=sum(each.count for each in counts), is_complete=all(each.is_complete for each in counts))


def _keys(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> list[int]:
    return [key for (key,) in connection.execute(query, values)]


# events


_HAS_NO_EFFECT = (
    f"ended IS NULL AND substr(name, 1, {len(INTERNAL_PREFIX)}) <> '{INTERNAL_PREFIX}' "
    "AND NOT EXISTS (SELECT 1 FROM runs WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM run_events WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM pending_events WHERE event_key = events.key)"
)

IsTriggering = Callable[[str], bool]
"""Returns whether events of a name trigger a function now."""


class _EventSearch(Search[StoredEvent]):
    table, column = "events", "received_at"

    def __init__(
        self,
        connection: sqlite3.Connection,
        wanted: EventFilter,
        is_triggering: IsTriggering,
        first_call_at: FirstCallAt,
        budget: Budget,
    ) -> None:
        interval = to_optional_milliseconds(wanted.received_after), to_optional_milliseconds(wanted.received_before)
        super().__init__(connection, interval, budget)
        self._wanted, self._interval = wanted, interval
        self._condition = check_condition(wanted.if_exp) if wanted.if_exp else None
        self._is_triggering = is_triggering
        self._first_call_at = first_call_at

    def read(self, walk: Walk, end: int, high: int) -> Iterable[Any]:
        wanted = self._wanted
        clauses, values = given(
            {
                "name = ?": wanted.name,
                "received_at >= ?": self._interval[0],
                "received_at < ?": self._interval[1],
            }
        )
        if wanted.is_unmatched:
            clauses.append(_HAS_NO_EFFECT)
        where = " AND ".join([walk.rows_clause, f"{walk.key} >= ?", f"{walk.key} < ?", *clauses])
        return self.connection.execute(
            f"SELECT events.key, events.id, received_at, body, {_HAS_NO_EFFECT}, name, ended FROM {walk.rows} "
            f"WHERE {where} ORDER BY {walk.key} DESC",
            (*walk.values, end, high, *values),
        )

    def size_of(self, row: Any) -> int:
        return len(row[3])

    def match(self, row: Any) -> StoredEvent | None:
        key, event_id, received_at, body, has_no_effect, name, ended = row
        wanted, is_unmatched = self._wanted, bool(has_no_effect) and not self._is_triggering(name)
        if wanted.is_unmatched not in (None, is_unmatched):
            return None
        if self._condition is not None and not self.budget.matches(self._condition, body):
            return None
        runs: list[Run] = []
        if wanted.has_runs and not has_no_effect:
            query = (
                "SELECT key FROM runs WHERE event_key = ?1 UNION SELECT run_key FROM run_events WHERE event_key = ?1 "
                "ORDER BY 1 LIMIT ?2"
            )
            runs = runs_of_keys(self.connection, _keys(self.connection, query, (key, MOST_RUNS)), self._first_call_at)
        event = to_event(event_id, received_at, body)
        return replace(event, runs=runs, is_unmatched=is_unmatched, ended=ended or 0)


def search_events(
    connection: sqlite3.Connection,
    wanted: EventFilter,
    limit: int,
    cursor: str | None,
    is_triggering: IsTriggering,
    first_call_at: FirstCallAt,
    budget: Budget,
) -> EventPage:
    """Search events. Raises ``SelectionInvalidError`` for a cursor of another search."""
    search = _EventSearch(connection, wanted, is_triggering, first_call_at, budget)
    walks = [Walk(key="events.key", source="events NOT INDEXED", rows="events NOT INDEXED")]
    sent: list[int] = []
    if wanted.id is not None:
        sent = _keys(connection, "SELECT key FROM events WHERE sender_id = ? LIMIT ?", (wanted.id, _MOST_OF_ID))
        walks = [listed_walk("events", sent)]
    elif wanted.name is not None:
        named = "events INDEXED BY events_by_name"
        walks.insert(0, Walk(key="events.key", source=named, clause="name = ?", parts=[(wanted.name,)], rows=named))
    if wanted.id is not None and not sent:
        page = search.by_part_of_id(wanted.id.upper(), limit, cursor)
    else:
        page = search.by_walk(walks, limit, cursor)
    return EventPage(events=page.items, cursor=page.cursor, searched_until=page.searched_until)
