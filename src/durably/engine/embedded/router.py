"""Where events go: into the database, to the functions they trigger, and to the steps that wait for them.

Part of an entry in the ledger; runs in the writer's thread, in the transaction of whatever brought the event.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from durably.engine.expressions import Equality, compile_expression
from durably.engine.inputs import WaitResolved
from durably.protocol.events import Event, InternalEvent
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .arrivals import Arrival, announce, arrive
from .ids import IdSeed
from .registry import Function
from .views import InvokeReceipt

if TYPE_CHECKING:
    from .ledger import Entry

_IDEMPOTENCY_MILLISECONDS = round(IDEMPOTENCY_PERIOD.total_seconds() * 1000)
_PATH = msgspec.json.Decoder(tuple[str | int, ...])


class EventRouter:
    def __init__(self, entry: "Entry") -> None:
        self._entry = entry
        self._triggers: dict[int, Arrival] = {}

    def send(self, events: Sequence[Event], seed: IdSeed | None) -> list[str]:
        """Take events from outside, and answer with their ids. An event that was sent before changes nothing,
        and has the id that it got then."""
        ids = []
        for index, event in enumerate(events):
            event_id = seed.id_of(index) if seed else self._entry.new_id()
            known = self._find_duplicate(event, event_id if seed else None)
            if known is None:
                self._take(arrive(event, event_id, self._entry.now), sender_id=event.id or None)
            ids.append(known or event_id)
        return ids

    def invoke(self, function: Function, event: Event, metadata: dict[str, Any]) -> InvokeReceipt:
        """Start a run of one function, whatever triggers it otherwise."""
        event = msgspec.structs.replace(event, data={**(event.data or {}), "_inngest": metadata})
        arrival = arrive(event, self._entry.new_id(), self._entry.now)
        key = self._take(arrival, besides=function)
        return InvokeReceipt(event_id=arrival.id, run_id=self._entry.start_run(function, key))

    def emit(self, name: InternalEvent, data: bytes) -> None:
        """Send one of the engine's own events; ``data`` is JSON."""
        self._take(announce(name, data, self._entry.new_id(), self._entry.now))

    def trigger_of(self, event_key: int) -> Arrival:
        """The event that a run was triggered by."""
        trigger = self._triggers.get(event_key)
        if trigger is None:
            event_id, name, body = self._entry.store.event(event_key)
            trigger = self._triggers[event_key] = Arrival(event_id, name, body)
        return trigger

    def _find_duplicate(self, event: Event, seeded_id: str | None) -> str | None:
        store = self._entry.store
        if event.id:
            since = self._entry.now - _IDEMPOTENCY_MILLISECONDS
            if (known := store.find_sent_event(event.id, since)) is not None:
                return known
        return seeded_id if seeded_id is not None and store.has_event(seeded_id) else None

    def _take(self, arrival: Arrival, *, sender_id: str | None = None, besides: Function | None = None) -> int:
        entry = self._entry
        body = entry.to_stored(arrival.body)
        key = entry.store.add_event(arrival.id, sender_id, arrival.name, entry.now, body)
        for function in entry.registry.triggered_by(arrival):
            if besides is None or function.id != besides.id:
                entry.start_run(function, key)
        self._wake(arrival, body)
        return key

    def _wake(self, arrival: Arrival, body: bytes) -> None:
        """End the waits for the event. Those narrowed down to something else are never looked at."""
        store = self._entry.store
        self._wake_among(arrival, body, None, None)
        for encoded in store.wait_paths(arrival.name):
            value = Equality(_PATH.decode(encoded)).found_key(arrival.fields)
            self._wake_among(arrival, body, encoded, value)

    def _wake_among(self, arrival: Arrival, body: bytes, path: str | None, value: str | None) -> None:
        entry = self._entry
        for run_key, step_id, expression in entry.store.event_waits(arrival.name, path, value):
            if expression is None or self._matches(run_key, expression, arrival):
                entry.happen(run_key, WaitResolved(step_id, body))

    def _matches(self, run_key: int, expression: str, arrival: Arrival) -> bool:
        trigger = self.trigger_of(self._entry.store.run(run_key).event_key)
        return compile_expression(expression).matches(trigger.fields, arrival.fields)
