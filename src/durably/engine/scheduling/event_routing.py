"""Routing of events: runs they cancel, functions they trigger, steps that wait for them."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from durably.engine.core.expressions import Equality, Expression, compile_expression
from durably.engine.core.inputs import WaitResolved
from durably.engine.core.run_state import Origin, origin_of_event
from durably.engine.sqlite.tables.runs import RunRow
from durably.protocol.events import Event, InternalEvent
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .event_outcomes import MOST_NOTED, EventOutcome
from .events import Arrival, CheckedEvent, IdSeed, announce, arrive
from .registry import Function
from .reruns import origin_before

if TYPE_CHECKING:
    from .transaction import Entry

_IDEMPOTENCY_MILLISECONDS = round(IDEMPOTENCY_PERIOD.total_seconds() * 1000)

_NO_OUTCOME = EventOutcome([], 0)

_Listened = tuple[str | None, str | None]
"""A place by which waits for an event are narrowed down, and the value that the event has there."""


class Sent(msgspec.Struct, frozen=True):
    """The ids of stored events, and the names of events that match nothing."""

    ids: list[str]
    unmatched: list[str]
    outcomes: dict[str, EventOutcome] = {}


class EventRouter:
    """Events that the engine sends while another is being taken are taken after it: however many runs end by each
    other's ends, the order is that in which it happened."""

    def __init__(self, entry: "Entry") -> None:
        self._entry = entry
        self._triggers: dict[int, Arrival] = {}
        self._announced: deque[Arrival] = deque()
        self._is_taking = False
        self._ended: dict[str, EventOutcome] = {}

    def send(self, events: Sequence[CheckedEvent], seed: IdSeed | None, sender: str | None = None) -> "Sent":
        """Store events from outside. A repeated event changes nothing, and keeps its first id.
        ``sender`` is the id of the run that sends them, if any."""
        origin = None if sender is None else self._origin_of(sender)
        ids = []
        for index, checked in enumerate(events):
            event = checked.event
            event_id = seed.id_of(index) if seed else self._entry.new_id()
            known = self._find_duplicate(event)
            if known is None:
                arrival = arrive(event, event_id, self._entry.now, origin, checked.data)
                self._take(arrival, sender_id=event.id or None)
            ids.append(known or event_id)
        names = dict.fromkeys(checked.event.name for checked in events)
        return Sent(ids, [name for name in names if not self._is_known(name)], self._ended)

    def _is_known(self, name: str) -> bool:
        """Whether anything is triggered by events of this name, cancelled by them, or has ever waited for one."""
        return self._entry.registry.knows_event(name) or bool(self._entry.store.wait_paths(name))

    def invoke(
        self,
        function: Function,
        event: Event,
        event_id: str,
        metadata: dict[str, Any],
        origin: Origin | None = None,
    ) -> RunRow | None:
        """Start a run of one function, whatever triggers it otherwise; ``None`` where none starts, or not yet."""
        event = msgspec.structs.replace(event, data={**(event.data or {}), "_inngest": metadata})
        return self.take_for(function, arrive(event, event_id, self._entry.now, origin))

    def take_for(self, function: Function, arrival: Arrival) -> RunRow | None:
        """Take an event that is meant for one function; others that it triggers start as well."""
        key = self._take(arrival, besides=function)
        assert key is not None, "its id is new"
        return self._entry.admissions.trigger(function, key)

    def emit(self, name: InternalEvent, data: bytes, origin: Origin | None) -> None:
        """Send one of the engine's own events; ``data`` is JSON."""
        self._announced.append(announce(name, data, self._entry.new_id(), self._entry.now, origin))
        if not self._is_taking:
            self._take_announced()

    def trigger_of(self, event_key: int) -> Arrival:
        """The event that a run was triggered by."""
        trigger = self._triggers.get(event_key)
        if trigger is None:
            event_id, name, body, origin = self._entry.store.event(event_key)
            trigger = self._triggers[event_key] = Arrival(event_id, name, body, origin=origin)
        return trigger

    def _origin_of(self, run_id: str) -> Origin | None:
        """The origin of an event that a run sends; ``None`` if the run does not exist."""
        run_key = self._entry.find_run_key(run_id)
        if run_key is None:
            return None
        run = self._entry.store.run(run_key)
        return origin_of_event(run_key, origin_before(run, self.trigger_of(run.event_key)), self._entry.now)

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
        key = entry.store.add_event(arrival.id, sender_id, arrival.name, entry.now, arrival.body, arrival.origin)
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
                    self._note(arrival, partial(self._describe_cancel, run_key))
                    entry.cancel(run_key, reason)

    def _wake(self, arrival: Arrival, path: str | None, value: str | None) -> None:
        """End the waits for the event. Those narrowed down to something else are never looked at."""
        entry = self._entry
        for run_key, step_id, expression in entry.store.event_waits(arrival.name, path, value):
            if expression is None or self._matches(run_key, expression, arrival):
                self._note(arrival, partial(self._describe_wait, run_key, step_id))
                entry.happen(run_key, WaitResolved(step_id, arrival.body))

    def _describe_cancel(self, run_key: int) -> str:
        return f"it cancelled the run {self._entry.store.run(run_key).id}"

    def _describe_wait(self, run_key: int, step_id: str) -> str:
        name = self._entry.wait_name(run_key, step_id)
        return f"it ended the wait {name!r} of the run {self._entry.store.run(run_key).id}"

    def _note(self, arrival: Arrival, describe: Callable[[], str]) -> None:
        """Keep what an event does, for ``Sent``. The first few are described, because that costs queries."""
        known = self._ended.get(arrival.id, _NO_OUTCOME)
        ended = known.ended if known.count >= MOST_NOTED else [*known.ended, describe()]
        self._ended[arrival.id] = EventOutcome(ended, known.count + 1)

    def _matches(self, run_key: int, expression: str, arrival: Arrival) -> bool:
        trigger = self.trigger_of(self._entry.store.run(run_key).event_key)
        return compile_expression(expression).matches(trigger.fields, arrival.fields)


_path_decoder = msgspec.json.Decoder(tuple[str | int, ...])


def narrow(expression: Expression | None, trigger: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The place of the newcomer that has to have a value, and the value, as they are stored; ``None`` twice where
    there is no such place. ``trigger`` is the event of the run that waits."""
    equality = None if expression is None else _most_selective(expression.equalities())
    if equality is None:
        return None, None
    return msgspec.json.encode(equality.async_path).decode(), equality.wanted_key(trigger)


def value_at(path: str | None, newcomer: Mapping[str, Any]) -> str | None:
    """The value that an event has at a place that ``narrow`` told of."""
    return None if path is None else Equality(_path_decoder.decode(path)).found_key(newcomer)


def _most_selective(equalities: list[Equality]) -> Equality | None:
    """The equality that leaves the fewest waits: with the trigger's own data rather than with a constant."""
    with_trigger = (equality for equality in equalities if equality.event_path is not None)
    return next(with_trigger, None) or next(iter(equalities), None)
