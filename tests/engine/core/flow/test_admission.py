"""Admission of events at random times, and the rates that limit them. Each state is stored and read in between."""

import datetime as dt
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.engine.core.flow.configs import event, flow_of

from durably.engine.core.flow.admission import (
    MAX_BATCH_BYTES,
    Admission,
    Batched,
    Debounced,
    Skip,
    SkipReason,
    Start,
    Trigger,
    admit,
    end_batch,
    end_debounce,
    queue_position,
    release_singleton,
    start,
    take_singleton,
)
from durably.engine.core.flow.buckets import Bucket, BucketKind, Level, Pace, StateChange, pace_of
from durably.engine.core.flow.config import Flow
from durably.engine.core.flow.queue import decode_queue_entry, encode_queue_entry

_START = 1_700_000_000_000
_DAY = 86_400_000


class Engine:
    """Carries decisions out as an engine does: stores states, fires what is due, starts and ends runs."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.now = flow, _START
        self.states: dict[str, bytes] = {}
        self.due: dict[str, tuple[int, Bucket, int]] = {}
        self.events: list[dict[str, Any]] = []
        self.batches: dict[int, list[int]] = {}
        self.runs: list[tuple[int, list[int]]] = []
        """When each started, and for which events."""
        self.active: dict[int, Start] = {}
        self.cancelled: list[int] = []

    def send(self, size: int = 100, ts: int | None = None, **data: Any) -> Admission:
        fields = event(**data) | {"ts": self.now if ts is None else ts}
        self.events.append(fields)
        trigger = Trigger(len(self.events) - 1, fields, size)
        admission = admit(self.flow, trigger, self.states.get, self.now)
        self._apply(admission.changes)
        match admission.outcome:
            case Start():
                self._start(admission.outcome, [trigger.key])
            case Batched(bucket, batch, is_full):
                self.batches.setdefault(batch.id, []).append(trigger.key)
                self.due[bucket.id] = (batch.fires_at, bucket, batch.id)
                if is_full:
                    self._start_later(self.batches.pop(batch.id))
            case Debounced(bucket, due):
                self.due[bucket.id] = (due, bucket, 0)
        return admission

    def pass_time(self, milliseconds: int) -> None:
        until = self.now + milliseconds
        while self.due and (first := min(self.due.values(), key=lambda item: item[0]))[0] <= until:
            self.now = max(self.now, first[0])
            self.fire(first[1], first[2])
        self.now = until

    def fire(self, bucket: Bucket, batch_id: int) -> None:
        del self.due[bucket.id]
        if self.flow.options.debounce is not None:
            ended = end_debounce(bucket, self.states.get, self.now)
            if ended is not None:
                self._apply((ended[1],))
                self._start_later([ended[0]])
        elif (change := end_batch(bucket, batch_id, self.states.get)) is not None:
            self._apply((change,))
            self._start_later(self.batches.pop(batch_id))

    def end_run(self, run: int) -> None:
        queue_entry = decode_queue_entry(encode_queue_entry(self.active.pop(run).queue_entry))
        self._apply(release_singleton(queue_entry, run, self.states.get))

    def _start_later(self, events: list[int]) -> None:
        admission = start(self.flow, self.events[events[0]], self.states.get, self.now)
        self._apply(admission.changes)
        if isinstance(admission.outcome, Start):
            self._start(admission.outcome, events)

    def _start(self, outcome: Start, events: list[int]) -> None:
        if outcome.cancels is not None:
            self.cancelled.append(outcome.cancels)
            self.end_run(outcome.cancels)
        run = len(self.runs)
        self.runs.append((self.now, events))
        self.active[run] = outcome
        self._apply(take_singleton(outcome.queue_entry, run))

    def _apply(self, changes: tuple[StateChange, ...]) -> None:
        for change in changes:
            if change.state is None:
                self.states.pop(change.bucket.id, None)
            else:
                self.states[change.bucket.id] = change.state
                assert change.fires_at is not None or change.expires is None or change.expires > self.now


def reason(admission: Admission) -> SkipReason | None:
    return admission.outcome.reason if isinstance(admission.outcome, Skip) else None


_gaps = st.lists(st.integers(0, 4_000), min_size=1, max_size=60)


# rate limit and idempotency


@given(_gaps, st.integers(1, 30), st.booleans())
def test_rate_limit_per_key(gaps: list[int], limit: int, keyed: bool) -> None:
    key = {"key": "event.data.user"} if keyed else {}
    engine = Engine(flow_of(rateLimit={"limit": limit, "period": "10s", **key}))
    kept: dict[int, list[int]] = {0: [], 1: []}
    for number, gap in enumerate(gaps):
        engine.pass_time(gap)
        if reason(engine.send(user=number % 2)) is None:
            kept[number % 2 if keyed else 0].append(engine.now)
    for times in kept.values():
        for index, begin in enumerate(times):
            within = sum(1 for at in times[index:] if at < begin + 10_000)
            assert within <= limit + limit // 10
    assert any(kept.values())


def test_a_rate_limit_goes_on_at_its_rate_after_the_clock_was_set_back() -> None:
    engine = Engine(flow_of(rateLimit={"limit": 1, "period": "2s"}))
    assert reason(engine.send()) is None
    engine.now -= 3_600_000
    assert reason(engine.send()) is SkipReason.RATE_LIMIT
    for _ in range(5):
        engine.pass_time(1_000)
        assert reason(engine.send()) is SkipReason.RATE_LIMIT
        engine.pass_time(1_000)
        assert reason(engine.send()) is None


@given(st.lists(st.tuples(st.integers(0, _DAY // 2), st.sampled_from([1, 2, 1.0, "1", None, False])), max_size=40))
def test_idempotency_lets_one_of_a_value_through_in_any_day(history: list[tuple[int, Any]]) -> None:
    engine = Engine(flow_of(idempotency="event.data.order"))
    begun: dict[Any, int] = {}
    for gap, order in history:
        engine.pass_time(gap)
        is_repeat = order is not False and order in begun and engine.now < begun[order] + _DAY
        assert (reason(engine.send(order=order)) is SkipReason.IDEMPOTENCY) == is_repeat
        if not is_repeat:
            begun[order] = engine.now


def test_a_value_is_skipped_for_a_day_at_most_after_the_clock_was_set_back() -> None:
    engine = Engine(flow_of(idempotency="event.data.order"))
    engine.now += 30 * _DAY
    assert reason(engine.send(order=1)) is None
    engine.now -= 30 * _DAY
    assert reason(engine.send(order=1)) is SkipReason.IDEMPOTENCY
    engine.pass_time(_DAY - 1)
    assert reason(engine.send(order=1)) is SkipReason.IDEMPOTENCY
    engine.pass_time(1)
    assert reason(engine.send(order=1)) is None


def test_idempotent_repeats_do_not_count_in_the_rate_limit_and_dropped_events_are_not_remembered() -> None:
    engine = Engine(flow_of(idempotency="event.data.order", rateLimit={"limit": 1, "period": "1m"}))
    assert reason(engine.send(order=1)) is None
    assert reason(engine.send(order=2)) is SkipReason.RATE_LIMIT
    engine.pass_time(60_001)
    assert reason(engine.send(order=1)) is SkipReason.IDEMPOTENCY
    assert reason(engine.send(order=2)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"rateLimit": {"limit": 1, "period": "1h", "key": "event.data.limited ? 'all' : false"}},
        {"idempotency": "event.data.limited ? 'all' : false"},
        {"singleton": {"mode": "skip", "key": "event.data.limited ? 'all' : false"}},
    ],
)
def test_a_key_of_false_switches_the_option_off(options: dict[str, Any]) -> None:
    engine = Engine(flow_of(**options))
    assert [reason(engine.send(limited=limited)) is None for limited in (True, True, False, False)] == [
        True,
        False,
        True,
        True,
    ]


# debounce


@given(_gaps, st.sampled_from([None, "3s", "10s"]), st.data())
def test_debounce_starts_one_run_after_a_pause_or_its_timeout(
    gaps: list[int], timeout: str | None, data: st.DataObject
) -> None:
    engine = Engine(
        flow_of(debounce={"period": "2s", "key": "event.data.user"} | ({"timeout": timeout} if timeout else {}))
    )
    sent = []
    for gap in gaps:
        engine.pass_time(gap)
        engine.send(user=data.draw(st.integers(0, 1)))
        sent.append(engine.now)
    engine.pass_time(60_000)
    assert engine.states == {}
    limit = {None: None, "3s": 3_000, "10s": 10_000}[timeout]
    for user in (0, 1):
        events = [key for key, fields in enumerate(engine.events) if fields["data"]["user"] == user]
        for at, (last,) in engine.runs:
            if last not in events:
                continue
            group = [key for key in events if key <= last]
            events = [key for key in events if key > last]
            quiet_at = sent[last] + 2_000
            latest = quiet_at if limit is None else sent[group[0]] + limit
            assert at == min(quiet_at, latest)
            assert all(sent[late] - sent[early] < 2_000 for early, late in pairwise(group))
        assert events == []


def test_an_older_event_neither_replaces_the_pending_one_nor_postpones_it() -> None:
    engine = Engine(flow_of(debounce={"period": "10s"}))
    engine.send(ts=_START + 5_000, version=2)
    engine.pass_time(6_000)
    engine.send(ts=_START + 1_000, version=1)
    engine.pass_time(4_000)
    assert engine.runs == [(_START + 10_000, [0])]


def test_a_debounce_that_ends_late_includes_events_from_before() -> None:
    engine = Engine(flow_of(debounce={"period": "10s", "timeout": "15s"}))
    engine.send()
    engine.now += 60_000  # no engine was running
    admission = engine.send()
    assert isinstance(admission.outcome, Debounced)
    assert admission.outcome.fires_at == _START + 15_000
    engine.pass_time(0)
    assert engine.runs == [(_START + 60_000, [1])]


def test_a_debounce_that_was_put_off_does_not_fire_for_its_old_timer() -> None:
    engine = Engine(flow_of(debounce={"period": "10s"}))
    engine.send()
    _, bucket, _ = next(iter(engine.due.values()))
    engine.pass_time(5_000)
    engine.send()
    engine.now += 5_000
    assert end_debounce(bucket, engine.states.get, engine.now) is None
    engine.pass_time(5_000)
    assert [events for _, events in engine.runs] == [[1]]
    assert end_debounce(bucket, engine.states.get, engine.now) is None


# batches


@given(_gaps, st.integers(2, 7), st.data())
def test_batch_starts_when_full_or_after_its_timeout(gaps: list[int], max_size: int, data: st.DataObject) -> None:
    options = {"maxSize": max_size, "timeout": "5s", "key": "event.data.user", "if": "event.data.user != 9"}
    engine = Engine(flow_of(batchEvents=options))
    sent = []
    for gap in gaps:
        engine.pass_time(gap)
        engine.send(user=data.draw(st.sampled_from([0, 1, 9])))
        sent.append(engine.now)
    engine.pass_time(5_000)
    assert engine.states == {}
    assert sorted(key for _, events in engine.runs for key in events) == list(range(len(sent)))
    for at, events in engine.runs:
        users = {engine.events[key]["data"]["user"] for key in events}
        assert len(users) == 1
        assert events == sorted(events)
        if users == {9}:
            assert (at, len(events)) == (sent[events[0]], 1)
        elif len(events) < max_size:
            assert at == sent[events[0]] + 5_000
        else:
            assert len(events) == max_size
            assert at == sent[events[-1]]


def test_a_batch_is_full_in_bytes_too() -> None:
    engine = Engine(flow_of(batchEvents={"maxSize": 1_000, "timeout": "1m"}))
    for _ in range(21):
        engine.send(size=MAX_BATCH_BYTES // 20)
    assert [len(events) for _, events in engine.runs] == [20]


def test_the_timer_of_a_full_batch_leaves_the_next_one_alone() -> None:
    engine = Engine(flow_of(batchEvents={"maxSize": 2, "timeout": "5s"}))
    engine.send()
    (_, bucket, batch_id) = next(iter(engine.due.values()))
    engine.send()
    engine.pass_time(4_000)
    engine.send()
    assert end_batch(bucket, batch_id, engine.states.get) is None
    engine.pass_time(5_000)
    assert engine.runs == [(_START, [0, 1]), (_START + 9_000, [2])]


# singletons


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=60), st.sampled_from(["skip", "cancel"]))
def test_there_is_never_more_than_one_run_of_a_singleton(steps: list[tuple[bool, int]], mode: str) -> None:
    engine = Engine(flow_of(singleton={"mode": mode, "key": "event.data.user"}))
    owner: dict[int, int] = {}
    for ends, user in steps:
        if ends:
            if user in owner:
                engine.end_run(owner.pop(user))
            continue
        admission = engine.send(user=user)
        if mode == "skip" and user in owner:
            assert admission.outcome == Skip(SkipReason.SINGLETON, owner[user])
        else:
            assert isinstance(admission.outcome, Start)
            assert admission.outcome.cancels == owner.get(user)
            owner[user] = len(engine.runs) - 1
        assert set(engine.active) == set(owner.values())
    for run in list(engine.active):
        engine.end_run(run)
    assert engine.states == {}


def test_a_run_that_was_replaced_does_not_release_its_successor() -> None:
    engine = Engine(flow_of(singleton={"mode": "cancel"}))
    engine.send()
    first = engine.active[0].queue_entry
    engine.send()
    assert engine.cancelled == [0]
    assert release_singleton(first, 0, engine.states.get) == ()
    assert release_singleton(engine.active[1].queue_entry, 1, engine.states.get) != ()


def test_a_debounced_singleton_is_decided_when_its_run_would_start() -> None:
    engine = Engine(flow_of(debounce={"period": "5s"}, singleton={"mode": "skip"}))
    engine.send()
    engine.pass_time(5_000)
    engine.send()
    engine.pass_time(5_000)
    assert len(engine.runs) == 1
    engine.end_run(0)
    engine.send()
    engine.pass_time(5_000)
    assert len(engine.runs) == 2


# what runs carry


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (120, 120),
        (-30, -30),
        (10_000, 600),
        (-10_000, -600),
        (2.9, 2),
        (-2.9, -2),
        ("high", 0),
        (None, 0),
        (True, 0),
        ([], 0),
    ],
)
def test_priority_moves_the_queue_position(value: Any, seconds: int) -> None:
    flow = flow_of(priority={"run": "event.data.value"})
    assert queue_position(flow, event(value=value), _START) == _START - 1000 * seconds


@example(float("inf"))
@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3))
def test_no_priority_moves_a_run_by_more_than_ten_minutes(value: Any) -> None:
    flow = flow_of(priority={"run": "event.data.value"})
    ahead = _START - queue_position(flow, event(value=value), _START)
    assert abs(ahead) <= 600_000
    assert ahead % 1000 == 0
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        assert ahead * value >= 0
    else:
        assert ahead == 0


def test_a_queue_entry_survives_storage() -> None:
    flow = flow_of(
        concurrency=[{"limit": 3}, {"limit": 1, "key": "event.data.user", "scope": "account"}],
        throttle={"limit": 1, "period": "1s", "key": "event.data.user"},
        singleton={"mode": "skip", "key": "event.data.user"},
        priority={"run": "10"},
    )
    outcome = start(flow, event(user="u" * 500), lambda _: None, _START).outcome
    assert isinstance(outcome, Start)
    assert outcome.queue_entry.is_queued
    assert decode_queue_entry(encode_queue_entry(outcome.queue_entry)) == outcome.queue_entry
    assert all(len(slot.bucket_id) <= 200 for slot in outcome.queue_entry.slots)


def test_cancellations_and_timeouts_count_from_the_admission() -> None:
    flow = flow_of(
        cancel=[
            {"event": "order/cancelled", "if": "async.data.id == event.data.id"},
            {"event": "shop/closed", "timeout": "1h"},
            {"event": "world/ended", "timeout": "2030-01-01T00:00:00Z"},
        ],
        timeouts={"start": "10s", "finish": "1m"},
    )
    outcome = start(flow, event(id=1), lambda _: None, _START).outcome
    assert isinstance(outcome, Start)
    end_of_world = round(dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
    assert [listens.until for listens in outcome.cancel_on] == [None, _START + 3_600_000, end_of_world]
    condition = outcome.cancel_on[0].condition
    assert condition is not None
    assert condition.matches(event(id=1), event(id=1), now=0)
    assert not condition.matches(event(id=1), event(id=2), now=0)
    assert outcome.start_by == _START + 10_000
    assert flow.finish_by(_START + 5_000) == _START + 65_000


_json = st.recursive(
    st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)


@given(_json, _json)
@settings(max_examples=200)
def test_values_share_a_bucket_if_and_only_if_they_are_equal(one: Any, other: Any) -> None:
    flow = flow_of(throttle={"limit": 1, "period": "1s", "key": "event.data.value"})
    buckets = [flow.bucket(BucketKind.THROTTLE, event(value=value), _START) for value in (one, other, one)]
    assert buckets[0] == buckets[2]
    if type(one) is type(other):
        assert (buckets[0] == buckets[1]) == (one == other)


def test_buckets_of_functions_and_options_are_apart() -> None:
    flows = [flow_of(id=name, throttle={"limit": 1, "period": "1s", "key": "event.data.k"}) for name in ("a", "a/b")]
    keys = ["b/text:c", "c", "~1"]
    buckets = [flow.bucket(BucketKind.THROTTLE, event(k=key), _START) for flow in flows for key in keys]
    ids = {bucket.id for bucket in buckets if bucket is not None}
    assert len(ids) == 6
    long = {Bucket(BucketKind.THROTTLE, "f" * 300 + tail, "key").id for tail in "ab"}
    assert len(long) == 2
    assert max(map(len, long)) < 100


_limits = st.integers(1, 2_000)
_periods = st.sampled_from([1_000, 7_000, 60_000, 3_600_000, 86_400_000])
_bursts = st.integers(1, 50)


def admitted(pace: Pace, arrivals: list[int]) -> list[int]:
    """The arrivals that a rate limit accepts. The state is stored in between."""
    level, kept = None, []
    for now in arrivals:
        if pace.ready_at(level, now) <= now:
            level = Level.decode(pace.take(level, now).encode())
            kept.append(now)
    return kept


@given(_limits, _periods, _bursts, st.lists(st.integers(0, 5_000), min_size=1, max_size=200))
def test_no_stretch_of_time_has_more_than_its_share_and_the_burst(
    limit: int, period: int, burst: int, gaps: list[int]
) -> None:
    now, arrivals = _START, []
    for gap in gaps:
        now += gap
        arrivals.append(now)
    kept = admitted(pace_of(limit, period, burst), arrivals)
    for first, begin in enumerate(kept):
        for last in range(first, len(kept)):
            assert last - first + 1 <= (kept[last] - begin + 1) * limit / period + burst


@given(st.integers(1, 100), _periods, _bursts)
def test_in_the_long_run_units_come_at_the_rate(limit: int, period: int, burst: int) -> None:
    pace, level, now = pace_of(limit, period, burst), None, _START
    count = 3 * limit + burst
    for _ in range(count):
        now = pace.ready_at(level, now)
        level = pace.take(level, now)
    exact = (count - burst) * period / limit
    assert exact - 1 <= now - _START <= exact + count * 1e-6 + 1


@given(_limits, _periods, _bursts, st.lists(st.integers(0, 2_000), max_size=60), st.integers(0, 10_000))
def test_ready_at_is_the_first_time_at_which_a_unit_may_be_used(
    limit: int, period: int, burst: int, gaps: list[int], ahead: int
) -> None:
    pace, level, now = pace_of(limit, period, burst), None, _START
    for gap in gaps:
        now = max(now + gap, pace.ready_at(level, now + gap))
        level = pace.take(level, now)
    ready = pace.ready_at(level, now)
    assert pace.ready_at(level, ready) == ready
    assert ready == now or pace.ready_at(level, ready - 1) == ready
    assert pace.ready_at(level, now + ahead) == max(ready, now + ahead)
    if level is not None:
        later = max(now, level.expires)
        assert [pace.ready_at(state, later) for state in (level, None)] == [later, later]
        assert pace.take(level, later) == pace.take(None, later)


@given(_limits, _periods, _bursts, st.integers(0, 10**10))
def test_a_clock_that_was_set_back_keeps_nothing_closed_for_longer_than_a_full_bucket(
    limit: int, period: int, burst: int, step: int
) -> None:
    pace, level = pace_of(limit, period, burst), None
    for _ in range(burst):
        level = pace.take(level, _START)
    assert pace.ready_at(level, _START - step) <= _START - step + pace.interval / 1e6 + 1


@given(_limits, _periods, _bursts, st.integers(0, 10**10))
def test_after_the_clock_was_set_back_a_waiting_unit_is_used_in_time_and_the_rate_is_kept(
    limit: int, period: int, burst: int, step: int
) -> None:
    pace, level = pace_of(limit, period, burst), None
    for _ in range(burst):
        level = pace.take(level, _START)
    assert level is not None
    now = begin = _START - step
    level = pace.clip(level, now)  # A unit has to wait: the clipped level is stored.
    for nth in range(1, 2 * burst):
        now = pace.ready_at(level, now)
        assert now <= begin + nth * (pace.interval / 1e6 + 1)
        assert pace.ready_at(level, now) == now
        level = pace.take(level, now)
