"""The queue on a real SQLite file, against the plainest queue there is: one that looks at everything, in order."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from durably.engine.core.flow.admission import Start, start
from durably.engine.core.flow.buckets import Level
from durably.engine.core.flow.config import Flow
from durably.engine.core.flow.queue import LimitQueue, QueuedCall, QueueEntry, decode_queue_entry, encode_queue_entry

from ....random_examples import examples
from .configs import event, flow_of
from .sqlite_rows import SqliteRows

_START = 1_700_000_000_000

_LIMITS: list[list[dict[str, Any]]] = [
    [],
    [{"limit": 1}],
    [{"limit": 3}, {"limit": 1, "key": "event.data.user"}],
    [{"limit": 2, "key": "event.data.team"}, {"limit": 1, "key": "event.data.user"}],
    [{"limit": 2, "scope": "account", "key": '"payments"'}, {"limit": 1, "key": "event.data.user"}],
    [{"limit": 3, "scope": "account", "key": '"payments"'}],
    [{"limit": 2, "scope": "env", "key": "event.data.team"}],
]
_THROTTLES: list[dict[str, Any] | None] = [
    None,
    {"limit": 2, "period": "10s"},
    {"limit": 1, "period": "5s", "burst": 2, "key": "event.data.team"},
    {"limit": 3, "period": "1s", "burst": 3, "key": "event.data.user"},
]


def make_flow(function: int, limits: int, throttle: int) -> Flow:
    return flow_of(
        id=f"fn-{function}",
        concurrency=_LIMITS[limits],
        throttle=_THROTTLES[throttle],
        priority={"run": "event.data.priority"},
    )


def queue_entry_of(flow: Flow, fields: dict[str, Any], now: int) -> QueueEntry:
    outcome = start(flow, fields, lambda _: None, now).outcome
    assert isinstance(outcome, Start)
    return decode_queue_entry(encode_queue_entry(outcome.queue_entry))


class Call:
    """A call that exists, as the plain queue remembers it."""

    def __init__(self, key: QueuedCall, queue_entry: QueueEntry, function: int, starts_run: bool) -> None:
        self.key, self.queue_entry, self.function, self.starts_run = key, queue_entry, function, starts_run

    @property
    def name(self) -> tuple[int, int]:
        return self.key.run_key, self.key.generation


class PlainQueue:
    def __init__(self) -> None:
        self.queued: dict[tuple[int, int], Call] = {}
        self.under_way: dict[tuple[int, int], Call] = {}
        self.levels: dict[str, Level] = {}

    def settle(self, flows: list[Flow], now: int) -> list[Call]:
        self.clip_levels(flows, now)
        made = []
        for call in sorted(self.queued.values(), key=lambda call: call.key):
            if self.has_room(call, flows[call.function], now):
                made.append(call)
                self._make(call, flows[call.function], now)
        return made

    def has_room(self, call: Call, flow: Flow, now: int) -> bool:
        used = self.used()
        for slot in call.queue_entry.slots:
            limit = flow.limit(slot.limit_name)
            if limit is not None and used[slot.bucket_id] >= limit:
                return False
        if call.starts_run and call.queue_entry.throttle and flow.throttle:
            return flow.throttle.ready_at(self.levels.get(call.queue_entry.throttle), now) <= now
        return True

    def clip_levels(self, flows: list[Flow], now: int) -> None:
        for call in self.queued.values():
            throttle, bucket = flows[call.function].throttle, call.queue_entry.throttle
            if call.starts_run and throttle is not None and bucket in self.levels:
                self.levels[bucket] = throttle.clip(self.levels[bucket], now)

    def used(self) -> Counter[str]:
        return Counter(slot.bucket_id for call in self.under_way.values() for slot in call.queue_entry.slots)

    def _make(self, call: Call, flow: Flow, now: int) -> None:
        self.under_way[call.name] = self.queued.pop(call.name)
        bucket = call.queue_entry.throttle
        if call.starts_run and bucket and flow.throttle:
            self.levels[bucket] = flow.throttle.take(self.levels.get(bucket), now)


class World:
    """Both queues, with the same going into them."""

    def __init__(self, rows: SqliteRows, flows: list[Flow]) -> None:
        self.rows, self.flows, self.now = rows, flows, _START
        self.plain = PlainQueue()
        self.run_keys = count(1)

    @contextmanager
    def transaction(self) -> Iterator[LimitQueue]:
        queue = LimitQueue(self.rows, self.now)
        yield queue
        made = queue.settle()
        expected = self.plain.settle(self.flows, self.now)
        assert sorted(made) == [call.key for call in expected]
        gated = [call.key for call in expected if call.queue_entry.is_queued]
        assert [call for call in made if call in set(gated)] == gated

    def start_run(self, queue: LimitQueue, function: int, **data: Any) -> Call:
        flow = self.flows[function]
        queue_entry = queue_entry_of(flow, event(**data), self.now)
        return self.join(
            queue, Call(QueuedCall(queue_entry.position, next(self.run_keys), 1), queue_entry, function, True)
        )

    def join(self, queue: LimitQueue, call: Call) -> Call:
        self.plain.queued[call.name] = call
        queue.join(call.key, call.queue_entry, self.flows[call.function], starts_run=call.starts_run)
        return call

    def leave(self, queue: LimitQueue, call: Call) -> None:
        self.plain.queued.pop(call.name, None)
        self.plain.under_way.pop(call.name, None)
        queue.leave(*call.name)

    def call_again(self, queue: LimitQueue, call: Call) -> None:
        """One call of a run ends, and another of it follows."""
        self.leave(queue, call)
        key = call.key._replace(generation=call.key.generation + 1)
        self.join(queue, Call(key, call.queue_entry, call.function, False))

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        with self.transaction() as queue:
            while queue.check_throttles(2):
                pass

    def reconfigure(self, function: int, limits: int, throttle: int) -> None:
        flow = self.flows[function] = make_flow(function, limits, throttle)
        with self.transaction() as queue:
            queue.update_limits(flow)

    def drain(self) -> None:
        """Let time pass and calls end until nothing is left."""
        while self.plain.under_way or self.plain.queued:
            with self.transaction() as queue:
                for call in list(self.plain.under_way.values()):
                    self.leave(queue, call)
            opening = self.rows.next_opening()
            if opening is not None:
                self.pass_time(max(0, opening - self.now))


_steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "end", "end", "again", "cancel", "time", "several", "sync"]),
        st.integers(0, 1_000),
        st.integers(0, 1_000),
    ),
    max_size=30,
)
_flows = st.lists(
    st.tuples(st.integers(0, len(_LIMITS) - 1), st.integers(0, len(_THROTTLES) - 1)), min_size=1, max_size=3
)


def take_step(world: World, kind: str, first: int, second: int) -> None:
    plain, function = world.plain, first % len(world.flows)
    data = {"user": second % 4, "team": second % 2, "priority": (second % 7 - 3) * 10}
    under_way, queued = list(plain.under_way.values()), list(plain.queued.values())
    if kind == "time":
        world.pass_time(first * 10)
    elif kind == "sync":
        world.reconfigure(function, first % len(_LIMITS), second % len(_THROTTLES))
    elif kind == "several":
        with world.transaction() as queue:
            calls = [world.start_run(queue, function, **data, part=part) for part in range(second % 5)]
            for call in under_way[:2] + calls[:1]:
                world.leave(queue, call)
    else:
        with world.transaction() as queue:
            if kind == "start":
                world.start_run(queue, function, **data)
            elif kind == "end" and under_way:
                world.leave(queue, under_way[second % len(under_way)])
            elif kind == "again" and under_way:
                world.call_again(queue, under_way[second % len(under_way)])
            elif kind == "cancel" and queued:
                world.leave(queue, queued[second % len(queued)])


def check_rows(world: World) -> None:
    """Nothing is kept of what is over, and no concurrency key waits at a limit that is open."""
    rows, plain = world.rows, world.plain
    used = {bucket: used for bucket, used in plain.used().items() if used}
    assert dict(rows.execute("SELECT id, used FROM slots_used").fetchall()) == used
    assert rows.execute("SELECT count(*) FROM queued_calls").fetchone() == (len(plain.queued),)
    keys = [key for function in range(len(world.flows)) for key in rows.keys_of(f"fn-{function}")]
    assert len(keys) == rows.execute("SELECT count(DISTINCT key_id) FROM queued_calls").fetchone()[0]
    for key in keys:
        assert key.waits_at in key.limits
        assert rows.first_call(key.id) == key.first
        if key.waits_at.maximum:
            assert used.get(key.waits_at.bucket_id, 0) >= key.waits_at.maximum
        else:
            ready_at = rows.execute(
                "SELECT ready_at FROM throttle_times WHERE id = ?", key.waits_at.bucket_id
            ).fetchone()
            assert ready_at is not None


@given(_flows, _steps, st.booleans())
@settings(max_examples=examples(75), deadline=None)
def test_the_queue_agrees_with_a_simple_model(
    chosen: list[tuple[int, int]], steps: list[tuple[str, int, int]], restarts: bool
) -> None:
    flows = [make_flow(function, limits, throttle) for function, (limits, throttle) in enumerate(chosen)]
    rows = SqliteRows(":memory:")
    world = World(rows, flows)
    try:
        for kind, first, second in steps:
            take_step(world, kind, first, second)
            check_rows(world)
            if restarts:
                rows.purge(world.now)
        world.drain()
        check_rows(world)
        rows.purge(world.now + 10**9)
        for table in ("concurrency_keys", "queued_calls", "slots_used", "slots", "throttle_levels"):
            assert rows.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    finally:
        rows.close()


@given(st.integers(0, 2**32), _flows)
@settings(max_examples=examples(30), deadline=None)
def test_the_same_over_long_histories_in_which_much_is_queued(seed: int, chosen: list[tuple[int, int]]) -> None:
    chance = random.Random(seed)
    kinds = ["start"] * 5 + ["end"] * 3 + ["again", "cancel", "time", "several"] + ["sync"] * (seed % 2)
    rows = SqliteRows(":memory:")
    world = World(rows, [make_flow(number, *choice) for number, choice in enumerate(chosen)])
    for _ in range(100):
        take_step(world, chance.choice(kinds), chance.randrange(1_000), chance.randrange(1_000))
        check_rows(world)
    world.drain()
    rows.close()


def test_queue_continues_after_a_restart(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "rows.db")
    world = World(rows, [make_flow(0, 2, 1), make_flow(1, 4, 2)])
    for number in range(60):
        kind = ("start", "start", "again", "end", "time", "cancel")[number % 6]
        take_step(world, kind, number * 7, number * 13)
        rows.reopen()
        check_rows(world)
    world.drain()
    rows.close()


def test_no_run_starves_under_steady_arrivals_of_better_priority() -> None:
    rows = SqliteRows(":memory:")
    world = World(rows, [make_flow(0, 2, 0)])
    with world.transaction() as queue:
        for user in range(5):
            world.start_run(queue, 0, user=user, priority=600)
        victim = world.start_run(queue, 0, user=9, priority=-600)
    rounds = 0
    while victim.name in world.plain.queued:
        rounds += 1
        assert rounds <= 200  # 1,200 s of priority between them, 10 s a round, three at once
        world.now += 10_000
        with world.transaction() as queue:
            for call in list(world.plain.under_way.values()):
                world.leave(queue, call)
            for user in range(3):
                world.start_run(queue, 0, user=user + rounds % 2 * 3, priority=600)
    assert rounds > 10
    rows.close()


def test_runs_delayed_by_concurrency_do_not_break_the_throttle_afterwards() -> None:
    rows = SqliteRows(":memory:")
    world = World(rows, [flow_of(concurrency=5, throttle={"limit": 1, "period": "10s"})])
    with world.transaction() as queue:
        for number in range(20):
            world.start_run(queue, 0, number=number)
    for _ in range(10):  # five calls start in turn, and then hold everything up
        world.pass_time(10_000)
    assert len(world.plain.under_way) == 5
    world.pass_time(1_000_000)
    with world.transaction() as queue:
        for call in list(world.plain.under_way.values()):
            world.leave(queue, call)
    assert len(world.plain.under_way) == 1  # and not five at once
    rows.close()


def test_a_throttle_goes_on_at_its_rate_after_the_clock_was_set_back() -> None:
    rows = SqliteRows(":memory:")
    world = World(rows, [flow_of(throttle={"limit": 1, "period": "1s"})])
    with world.transaction() as queue:
        world.start_run(queue, 0)
        world.start_run(queue, 0)  # waits for a second of the time ahead
    world.now -= 3_600_000
    for number in range(1, 9):
        with world.transaction() as queue:
            world.start_run(queue, 0)
        world.pass_time(1_001)
        assert len(world.plain.under_way) == number + 1
    rows.close()


def test_retries_and_later_calls_are_not_throttled() -> None:
    rows = SqliteRows(":memory:")
    world = World(rows, [flow_of(throttle={"limit": 1, "period": "1h"})])
    with world.transaction() as queue:
        call = world.start_run(queue, 0)
    for _ in range(5):
        with world.transaction() as queue:
            world.call_again(queue, next(iter(world.plain.under_way.values())))
        assert len(world.plain.under_way) == 1
    assert call.name not in world.plain.under_way
    rows.close()


def count_statements(queued: int, flow: Flow, users: int) -> int:
    """The number of statements that end a call and make the next one."""
    rows = SqliteRows(":memory:")
    world = World(rows, [flow])
    queue, calls = LimitQueue(rows, world.now), []
    for number in range(queued):
        queue_entry = queue_entry_of(flow, event(user=number % users, team=number % 3, priority=0), world.now)
        call = QueuedCall(queue_entry.position, number, 1)
        queue.join(call, queue_entry, flow, starts_run=True)
    calls = queue.settle()
    assert calls
    rows.record_statements()
    for call in calls[:1]:
        queue = LimitQueue(rows, world.now + 100_000)
        queue.leave(call.run_key, call.generation)
        queue.check_throttles(100)
        assert len(queue.settle()) == 1
    plans = [rows.plan_of(statement) for statement in rows.statements if statement.startswith(("SELECT", "DELETE"))]
    assert not any("SCAN" in plan and "COVERING INDEX openings_by_time" not in plan for plan in plans)
    assert not any("TEMP B-TREE" in plan for plan in plans)
    rows.close()
    return len(rows.statements)


def test_the_cost_of_a_transaction_does_not_depend_on_the_length_of_the_queue() -> None:
    for flow, users in [
        (make_flow(0, 1, 0), 1),
        (make_flow(0, 2, 0), 10),
        (make_flow(0, 2, 0), 10_000),
        (make_flow(0, 2, 1), 10_000),
        (make_flow(0, 5, 2), 10_000),
    ]:
        few, many = count_statements(100, flow, users), count_statements(5_000, flow, users)
        assert many <= few + 2, (few, many)
        assert many < 60


def test_concurrency_keys_stay_at_a_limit_while_it_is_reached() -> None:
    rows = SqliteRows(":memory:")
    limits = [{"limit": 1}, {"limit": 1, "key": "event.data.user"}]
    world = World(rows, [flow_of(concurrency=limits, throttle={"limit": 1, "period": "10s"})])
    with world.transaction() as queue:
        first = world.start_run(queue, 0, user=0)
        for user in range(1, 50):
            world.start_run(queue, 0, user=user)
    with world.transaction() as queue:
        world.leave(queue, first)  # now all of them wait for the throttle
    rows.record_statements()
    world.pass_time(10_000)
    assert len(world.plain.under_way) == 1
    assert len(rows.statements) < 20
    rows.close()
