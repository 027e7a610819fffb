"""External events: their ids, and the report about names that match nothing."""

import asyncio
import os
import time
from collections.abc import Sequence

import msgspec
from temporalio.client import Client
from ulid import ULID

from durably.engine.core.run_state import Origin, origin_of
from durably.engine.model.events import CheckedEvent, IdSeed, check_event, make_id, make_received_event
from durably.engine.model.functions import KnownNames, UnmatchedEvents
from durably.engine.model.settings import EngineSettings, trace_of_run
from durably.engine.temporal.apps.record_workflows import TOPIC
from durably.engine.temporal.ids import make_event_id, topic_name_of
from durably.engine.temporal.messages import EventRecord, TopicRecord
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.events import Event, EventReceipt

from .router import Router

_PARALLEL_EVENTS = 20
_NAMES_FRESH_SECONDS = 10.0
_MOST_NAMES = 1000


class EventReceiver:
    def __init__(self, client: Client, router: Router, settings: EngineSettings) -> None:
        self._client = client
        self._router = router
        self._settings = settings
        self._unmatched = UnmatchedEvents(are_stored=False)
        self._names = KnownNames()
        self._names_read_at: float | None = None
        self.has_synced = False
        """Whether this process has synced functions. The index has them later."""

    async def receive(
        self,
        events: Sequence[Event],
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
    ) -> EventReceipt:
        """Route events. They are durable when this returns.

        A repeated event with an id of its sender changes nothing, as long as the server keeps ended workflows. Raises
        ``EventInvalidError``.
        """
        checked = [check_event(event, self._settings.max_event_bytes) for event in events]
        id_seed = IdSeed(seed) if seed else None
        now = wall_clock()
        sent_by = (
            _Sender(traceparent=traceparent) if sender is None else await self._find_sender(sender, now, traceparent)
        )
        records = [_record(each, id_seed, index, now, sent_by) for index, each in enumerate(checked)]
        limit = asyncio.Semaphore(_PARALLEL_EVENTS)

        async def route(record: EventRecord, event: Event) -> bool:
            async with limit:
                return (await self._router.route(record, is_deduplicated=bool(event.id))).is_known

        known = await asyncio.gather(*map(route, records, events))
        unmatched = dict.fromkeys(event.name for event, is_known in zip(events, known, strict=True) if not is_known)
        explained = self._unmatched.explain(unmatched, await self._known_names()) if unmatched else {}
        return EventReceipt(ids=[record.id for record in records], unmatched=explained)

    async def _find_sender(self, run_id: str, now: int, traceparent: str | None) -> "_Sender":
        """The run that sends events.

        Its events continue its trace and its chain.
        """
        run = await self._router.records.find_run(run_id)
        if run is None:
            return _Sender(run_id, traceparent)
        traceparent = traceparent or trace_of_run(self._settings.tracing, run_id, run.traceparent)
        return _Sender(run_id, traceparent, origin_of(0, run.origin, now), run.chain)

    async def _known_names(self) -> KnownNames:
        """Known event names for explanations. They may lag, unlike the routes of events."""
        if self._names_read_at is None or time.monotonic() - self._names_read_at > _NAMES_FRESH_SECONDS:
            self._names_read_at = time.monotonic()
            self._names = await self._read_names()
        if self.has_synced and not self._names.has_functions:
            self._names_read_at = None
            return msgspec.structs.replace(self._names, has_functions=True)
        return self._names

    async def _read_names(self) -> KnownNames:
        triggering, awaited = list[str](), list[str]()
        async for found in self._client.list_workflows("WorkflowType = 'durably.Topic'", limit=_MOST_NAMES):
            name = topic_name_of(found.id)
            topic: TopicRecord = await found.memo_value(TOPIC, TopicRecord(), type_hint=TopicRecord)
            if topic.triggers:
                triggering.append(name)
            elif topic.paths:
                awaited.append(name)
        functions = await self._client.count_workflows("WorkflowType = 'durably.Function'")
        return KnownNames(triggering, awaited, has_functions=functions.count > 0)


class _Sender(msgspec.Struct, frozen=True):
    """The parts of an event that come from its sender."""

    run_id: str | None = None
    traceparent: str | None = None
    origin: Origin | None = None
    chain: tuple[str, ...] = ()


def _record(checked: CheckedEvent, seed: IdSeed | None, index: int, now: int, sender: _Sender) -> EventRecord:
    event = checked.event
    at = now
    if event.id:
        event_id = make_event_id(0, event.id)
    elif seed is not None:
        event_id = seed.id_of(index)
        at = ULID.from_str(event_id).milliseconds
    else:
        event_id = make_id(now, os.urandom)
    received = make_received_event(event, event_id, now, data=checked.data)
    return EventRecord(
        id=event_id,
        name=event.name,
        body=msgspec.Raw(received.body),
        origin=sender.origin,
        traceparent=sender.traceparent,
        at=at,
        sender=sender.run_id,
        chain=sender.chain,
        index=index,
    )
