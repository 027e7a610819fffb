"""Searches of events: by name, time, id, expression and lack of effects.

They run in the reader's threads. Results are newest first.
"""

import datetime as dt
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from durably.engine.core.expressions import Expression
from durably.engine.reports import EventPage, EventReport, RunLink
from durably.engine.views import to_datetime
from durably.protocol.events import InternalEvent

from .queries import FirstCallAt, event_view
from .run_links import run_links
from .run_search import Budget
from .walks import (
    AFTER_KEYS,
    Walk,
    farthest,
    is_key_cursor,
    key_range,
    match_ids,
    read_cursor,
    read_id_cursor,
    read_id_time,
    short_walk,
)

MOST_RUNS = 50
"""Runs of one event that a page has."""
MOST_PAGE_BYTES = 1024 * 1024
"""Bytes of events after which a page ends."""
_MOST_OF_ID = 100
_INTERNAL = InternalEvent.FUNCTION_INVOKED.partition("/")[0] + "/"

_HAS_NO_EFFECT = (
    f"ended IS NULL AND substr(name, 1, {len(_INTERNAL)}) <> '{_INTERNAL}' "
    "AND NOT EXISTS (SELECT 1 FROM runs WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM run_events WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM held_events WHERE event_key = events.key)"
)

IsTriggering = Callable[[str], bool]
"""Whether events of a name trigger a function now."""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The events that a search is for.

    They were received from ``received_after`` until before ``received_before``, in milliseconds since the epoch.
    ``condition`` is over ``event``. ``id`` is the id of the engine or of the sender, or the beginning or the end of the
    engine's.
    """

    name: str | None = None
    received_after: int | None = None
    received_before: int | None = None
    is_unmatched: bool | None = None
    condition: Expression | None = None
    id: str | None = None


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
            if not sent and not is_key_cursor(cursor):
                return self._search_by_part_of_id(wanted.id.upper(), limit, cursor)
            walks = [_listed_walk([key for (key,) in sent])]
        else:
            walks = [Walk(key="events.key", source="events NOT INDEXED", rows="events NOT INDEXED")]
            if wanted.name is not None:
                named = "events INDEXED BY events_by_name"
                walks.insert(
                    0, Walk(key="events.key", source=named, clause="name = ?", parts=[(wanted.name,)], rows=named)
                )
        low, high = key_range(self._connection, "events", "received_at", wanted.received_after, wanted.received_before)
        high = min(high, read_cursor(cursor))
        walk, end = farthest(self._connection, walks, low, high)
        return self._page(walk, low, end, high, limit)

    def _search_by_part_of_id(self, text: str, limit: int, cursor: str | None) -> EventPage:
        if not (text.isascii() and text.isalnum()):
            return EventPage(events=[], cursor=None)
        matches = match_ids(self._connection, "events", text, read_id_cursor(cursor), limit)
        page = self._page(_listed_walk(matches.keys), 0, 0, AFTER_KEYS, limit)
        end = matches.end
        if page.cursor is not None:
            (end,) = self._connection.execute("SELECT id FROM events WHERE key = ?", (int(page.cursor),)).fetchone()
        return EventPage(events=page.events, cursor=end, searched_until=None if end is None else read_id_time(end))

    def _page(self, walk: Walk, low: int, end: int, high: int, limit: int) -> EventPage:
        """The rows from ``end`` until before ``high``.

        ``low`` is the end of the whole search.
        """
        found: list[EventReport] = []
        last, size = high, 0
        for row in self._rows(walk, end, high):
            report = self._match(row)
            size += len(row[3]) if report is not None else 0
            if report is not None and found and (len(found) == limit or size > MOST_PAGE_BYTES):
                return EventPage(events=found, cursor=str(last))
            if report is not None:
                found.append(report)
                last = row[0]
            if self._budget.is_spent:
                end = row[0]
                break
        if end <= low:
            return EventPage(events=found, cursor=None)
        return EventPage(events=found, cursor=str(end), searched_until=self._received_at(end))

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
            f"SELECT events.key, events.id, received_at, body, {_HAS_NO_EFFECT}, name FROM {walk.rows} "
            f"WHERE {' AND '.join(clauses)} ORDER BY {walk.key} DESC",
            values,
        )

    def _match(self, row: Any) -> EventReport | None:
        """The event of a row, if it matches the conditions that SQL does not compare."""
        key, event_id, received_at, body, has_no_effect, name = row
        is_unmatched = bool(has_no_effect) and not self._is_triggering(name)
        if self._wanted.is_unmatched not in (None, is_unmatched):
            return None
        condition = self._wanted.condition
        if condition is not None:
            self._budget.spend()
            if not condition.matches(msgspec.json.decode(body, type=dict[str, Any]), now=self._budget.now):
                return None
        runs = [] if has_no_effect else self._runs(key)
        return EventReport(event=event_view(event_id, received_at, body), runs=runs, is_unmatched=is_unmatched)

    def _runs(self, event_key: int) -> list[RunLink]:
        keys = self._connection.execute(
            "SELECT key FROM runs WHERE event_key = ? UNION SELECT run_key FROM run_events WHERE event_key = ? "
            "ORDER BY 1 LIMIT ?",
            (event_key, event_key, MOST_RUNS),
        ).fetchall()
        return run_links(self._connection, [key for (key,) in keys], self._first_call_at)

    def _received_at(self, key: int) -> dt.datetime | None:
        row = self._connection.execute(
            "SELECT received_at FROM events WHERE key >= ? ORDER BY key LIMIT 1", (key,)
        ).fetchone()
        return to_datetime(row[0]) if row else None


def _listed_walk(keys: Sequence[int]) -> Walk:
    listed = msgspec.json.encode(keys).decode()
    rows = "(SELECT value FROM json_each(?)) AS listed CROSS JOIN events ON events.key = listed.value"
    return short_walk("events.key", rows, (listed,))
