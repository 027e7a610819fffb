"""Events, read from the runs that they started. Temporal stores no others."""

import datetime as dt
import re
from collections.abc import AsyncIterator

import msgspec
from temporalio.client import WorkflowExecution

from durably.engine.core.expressions import Expression
from durably.engine.model.runs import EventPage, Run, StoredEvent, to_datetime, to_milliseconds
from durably.engine.temporal.ids import run_id_of
from durably.engine.temporal.messages import EventRecord
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError
from durably.protocol.events import Event

from .run_lists import RunFilter, RunLists
from .run_views import RunViews, memo_of

_MOST_LOOKED_AT = 200
"""Runs that are read for one page of events."""
_MOST_RUNS = 50
_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")
_UNMATCHED = (
    "an engine on Temporal stores events in the runs that they start, so it has none that matched nothing: senders get "
    "their names in the answer, and log them"
)
_event_decoder = msgspec.json.Decoder(Event)


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a list. ``id`` is an event id, or its suffix."""

    name: str | None = None
    received_after: dt.datetime | None = None
    received_before: dt.datetime | None = None
    is_unmatched: bool | None = None
    condition: Expression | None = None
    id: str | None = None


class EventLists:
    def __init__(self, lists: RunLists, views: RunViews) -> None:
        self._lists = lists
        self._views = views

    async def find(self, event_id: str) -> StoredEvent | None:
        """The event, or ``None`` if it started no run or the list lags."""
        for each in await self._started_by(event_id):
            found = await self._event_of(each, event_id)
            if found is not None:
                return found
        return None

    async def runs(self, event_id: str) -> list[Run]:
        """The runs that an event started, in their order, and their reruns."""
        runs = await self._views.views(reversed(await self._lists.read(RunFilter(event_id=event_id))))
        return [run for run in runs if event_id in run.event_ids]

    async def list_events(self, wanted: EventFilter, limit: int, cursor: str | None) -> list[StoredEvent]:
        """A page of events. ``cursor`` is an event id."""
        position = None
        if cursor is not None:
            started = await self._started_by(cursor)
            if not started:
                raise SelectionInvalidError(f"the cursor {cursor!r} does not name an event of this engine (any more)")
            position = started[-1]
        events: list[StoredEvent] = []
        while True:
            page = await self._page(wanted, limit - len(events), position)
            events += page.events
            if page.cursor is None or len(events) >= limit:
                return events[:limit]
            position = await self._views.describe(page.cursor)

    async def search(self, wanted: EventFilter, limit: int, cursor: str | None) -> EventPage:
        """A page of events.

        Raises ``NotSupportedError`` for unmatched events, and ``SelectionInvalidError`` for an unknown cursor.
        """
        if wanted.is_unmatched:
            raise NotSupportedError(_UNMATCHED)
        if wanted.id is not None and _WHOLE_ID.match(wanted.id.upper()) is not None:
            event = await self.find(wanted.id.upper())
            return EventPage(events=[] if event is None else [await self._report(event)], cursor=None)
        position = None
        if cursor is not None and (position := await self._views.describe(cursor)) is None:
            raise SelectionInvalidError(f"the cursor {cursor!r} does not name a run of this engine (any more)")
        return await self._page(wanted, limit, position)

    async def _page(self, wanted: EventFilter, limit: int, position: WorkflowExecution | None) -> EventPage:
        events: list[StoredEvent] = []
        last: WorkflowExecution | None = None
        seen = 0
        of_runs = RunFilter(
            event_name=wanted.name, started_after=wanted.received_after, started_before=wanted.received_before
        )
        async for run in self._lists.walk(of_runs, position):
            if len(events) >= limit or seen == _MOST_LOOKED_AT:
                assert last is not None
                searched_until = None if len(events) >= limit else last.start_time
                return EventPage(events=events, cursor=run_id_of(last.id), searched_until=searched_until)
            seen, last = seen + 1, run
            async for event in self._events_first_shown_at(run, wanted):
                events.append(await self._report(event))
        return EventPage(events=events, cursor=None)

    async def _events_first_shown_at(self, run: WorkflowExecution, wanted: EventFilter) -> AsyncIterator[StoredEvent]:
        """The events of a run that no newer run has."""
        memo = await memo_of(run)
        if memo.rerun_of is not None:
            return
        for event_id in memo.event_ids:
            if wanted.id is not None and not event_id.endswith(wanted.id.upper()):
                continue
            started = await self._started_by(event_id)
            if started and started[-1].id != run.id:
                continue
            event = await self._event_of(run, event_id)
            if event is not None and self._fits(event, wanted):
                yield event

    def _fits(self, event: StoredEvent, wanted: EventFilter) -> bool:
        if wanted.condition is None:
            return True
        now = to_milliseconds(dt.datetime.now(dt.UTC))
        fields = msgspec.json.decode(msgspec.json.encode(event.event))
        return wanted.condition.matches(fields, now=now)

    async def _started_by(self, event_id: str) -> list[WorkflowExecution]:
        """The runs that an event started, without reruns, in their order."""
        found = []
        for each in reversed(await self._lists.read(RunFilter(event_id=event_id))):
            memo = await memo_of(each)
            if event_id in memo.event_ids and memo.rerun_of is None:
                found.append(each)
        return found

    async def _event_of(self, run: WorkflowExecution, event_id: str) -> StoredEvent | None:
        given = await self._views.input(run_id_of(run.id))
        for event in () if given is None else given.events:
            if event.id == event_id:
                return event_view(event)
        return None

    async def _report(self, event: StoredEvent) -> StoredEvent:
        started = (await self._started_by(event.id))[:_MOST_RUNS]
        links = [await self._views.link(each, has_relation=False) for each in started]
        return msgspec.structs.replace(event, runs=links)


def event_view(event: EventRecord) -> StoredEvent:
    return StoredEvent.of(event.id, _event_decoder.decode(event.body), to_datetime(event.at))
