"""Routing of events to runs, functions and waiting steps.

An event can cancel runs, trigger functions, and end the waits of steps.
"""

import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from durably.engine.core.expressions import compile_expression
from durably.engine.core.inputs import WaitResolved
from durably.engine.core.run_state import Origin
from durably.engine.model.events import CheckedEvent, IdSeed, ReceivedEvent, make_received_event, value_at
from durably.engine.model.functions import Registry, SyncedFunction, explain_unmatched
from durably.engine.model.records import RunRow
from durably.engine.model.runs import StoredEvent, to_milliseconds
from durably.engine.sqlite.after_commit import EventsStored
from durably.protocol.engine_errors import DatabaseCorruptError
from durably.protocol.events import Event
from durably.protocol.limits import IDEMPOTENCY_PERIOD

from .transaction import Transaction
from .triggers import trigger_function

_IDEMPOTENCY_MILLISECONDS = round(IDEMPOTENCY_PERIOD.total_seconds() * 1000)

_Listened = tuple[str | None, str | None]
"""A path of the wait index, and the event's value there."""


class Sent(msgspec.Struct, frozen=True):
    """The ids of stored events, and the names of events without a match."""

    ids: list[str]
    unmatched: list[str]


def send(
    transaction: Transaction,
    events: Sequence[CheckedEvent],
    seed: IdSeed | None,
    sender: str | None = None,
    traceparent: str | None = None,
) -> Sent:
    """Store events from outside.

    A repeated event changes nothing, and keeps its first id. ``sender`` is the id of the run that sends them, if any.
    Without a ``traceparent`` they continue the trace of that run.
    """
    origin, traceparent = lineage(transaction, sender, traceparent)
    ids, stored = [], list[str]()
    for index, checked in enumerate(events):
        event = checked.event
        event_id = seed.id_of(index) if seed else transaction.new_id()
        known = None
        if event.id:
            known = transaction.store.find_sent_event(event.id, transaction.now - _IDEMPOTENCY_MILLISECONDS)
        if known is None:
            received = make_received_event(event, event_id, transaction.now, origin, checked.data, traceparent)
            route(transaction, received, event.id or None)
            while transaction.internal_events:
                route(transaction, transaction.internal_events.popleft())
            stored.append(event.name)
        ids.append(known or event_id)
    names = dict.fromkeys([checked.event.name for checked in events])
    unmatched = [name for name in names if not (transaction.registry.knows_event(name) or transaction.wait_paths(name))]
    transaction.after_commit.append(EventsStored(stored, unmatched))
    return Sent(ids, unmatched)


def invoke(
    transaction: Transaction,
    function: SyncedFunction,
    event: Event,
    event_id: str,
    metadata: dict[str, Any],
    origin: Origin | None = None,
    traceparent: str | None = None,
) -> RunRow | None:
    """Start a run of one function, whatever its triggers.

    Returns ``None`` if no run starts, or if one starts later.
    """
    event = msgspec.structs.replace(event, data={**(event.data or {}), "_inngest": metadata})
    received = make_received_event(event, event_id, transaction.now, origin, traceparent=traceparent)
    return route_to(transaction, function, received, event.id or None)


def route_to(
    transaction: Transaction, function: SyncedFunction, received: ReceivedEvent, sender_id: str | None = None
) -> RunRow | None:
    """Route an event that is sent to one function.

    Other functions that it triggers start as well.
    """
    key = route(transaction, received, sender_id, except_for=function)
    assert key is not None, "its id is new"
    return trigger_function(transaction, function, key)


def route_internal_event(transaction: Transaction) -> None:
    """Route the first internal event that waits.

    Events that result from it are routed before the others that wait.
    """
    others = transaction.internal_events
    transaction.internal_events = deque([others.popleft()])
    while transaction.internal_events:
        route(transaction, transaction.internal_events.popleft())
    transaction.internal_events = others


