"""Buckets decide as the engine on SQLite does, also after they continue in another execution of their workflow."""

import random
from typing import Any

import msgspec
import pytest

from durably.engine.core.flow.admission import Batched, Debounced, Skip, Trigger, admit
from durably.engine.core.flow.buckets import BucketKind
from durably.engine.core.flow.config import read_flow
from durably.engine.temporal.messages import EventRecord
from durably.engine.temporal.routing.bucket import (
    BucketOutcome,
    BucketRequest,
    BucketState,
    FlowBucket,
    option_of_bucket,
)

from ...core.flow.configs import config_of

NOW = 1_700_000_000_000
OPTIONS: dict[BucketKind, dict[str, Any]] = {
    BucketKind.IDEMPOTENCY: {"idempotency": "event.data.order"},
    BucketKind.RATE_LIMIT: {"rateLimit": {"limit": 20, "period": "60s"}},
    BucketKind.DEBOUNCE: {"debounce": {"period": "10s", "timeout": "30s"}},
    BucketKind.BATCH: {"batchEvents": {"maxSize": 4, "timeout": "20s"}},
}


def request_of(kind: BucketKind, number: int, at: int) -> BucketRequest:
    event = EventRecord(id=f"e{number}", name="order/placed", body=msgspec.Raw(b"{}"), at=at, index=number)
    option = option_of_bucket("bucket", read_flow(config_of(**OPTIONS[kind])), kind)
    return BucketRequest(option=option, event_id=event.id, ts=at, size=2, event=event, run_id=f"r{number}")


def continued(bucket: FlowBucket) -> FlowBucket:
    return FlowBucket(msgspec.json.decode(msgspec.json.encode(bucket.state), type=BucketState))


def started(bucket: FlowBucket) -> list[str]:
    """The ids of events for which runs start, removed from the bucket."""
    found = [event.id for held in bucket.state.releases for event in held.events]
    bucket.state.releases.clear()
    return found


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_bucket_decides_as_on_sqlite(kind: BucketKind) -> None:
    flow = read_flow(config_of(**OPTIONS[kind]))
    randomly = random.Random(str(kind))
    bucket, stored, now = FlowBucket(BucketState()), dict[str, bytes](), NOW
    for number in range(200):
        now += randomly.choice((100, 1000, 5000))
        if bucket.state.option is not None:
            bucket.fire(now)
            due = bucket.state.bucket is None or bucket.state.bucket.fires_at is None
            if due and kind in (BucketKind.DEBOUNCE, BucketKind.BATCH):
                stored.clear()  # Its timer fired.
        trigger = Trigger(number + 1, {"ts": now, "data": {"order": "a"}}, 2)
        expected = admit(flow, trigger, stored.get, now)
        for change in expected.changes:
            if change.state is None:
                stored.pop(change.bucket.id, None)
            else:
                stored[change.bucket.id] = change.state
        outcome = {Skip: BucketOutcome.SKIPPED, Debounced: BucketOutcome.STORED, Batched: BucketOutcome.STORED}
        answer = bucket.admit(request_of(kind, number, now), now)
        assert answer.outcome == outcome.get(type(expected.outcome), BucketOutcome.ADMITTED)
        stored_bucket = bucket.state.bucket
        assert (None if stored_bucket is None else stored_bucket.state) == next(iter(stored.values()), None)
        if randomly.random() < 0.1:
            bucket = continued(bucket)


def test_a_debounce_keeps_the_last_event_though_it_arrives_first() -> None:
    bucket = FlowBucket(BucketState())
    for number in (1, 3, 2):
        bucket.admit(request_of(BucketKind.DEBOUNCE, number, NOW), NOW)
    bucket.fire(NOW + 10_000)
    assert started(bucket) == ["e3"]


def test_a_batch_has_its_events_in_the_order_of_their_arrival() -> None:
    bucket = FlowBucket(BucketState())
    for number in (2, 4, 1, 3):
        bucket.admit(request_of(BucketKind.BATCH, number, NOW), NOW)
    assert started(bucket) == ["e1", "e2", "e3", "e4"]


def test_a_batch_closes_before_it_is_larger_than_a_payload() -> None:
    bucket = FlowBucket(BucketState())
    for number in range(2):
        request = msgspec.structs.replace(request_of(BucketKind.BATCH, number, NOW), size=600_000)
        bucket.admit(request, NOW)
    assert started(bucket) == ["e0", "e1"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_bucket_ends_empty(kind: BucketKind) -> None:
    bucket, now = FlowBucket(BucketState()), NOW
    for number in range(3):
        bucket.admit(request_of(kind, number, now), now)
    for _ in range(10):
        due = bucket.due()
        if due is None:
            break
        now = max(now, due)
        bucket.fire(now)
    started(bucket)
    assert bucket.is_empty
    assert now - NOW <= 24 * 3_600_000


def test_an_event_gets_its_answer_again_but_not_for_ever() -> None:
    bucket = FlowBucket(BucketState())
    request = request_of(BucketKind.RATE_LIMIT, 1, NOW)
    answer = bucket.admit(request, NOW)
    assert continued(bucket).find_answer(request.event_id) == answer
    bucket.fire(NOW + 3_600_000)
    assert bucket.find_answer(request.event_id) is None


@pytest.mark.parametrize("kind", [BucketKind.RATE_LIMIT, BucketKind.IDEMPOTENCY])
def test_a_bucket_continues_after_the_clock_was_set_back(kind: BucketKind) -> None:
    bucket, now = FlowBucket(BucketState()), 1_700_000_000_000
    ahead, longest = now + 30 * 86_400_000, 86_400_000
    assert bucket.admit(request_of(kind, 0, ahead), ahead).outcome is BucketOutcome.ADMITTED
    bucket = continued(bucket)
    assert bucket.admit(request_of(kind, 1, now), now).outcome is BucketOutcome.SKIPPED
    later = now + longest
    assert bucket.admit(request_of(kind, 2, later), later).outcome is BucketOutcome.ADMITTED
