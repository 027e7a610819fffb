"""Where events go: into the database, to the runs they cancel, the functions they trigger, and the steps that wait.

Part of an entry in the ledger; runs in the writer's thread, in the transaction of whatever brought the event.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from durably.engine.expressions import compile_expression
from durably.engine.inputs import WaitResolved
from durably.protocol.events import Event, InternalEvent
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .arrivals import Arrival, announce, arrive
from .ids import IdSeed
from .narrowing import value_at
from .registry import Function
from .store import RunRow

if TYPE_CHECKING:
    from .ledger import Entry

_IDEMPOTENCY_MILLISECONDS = round(IDEMPOTENCY_PERIOD.total_seconds() * 1000)

_Listened = tuple[str | None, str | None]
"""A place by which waits for an event are narrowed down, and the value that the event has there."""


class EventRouter:
    """Events that the engine sends while another is being taken are taken after it: however many runs end by each
    other's ends, the order is that in which it happened."""

    def __init__(self, entry: "Entry") -> None:
        self._entry = entry
        self._triggers: dict[int, Arrival] = {}
        self._announced: deque[Arrival] = deque()
        self._is_taking = False

    def send(self, events: Sequence[Event], seed: IdSeed | None) -> list[str]:
        """Take events from outside, and answer with their ids. An event that was sent before changes nothing,
        and has the id that it got then."""
        ids = []
        for index, event in enumerate(events):
            event_id = seed.id_of(index) if seed else self._entry.new_id()
            known = self._find_duplicate(event)
            if known is None:
                self._take(arrive(event, event_id, self._entry.now), sender_id=event.id or None)
            ids.append(known or event_id)
        return ids

    def invoke(self, function: Function, event: Event, event_id: str, metadata: dict[str, Any]) -> RunRow | None:
        """Start a run of one function, whatever triggers it otherwise; ``None`` where none starts, or not yet."""
        event = msgspec.structs.replace(event, data={**(event.data or {}), "_inngest": metadata})
        return self.take_for(function, arrive(event, event_id, self._entry.now))

    def take_for(self, function: Function, arrival: Arrival) -> RunRow | None:
        """Take an event that is meant for one function; others that it triggers start as well."""
        key = self._take(arrival, besides=function)
        assert key is not None, "its id is new"
        return self._entry.admissions.trigger(function, key)

    def emit(self, name: InternalEvent, data: bytes) -> None:
        """Send one of the engine's own events; ``data`` is JSON."""
        self._announced.append(announce(name, data, self._entry.new_id(), self._entry.now))
        if not self._is_taking:
            self._take_announced()

    def trigger_of(self, event_key: int) -> Arrival:
        """The event that a run was triggered by."""
        trigger = self._triggers.get(event_key)
        if trigger is None:
            event_id, name, body = self._entry.store.event(event_key)
            trigger = self._triggers[event_key] = Arrival(event_id, name, body)
        return trigger

    def _find_duplicate(self, event: Event) -> str | None:
        if not event.id:
            return None
        return self._entry.store.find_sent_event(event.id, self._entry.now - _IDEMPOTENCY_MILLISECONDS)

    def _take(self, arrival: Arrival, *, sender_id: str | None = None, besides: Function | None = None) -> int | None:
        """``None`` where there is an event of this id already, from the same seed: nothing is done then."""
        was_taking, self._is_taking = self._is_taking, True
        try:
            key = self._receive(arrival, sender_id, besides)
        finally:
            self._is_taking = was_taking
        if not was_taking:
            self._take_announced()
        return key

    def _take_announced(self) -> None:
        self._is_taking = True
        try:
            while self._announced:
                self._receive(self._announced.popleft(), None, None)
        finally:
            self._is_taking = False

    def _receive(self, arrival: Arrival, sender_id: str | None, besides: Function | None) -> int | None:
        """Cancellations come first: what an event starts, it does not cancel, and finds the place of what it does."""
        entry = self._entry
        arrival.body = entry.to_stored(arrival.body)
        key = entry.store.add_event(arrival.id, sender_id, arrival.name, entry.now, arrival.body)
        if key is None:
            return None
        listened = [(path, value_at(path, arrival.fields)) for path in entry.store.wait_paths(arrival.name)]
        if listened:
            self._cancel(arrival, listened)
        functions = entry.registry.triggered_by(arrival)
        if functions:
            self._triggers[key] = arrival
        for function in functions:
            if besides is None or function.id != besides.id:
                entry.admissions.trigger(function, key)
        for path, value in listened:
            self._wake(arrival, path, value)
        return key

    def _cancel(self, arrival: Arrival, listened: Sequence[_Listened]) -> None:
        entry = self._entry
        reason = f"the run was cancelled by the event {arrival.name!r}"
        for path, value in listened:
            for run_key, expression in entry.store.flow.cancels(arrival.name, path, value, entry.now):
                if expression is None or self._matches(run_key, expression, arrival):
                    entry.cancel(run_key, reason)

    def _wake(self, arrival: Arrival, path: str | None, value: str | None) -> None:
        """End the waits for the event. Those narrowed down to something else are never looked at."""
        entry = self._entry
        for run_key, step_id, expression in entry.store.event_waits(arrival.name, path, value):
            if expression is None or self._matches(run_key, expression, arrival):
                entry.happen(run_key, WaitResolved(step_id, arrival.body))

    def _matches(self, run_key: int, expression: str, arrival: Arrival) -> bool:
        trigger = self.trigger_of(self._entry.store.run(run_key).event_key)
        return compile_expression(expression).matches(trigger.fields, arrival.fields)
