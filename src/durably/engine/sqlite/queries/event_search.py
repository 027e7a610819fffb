"""Searches of events: by name, time, id, expression and lack of effects.

They run in the reader's threads. Results are newest first.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from durably.engine.core.expressions import Expression
from durably.engine.model.runs import EventPage, Run, StoredEvent
from durably.protocol.events import INTERNAL_PREFIX

from .runs import FirstCallAt, runs_of_keys, to_event
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
)

MOST_RUNS = 50
"""Maximum number of runs of one event on a page."""
_MOST_OF_ID = 100

_HAS_NO_EFFECT = (
    f"ended IS NULL AND substr(name, 1, {len(INTERNAL_PREFIX)}) <> '{INTERNAL_PREFIX}' "
    "AND NOT EXISTS (SELECT 1 FROM runs WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM run_events WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM pending_events WHERE event_key = events.key)"
)

IsTriggering = Callable[[str], bool]
"""Returns whether events of a name trigger a function now."""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The filter of a search for events.

    - ``received_after``, ``received_before``: A half-open interval, in milliseconds since the epoch.
    - ``condition``: Over ``event``.
    - ``id``: The id of the engine or of the sender, or the beginning or the end of the engine's.
    - ``has_runs``: With the runs that they started.
    """

    name: str | None = None
    received_after: int | None = None
    received_before: int | None = None
    is_unmatched: bool | None = None
    condition: Expression | None = None
    id: str | None = None
    has_runs: bool = True


class EventSearch:
    """One request of a search.

    Raises ``SelectionInvalidError`` for a cursor of another search.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        wanted: EventFilter,
        is_triggering: IsTriggering,
        first_call_at: FirstCallAt,
        budget: Budget,
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._is_triggering = is_triggering
        self._first_call_at = first_call_at
        self._budget = budget

    def read(self, limit: int, cursor: str | None) -> EventPage:
        wanted = self._wanted
        if wanted.id is not None:
            sent = self._connection.execute(
                "SELECT key FROM events WHERE sender_id = ? LIMIT ?", (wanted.id, _MOST_OF_ID)
            ).fetchall()
            if not sent:
                return self._search_by_part_of_id(wanted.id.upper(), limit, cursor)
            walks = [listed_walk("events", [key for (key,) in sent])]
        else:
            walks = [Walk(key="events.key", source="events NOT INDEXED", rows="events NOT INDEXED")]
            if wanted.name is not None:
                named = "events INDEXED BY events_by_name"
                walks.insert(
                    0, Walk(key="events.key", source=named, clause="name = ?", parts=[(wanted.name,)], rows=named)
                )
        low, high = key_range(self._connection, "events", "received_at", wanted.received_after, wanted.received_before)
        high = min(high, read_cursor(self._connection, "events", cursor))
        walk, end = farthest(self._connection, walks, low, high)
        return _to_events(self._page(walk, low, end, high, limit))

    def _search_by_part_of_id(self, text: str, limit: int, cursor: str | None) -> EventPage:
        if not (text.isascii() and text.isalnum()):
            return EventPage(events=[], cursor=None)
        read_cursor(self._connection, "events", cursor)
        matches = match_ids(self._connection, "events", text, cursor or AFTER_IDS, limit)
        page = self._page(listed_walk("events", matches.keys), 0, 0, AFTER_KEYS, limit)
        return _to_events(page_of_ids(page, matches.end))

    def _page(self, walk: Walk, low: int, end: int, high: int, limit: int) -> Page[StoredEvent]:
        searched = Searched("events", "received_at", low, end, high)
        rows = self._rows(walk, end, high)
        return read_page(self._connection, rows, self._match, searched, limit, self._budget, lambda row: len(row[3]))

    def _rows(self, walk: Walk, end: int, high: int) -> sqlite3.Cursor:
        wanted = self._wanted
        clauses, values = [walk.rows_clause, f"{walk.key} >= ?", f"{walk.key} < ?"], [*walk.values, end, high]
        for clause, value in (
            ("name = ?", wanted.name),
            ("received_at >= ?", wanted.received_after),
            ("received_at < ?", wanted.received_before),
        ):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        if wanted.is_unmatched:
            clauses.append(_HAS_NO_EFFECT)
        return self._connection.execute(
            f"SELECT events.key, events.id, received_at, body, {_HAS_NO_EFFECT}, name, ended FROM {walk.rows} "
            f"WHERE {' AND '.join(clauses)} ORDER BY {walk.key} DESC",
            values,
        )

    def _match(self, row: Any) -> StoredEvent | None:
        """The event of a row, if it matches the conditions that SQL does not compare."""
        key, event_id, received_at, body, has_no_effect, name, ended = row
        is_unmatched = bool(has_no_effect) and not self._is_triggering(name)
        if self._wanted.is_unmatched not in (None, is_unmatched):
            return None
        condition = self._wanted.condition
        if condition is not None:
            self._budget.spend()
            if not condition.matches(msgspec.json.decode(body, type=dict[str, Any]), now=self._budget.now):
                return None
        runs = [] if has_no_effect or not self._wanted.has_runs else self._runs(key)
        event = to_event(event_id, received_at, body)
        return replace(event, runs=runs, is_unmatched=is_unmatched, ended=ended or 0)

    def _runs(self, event_key: int) -> list[Run]:
        keys = self._connection.execute(
            "SELECT key FROM runs WHERE event_key = ? UNION SELECT run_key FROM run_events WHERE event_key = ? "
            "ORDER BY 1 LIMIT ?",
            (event_key, event_key, MOST_RUNS),
        ).fetchall()
        return runs_of_keys(self._connection, [key for (key,) in keys], self._first_call_at)


def _to_events(page: Page[StoredEvent]) -> EventPage:
    return EventPage(events=page.items, cursor=page.cursor, searched_until=page.searched_until)
