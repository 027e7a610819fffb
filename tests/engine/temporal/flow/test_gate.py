"""Gates decide as the engine on SQLite does, also after they continue in another execution of their workflow."""

import random
from typing import Any

import msgspec
import pytest

from durably.engine.core.flow.admission import Batched, Debounced, Skip, Trigger, admit
from durably.engine.core.flow.buckets import BucketKind
from durably.engine.core.flow.config import read_flow
from durably.engine.temporal.flow.gate import Gate, GateOutcome, GateRequest, GateState, option_of_gate
from durably.engine.temporal.messages import EventRecord

from ...core.flow.configs import config_of

NOW = 1_700_000_000_000
OPTIONS: dict[BucketKind, dict[str, Any]] = {
    BucketKind.IDEMPOTENCY: {"idempotency": "event.data.order"},
    BucketKind.RATE_LIMIT: {"rateLimit": {"limit": 20, "period": "60s"}},
    BucketKind.DEBOUNCE: {"debounce": {"period": "10s", "timeout": "30s"}},
    BucketKind.BATCH: {"batchEvents": {"maxSize": 4, "timeout": "20s"}},
}


def request_of(kind: BucketKind, number: int, at: int) -> GateRequest:
    event = EventRecord(id=f"e{number}", name="order/placed", body=msgspec.Raw(b"{}"), at=at, index=number)
    option = option_of_gate("gate", read_flow(config_of(**OPTIONS[kind])), kind)
    return GateRequest(option=option, event_id=event.id, ts=at, size=2, event=event, run_id=f"r{number}")


def continued(gate: Gate) -> Gate:
    return Gate(msgspec.json.decode(msgspec.json.encode(gate.state), type=GateState))


def started(gate: Gate) -> list[str]:
    """The ids of events for which runs start, taken out of the gate."""
    found = [event.id for held in gate.state.releases for event in held.events]
    gate.state.releases.clear()
    return found


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_gate_decides_as_on_sqlite(kind: BucketKind) -> None:
    flow = read_flow(config_of(**OPTIONS[kind]))
    randomly = random.Random(str(kind))
    gate, stored, now = Gate(GateState()), dict[str, bytes](), NOW
    for number in range(200):
        now += randomly.choice((100, 1000, 5000))
        if gate.state.option is not None:
            gate.fire(now)
            due = gate.state.bucket is None or gate.state.bucket.fires_at is None
            if due and kind in (BucketKind.DEBOUNCE, BucketKind.BATCH):
                stored.clear()  # Its timer fired.
        trigger = Trigger(number + 1, {"ts": now, "data": {"order": "a"}}, 2)
        expected = admit(flow, trigger, stored.get, now)
        for change in expected.changes:
            if change.state is None:
                stored.pop(change.bucket.id, None)
            else:
                stored[change.bucket.id] = change.state
        outcome = {Skip: GateOutcome.SKIPPED, Debounced: GateOutcome.HELD, Batched: GateOutcome.HELD}
        answer = gate.admit(request_of(kind, number, now), now)
        assert answer.outcome == outcome.get(type(expected.outcome), GateOutcome.ADMITTED)
        bucket = gate.state.bucket
        assert (None if bucket is None else bucket.state) == next(iter(stored.values()), None)
        if randomly.random() < 0.1:
            gate = continued(gate)


def test_a_debounce_keeps_the_last_event_though_it_arrives_first() -> None:
    gate = Gate(GateState())
    for number in (1, 3, 2):
        gate.admit(request_of(BucketKind.DEBOUNCE, number, NOW), NOW)
    gate.fire(NOW + 10_000)
    assert started(gate) == ["e3"]


def test_a_batch_has_its_events_in_the_order_of_their_arrival() -> None:
    gate = Gate(GateState())
    for number in (2, 4, 1, 3):
        gate.admit(request_of(BucketKind.BATCH, number, NOW), NOW)
    assert started(gate) == ["e1", "e2", "e3", "e4"]


def test_a_batch_closes_before_it_is_larger_than_a_payload() -> None:
    gate = Gate(GateState())
    for number in range(2):
        request = msgspec.structs.replace(request_of(BucketKind.BATCH, number, NOW), size=600_000)
        gate.admit(request, NOW)
    assert started(gate) == ["e0", "e1"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_gate_ends_empty(kind: BucketKind) -> None:
    gate, now = Gate(GateState()), NOW
    for number in range(3):
        gate.admit(request_of(kind, number, now), now)
    for _ in range(10):
        due = gate.due()
        if due is None:
            break
        now = max(now, due)
        gate.fire(now)
    started(gate)
    assert gate.is_empty
    assert now - NOW <= 24 * 3_600_000


def test_an_event_gets_its_answer_again_but_not_for_ever() -> None:
    gate = Gate(GateState())
    request = request_of(BucketKind.RATE_LIMIT, 1, NOW)
    answer = gate.admit(request, NOW)
    assert continued(gate).find_answer(request.event_id) == answer
    gate.fire(NOW + 3_600_000)
    assert gate.find_answer(request.event_id) is None
