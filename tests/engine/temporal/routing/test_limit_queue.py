"""Queues of calls under random interleavings of joining, leaving, ends of runs and new executions of the workflow."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from durably.engine.core.flow.admission import Start, start
from durably.engine.core.flow.config import Flow, read_flow
from durably.engine.core.flow.queue import LimitQueue, QueuedCall, QueueEntry
from durably.engine.temporal.routing.limit_queue import (
    CallId,
    CallLimitQueue,
    LimitQueueState,
    QueueChange,
    QueueSignal,
    limits_of,
)
from durably.engine.temporal.workflow_code import pack, unpack
from durably.protocol.options import FunctionOptions

from ...core.flow.configs import config_of, event
from ...core.flow.sqlite_rows import SqliteRows

OPTIONS: list[dict[str, Any]] = [
    {"concurrency": [{"limit": 2}]},
    {"concurrency": [{"limit": 3}, {"limit": 1, "key": "event.data.user"}], "priority": {"run": "event.data.n"}},
    {"concurrency": [{"limit": 2, "key": "event.data.user"}], "throttle": {"limit": 5, "period": "10s", "burst": 2}},
]


def joined(run_id: str, entry: QueueEntry, options: FunctionOptions, *, starts_run: bool = False) -> QueueSignal:
    """The first call of a run joins the queue."""
    change = QueueChange(
        queue="queue",
        function_id="shop-fn",
        run_id=run_id,
        queue_entry=entry,
        joined=(1,),
        starts_run=starts_run,
    )
    return QueueSignal(change, options)


class Calls:
    """The calls of runs: a queue, and the same queue in the rows of SQLite as the reference."""

    def __init__(self, options: dict[str, Any], seed: int) -> None:
        self.random = random.Random(seed)
        self.config = config_of(**options)
        self.flow: Flow = read_flow(self.config)
        self.queue = CallLimitQueue(LimitQueueState())
        self.reference = SqliteRows(":memory:")
        self.now = 1_700_000_000_000
        self.waiting: dict[tuple[int, int], tuple[str, ...]] = {}
        self.under_way: dict[tuple[int, int], tuple[str, ...]] = {}
        self.runs = 0

    def join(self, core: LimitQueue) -> None:
        self.runs += 1
        fields = event(user=self.random.choice("abc"), n=self.random.randrange(100))
        admitted = start(self.flow, fields, lambda _: None, self.now).outcome
        assert isinstance(admitted, Start)
        entry = msgspec.structs.replace(admitted.queue_entry, singleton=None)
        for _ in range(self.random.choice((1, 1, 2))):
            self.queue.change(joined(str(self.runs), entry, limits_of(self.config), starts_run=True))
        core.join(QueuedCall(entry.position, self.runs, 1), entry, self.flow, starts_run=True)
        self.waiting[self.runs, 1] = tuple(slot.bucket_id for slot in entry.slots)

    def leave(self, core: LimitQueue) -> None:
        run_key, generation = self.random.choice([*self.waiting, *self.under_way])
        if self.random.random() < 0.2:
            self.queue.drop_run(str(run_key))
        else:
            self.queue.leave(CallId(str(run_key), generation))
        core.leave(run_key, generation)
        self.waiting.pop((run_key, generation), None)
        self.under_way.pop((run_key, generation), None)

    def settle(self, core: LimitQueue) -> None:
        core.check_throttles(1000)
        expected = [(call.run_key, call.generation) for call in core.settle()]
        made = [(int(call.run_id), call.generation) for call in self.queue.settle(self.now)]
        assert made == expected
        for call in made:
            self.under_way[call] = self.waiting.pop(call)
        used = Counter(bucket_id for buckets in self.under_way.values() for bucket_id in buckets)
        for limit in self.flow.concurrency:
            assert all(count <= limit.limit for bucket_id, count in used.items() if limit.name in bucket_id)

    def step(self) -> None:
        core = LimitQueue(self.reference, self.now)
        for _ in range(self.random.randrange(4)):
            if self.random.random() < 0.5 or not (self.waiting or self.under_way):
                self.join(core)
            else:
                self.settle_and_leave(core)
                core = LimitQueue(self.reference, self.now)
        if self.random.random() < 0.2:
            self.continue_as_new()
        self.settle(core)
        self.now += self.random.randrange(3000)
        if self.random.random() < 0.2:
            self.continue_as_new()

    def settle_and_leave(self, core: LimitQueue) -> None:
        self.settle(core)
        core = LimitQueue(self.reference, self.now)
        self.leave(core)
        self.settle(core)

    def continue_as_new(self) -> None:
        self.queue = CallLimitQueue(unpack(pack(self.queue.state)))


@pytest.mark.parametrize("seed", range(12))
def test_a_queue_makes_the_same_calls_as_on_sqlite(seed: int) -> None:
    calls = Calls(OPTIONS[seed % len(OPTIONS)], seed)
    for _ in range(60):
        calls.step()
    while calls.waiting or calls.under_way:
        core = LimitQueue(calls.reference, calls.now)
        if calls.under_way:
            calls.leave(core)
        calls.settle(core)
        calls.now += 10_000
    calls.now += 3_600_000
    assert calls.queue.settle(calls.now) == []
    assert calls.queue.is_empty
    calls.reference.close()


def test_new_numbers_apply_to_waiting_calls() -> None:
    config = config_of(concurrency=[{"limit": 1}])
    queue = CallLimitQueue(LimitQueueState())
    admitted = start(read_flow(config), event(), lambda _: None, 0).outcome
    assert isinstance(admitted, Start)
    for run_id in ("a", "b", "c"):
        queue.change(joined(run_id, admitted.queue_entry, limits_of(config)))
    assert [call.run_id for call in queue.settle(0)] == ["a"]
    queue.update_options("shop-fn", limits_of(config_of(concurrency=[{"limit": 3}])))
    assert [call.run_id for call in queue.settle(0)] == ["b", "c"]


def test_the_state_of_thousands_of_waiting_keys_fits_a_payload() -> None:
    config = config_of(concurrency=[{"limit": 1, "key": "event.data.user"}, {"limit": 5}])
    flow, queue = read_flow(config), CallLimitQueue(LimitQueueState())
    for number in range(5000):
        admitted = start(flow, event(user=number), lambda _: None, number).outcome
        assert isinstance(admitted, Start)
        queue.change(joined(f"01M8336NZCHFCZ56CWKF{number:06}", admitted.queue_entry, limits_of(config)))
    queue.settle(0)
    packed = pack(queue.state)
    assert len(msgspec.json.encode(packed)) < 1_000_000
    assert CallLimitQueue(unpack(packed)).counts == queue.counts


def test_a_throttle_continues_after_the_clock_was_set_back() -> None:
    config = config_of(throttle={"limit": 1, "period": "1s"})
    admitted = start(read_flow(config), event(), lambda _: None, 0).outcome
    assert isinstance(admitted, Start)
    queue, now = CallLimitQueue(LimitQueueState()), 1_700_000_000_000

    def join(run_id: str) -> None:
        queue.change(joined(run_id, admitted.queue_entry, limits_of(config), starts_run=True))

    join("ahead")
    assert [made.run_id for made in queue.settle(now + 3_600_000)] == ["ahead"]
    queue = CallLimitQueue(unpack(pack(queue.state)))
    join("first")
    join("second")
    assert queue.settle(now) == []
    made = [made.run_id for second in (1, 2) for made in queue.settle(now + second * 1_001)]
    assert made == ["first", "second"]