def lineage(transaction: Transaction, sender: str | None, traceparent: str | None) -> tuple[Origin | None, str | None]:
    """The origin and the trace of an event from outside. ``sender`` is the id of the run that sends it, if any.

    The event continues ``traceparent``, otherwise the trace of that run.
    """
    run_key = None if sender is None else transaction.find_run_key(sender)
    if run_key is None:
        return None, traceparent
    run = transaction.store.run(run_key)
    trigger = transaction.event(run.event_key)
    return transaction.origin_of(run, trigger), traceparent or transaction.trace_of(run, trigger)


def route(
    transaction: Transaction,
    received: ReceivedEvent,
    sender_id: str | None = None,
    except_for: SyncedFunction | None = None,
) -> int | None:
    """Store an event, and apply its effects.

    Returns its key, or ``None`` without any effect if an event with this id exists. Cancellations come first: an event
    does not cancel the runs that it starts, and their slots are free for these.
    """
    key = transaction.store.add_event(
        received.id, sender_id, received.name, transaction.now, received.body, received.origin, received.traceparent
    )
    if key is None:
        return None
    listened = [(path, value_at(path, received.fields)) for path in transaction.wait_paths(received.name)]
    if listened:
        _cancel(transaction, received, listened)
    functions = transaction.registry.triggered_by(received, transaction.now)
    if functions:
        transaction.events[key] = received
    for function in functions:
        if except_for is None or function.id != except_for.id:
            trigger_function(transaction, function, key)
    for path, value in listened:
        _wake(transaction, received, path, value)
    return key


def _cancel(transaction: Transaction, received: ReceivedEvent, listened: Sequence[_Listened]) -> None:
    reason = f"the run was cancelled by the event {received.name!r}"
    for path, value in listened:
        for run_key, expression in transaction.flow.cancels(received.name, path, value, transaction.now):
            if expression is None or _matches(transaction, run_key, expression, received):
                transaction.note(received.id, partial(_describe_cancel, transaction, run_key), ended=1)
                transaction.cancel(run_key, reason)


def _wake(transaction: Transaction, received: ReceivedEvent, path: str | None, value: str | None) -> None:
    """End the waits for the event.

    The wait index finds them, so that other waits cost nothing.
    """
    for run_key, step_id, expression in transaction.store.event_waits(received.name, path, value):
        if expression is None or _matches(transaction, run_key, expression, received):
            transaction.note(received.id, partial(_describe_wait, transaction, run_key, step_id), ended=1)
            transaction.inputs.append((run_key, WaitResolved(step_id, received.body)))


def _matches(transaction: Transaction, run_key: int, expression: str, received: ReceivedEvent) -> bool:
    trigger = transaction.event(transaction.store.run(run_key).event_key)
    return compile_expression(expression).matches(trigger.fields, received.fields, now=transaction.now)


def _describe_cancel(transaction: Transaction, run_key: int) -> str:
    return f"it cancelled the run {transaction.store.run(run_key).id}"


def _describe_wait(transaction: Transaction, run_key: int, step_id: str) -> str:
    name = step_id
    with contextlib.suppress(DatabaseCorruptError):
        run = transaction.runs.get(run_key) or transaction.find_run(run_key)
        waits = () if run is None else run.state.waits
        name = next((wait.name for wait in waits if wait.step_id == step_id), step_id)
    return f"it ended the wait {name!r} of the run {transaction.store.run(run_key).id}"


_MOST_FUNCTIONS = 5


def explain_event(view: StoredEvent, notes: Sequence[str], registry: Registry, awaited: Collection[str]) -> list[str]:
    """Sentences on an event: its ``notes``, and why it starts no run of some functions.

    ``awaited`` are names of events that runs have waited for, or been cancelled by.
    """
    name = view.event.name
    said = [*notes] or (["it ended no wait and cancelled no run"] if name in awaited else [])
    if name not in awaited and not registry.knows_event(name):
        said.append(explain_unmatched(name, registry.known_names(awaited)))
    refused = registry.refused_by_condition(view.event.model_dump(), name, to_milliseconds(view.received_at))
    if refused:
        named = ", ".join(refused[:_MOST_FUNCTIONS]) + (", …" if len(refused) > _MOST_FUNCTIONS else "")
        count = "1 function is" if len(refused) == 1 else f"{len(refused)} functions are"
        said.append(f"{count} triggered by its name, but not started, because the condition (if_exp) is false: {named}")
    return said
