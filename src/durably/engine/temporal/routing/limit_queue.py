"""The queue of calls that share limits, and its workflow.

The rows are those of ``engine.core.flow.queue``.
"""

import asyncio
import datetime as dt
import heapq

import msgspec
from temporalio import workflow

from durably.engine.core.flow.admission import Start, start
from durably.engine.core.flow.buckets import Level
from durably.engine.core.flow.config import Flow, read_flow
from durably.engine.core.flow.queue import ConcurrencyKey, Limit, LimitQueue, QueuedCall, QueueEntry, QueueRows
from durably.engine.temporal.ids import bucket_workflow_id
from durably.engine.temporal.messages import EventRecord, RunFlowState
from durably.engine.temporal.routing.bucket import FIND_ENDED, ActiveRun
from durably.engine.temporal.workflow_code import (
    EarliestTimer,
    history_is_long,
    now,
    pack,
    unpack,
)
from durably.protocol.options import FunctionOptions
from durably.protocol.sync import FunctionConfig


class CallId(msgspec.Struct, frozen=True, array_like=True):
    """A call of a run."""

    run_id: str
    generation: int


class QueueChange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Calls of a run that need slots, or whose start is throttled, and calls that have ended or are not made.

    ``starts_run``: the first of ``joined`` is the first call of the run.
    """

    queue: str
    function_id: str
    run_id: str
    queue_entry: QueueEntry
    joined: tuple[int, ...] = ()
    starts_run: bool = False
    left: tuple[int, ...] = ()


class QueueSignal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The argument of the signal ``change``. ``options`` are the function's current limits, if calls join."""

    change: QueueChange
    options: FunctionOptions | None = None


class SlotHolder(msgspec.Struct, frozen=True, array_like=True):
    run_key: int
    generation: int
    buckets: tuple[str, ...]


class ThrottleLevel(msgspec.Struct, frozen=True, array_like=True):
    """``ready_at`` is set while calls wait for the throttle."""

    level: Level | None = None
    ready_at: int | None = None


class LimitQueueState(msgspec.Struct, omit_defaults=True):
    """The state of a queue.

    ``runs`` are by key, ``calls`` by concurrency key id. The next ``settle`` applies ``joined``, ``left`` and
    ``changed``.
    """

    options: dict[str, FunctionOptions] = {}
    runs: dict[int, ActiveRun] = {}
    next_key: int = 1
    keys: list[ConcurrencyKey] = []
    calls: dict[str, list[QueuedCall]] = {}
    made: list[SlotHolder] = []
    throttles: dict[str, ThrottleLevel] = {}
    joined: list[tuple[CallId, QueueChange]] = []
    left: list[CallId] = []
    changed: dict[str, FunctionOptions] = {}
    packed: bytes = b""


class QueueCounts(msgspec.Struct, frozen=True):
    """Numbers of calls in a queue: the answer of the query ``counts``."""

    waiting: int
    under_way: int


class MemoryRows(QueueRows):
    def __init__(self, state: LimitQueueState) -> None:
        self._keys = {key.id: key for key in state.keys}
        self._calls = {key_id: [QueuedCall(*call) for call in calls] for key_id, calls in state.calls.items()}
        self._key_of = {
            (call.run_key, call.generation): key_id for key_id, calls in self._calls.items() for call in calls
        }
        self._made = {(held.run_key, held.generation): held.buckets for held in state.made}
        self._used: dict[str, int] = {}
        for buckets in self._made.values():
            for bucket_id in buckets:
                self._used[bucket_id] = self._used.get(bucket_id, 0) + 1
        self._throttles = dict(state.throttles)
        self._by_run: dict[int, set[int]] = {}
        for run_key, generation in (*self._key_of, *self._made):
            self._by_run.setdefault(run_key, set()).add(generation)

    def write_to(self, state: LimitQueueState) -> None:
        state.keys = list(self._keys.values())
        state.calls = self._calls
        state.made = [SlotHolder(*call, buckets) for call, buckets in self._made.items()]
        state.throttles = self._throttles

    # queries of the workflow

    def is_known(self, run_key: int, generation: int) -> bool:
        """Whether the call waits or has slots."""
        return (run_key, generation) in self._key_of or (run_key, generation) in self._made

    def calls_of(self, run_key: int) -> list[int]:
        """The generations of a run's calls that wait or have slots."""
        return sorted(self._by_run.get(run_key, ()))

    def has_run(self, run_key: int) -> bool:
        return run_key in self._by_run

    @property
    def counts(self) -> QueueCounts:
        return QueueCounts(len(self._key_of), len(self._made))

    def next_throttle(self) -> int | None:
        times = (each.ready_at for each in self._throttles.values() if each.ready_at is not None)
        return min(times, default=None)

    def forget_levels(self, now: int) -> None:
        self._throttles = {
            bucket_id: each
            for bucket_id, each in self._throttles.items()
            if each.ready_at is not None or (each.level is not None and each.level.expires > now)
        }

    def last_level(self) -> int | None:
        """The time at which the last throttle level expires."""
        return max((each.level.expires for each in self._throttles.values() if each.level is not None), default=None)

    # concurrency keys

    def key(self, key_id: str) -> ConcurrencyKey | None:
        return self._keys.get(key_id)

    def put_key(self, key: ConcurrencyKey) -> None:
        self._keys[key.id] = key

    def drop_key(self, key_id: str) -> None:
        self._keys.pop(key_id, None)

    def keys_of(self, function_id: str) -> list[ConcurrencyKey]:
        return [key for key in self._keys.values() if key.function_id == function_id]

    def first_key(self, limit: Limit) -> ConcurrencyKey | None:
        waiting = (key for key in self._keys.values() if key.waits_at == limit)
        return min(waiting, key=lambda key: key.first, default=None)

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        limits = (key.waits_at for key in self._keys.values())
        found = (limit.maximum for limit in limits if limit.bucket_id == bucket_id and limit.maximum > above)
        return min(found, default=None)

    # calls

    def add_call(self, key_id: str, call: QueuedCall) -> None:
        heapq.heappush(self._calls.setdefault(key_id, []), call)
        self._key_of[call.run_key, call.generation] = key_id
        self._by_run.setdefault(call.run_key, set()).add(call.generation)

    def first_call(self, key_id: str) -> QueuedCall | None:
        calls = self._calls.get(key_id)
        return calls[0] if calls else None

    def drop_call(self, run_key: int, generation: int) -> str | None:
        key_id = self._key_of.pop((run_key, generation), None)
        if key_id is not None:
            heap = self._calls[key_id]
            if (heap[0].run_key, heap[0].generation) == (run_key, generation):
                heapq.heappop(heap)
            else:
                heap[:] = [call for call in heap if (call.run_key, call.generation) != (run_key, generation)]
                heapq.heapify(heap)
            self._forget(run_key, generation)
            if not self._calls[key_id]:
                del self._calls[key_id]
        return key_id

    # slots

    def used(self, bucket_id: str) -> int:
        return self._used.get(bucket_id, 0)

    def put_used(self, bucket_id: str, used: int) -> None:
        if used:
            self._used[bucket_id] = used
        else:
            self._used.pop(bucket_id, None)

    def put_slots(self, run_key: int, generation: int, bucket_ids: tuple[str, ...]) -> None:
        self._made[run_key, generation] = bucket_ids
        self._by_run.setdefault(run_key, set()).add(generation)

    def free_slots(self, run_key: int, generation: int) -> tuple[str, ...] | None:
        bucket_ids = self._made.pop((run_key, generation), None)
        if bucket_ids is not None:
            self._forget(run_key, generation)
        return bucket_ids

    def _forget(self, run_key: int, generation: int) -> None:
        generations = self._by_run[run_key]
        generations.discard(generation)
        if not generations:
            del self._by_run[run_key]

    # throttles

    def level(self, bucket_id: str) -> Level | None:
        found = self._throttles.get(bucket_id)
        return None if found is None else found.level

    def put_level(self, bucket_id: str, level: Level) -> None:
        found = self._throttles.get(bucket_id, ThrottleLevel())
        self._throttles[bucket_id] = ThrottleLevel(level, found.ready_at)

    def put_throttle_time(self, bucket_id: str, ready_at: int) -> None:
        self._throttles[bucket_id] = ThrottleLevel(self.level(bucket_id), ready_at)

    def take_due_throttles(self, until: int, at_most: int) -> list[str]:
        due = [
            bucket_id
            for bucket_id, each in self._throttles.items()
            if each.ready_at is not None and each.ready_at <= until
        ][:at_most]
        for bucket_id in due:
            self._throttles[bucket_id] = ThrottleLevel(self.level(bucket_id))
        return due


def queue_workflow_id(flow: Flow, entry: QueueEntry) -> str:
    """The id of the workflow that queues the calls of a run.

    A function with one limit has a queue for each value of the key. A function with several limits has one queue. If
    functions share a limit, their calls share a queue (see ``support.py``).
    """
    shared = [limit.name for limit in flow.concurrency if limit.scope != "fn"]
    buckets = {slot.limit_name: slot.bucket_id for slot in entry.slots}
    if shared:
        return bucket_workflow_id(shared[0].partition(":")[0], "concurrency", buckets[shared[0]])
    if len(buckets) == 1 and entry.throttle is None:
        return bucket_workflow_id(flow.function_id, "concurrency", *buckets.values())
    if not buckets and entry.throttle is not None:
        return bucket_workflow_id(flow.function_id, "throttle", entry.throttle)
    return bucket_workflow_id(flow.function_id, "concurrency", "")


def run_flow_of(flow: Flow, event: EventRecord, now: int) -> RunFlowState | None:
    """The queue for the calls of a run that is admitted now.

    Returns ``None`` if its calls need not wait. Singletons are decided by buckets.
    """
    if flow.is_plain:
        return None
    admitted = start(flow, msgspec.json.decode(event.body), lambda bucket_id: None, now).outcome
    assert isinstance(admitted, Start)
    queue_entry = msgspec.structs.replace(admitted.queue_entry, singleton=None)
    if not queue_entry.is_queued:
        return None
    run_flow = RunFlowState(queue=queue_workflow_id(flow, queue_entry), queue_entry=queue_entry)
    start_by = admitted.start_by
    if start_by is None or start_by == flow.start_by(now + 1):  # The timeout is a date.
        return msgspec.structs.replace(run_flow, start_by=start_by)
    return msgspec.structs.replace(run_flow, start_within=start_by - now)


def limits_of(config: FunctionConfig) -> FunctionOptions:
    """The options that a queue applies."""
    return FunctionOptions(concurrency=config.concurrency, throttle=config.throttle)


class CallLimitQueue:
    """All calls that share a limit. A call keeps its slots until it leaves. Pure; a workflow drives it."""

    def __init__(self, state: LimitQueueState) -> None:
        self._state = state
        self._rows = MemoryRows(state)
        self._keys = {run.run_id: key for key, run in state.runs.items()}
        self._joined: dict[CallId, QueueChange] = dict(state.joined)
        self._left = list(state.left)
        self._changed = dict(state.changed)
        self._flows: dict[str, Flow] = {}

    @property
    def state(self) -> LimitQueueState:
        """The state for the next execution of the workflow."""
        self._rows.write_to(self._state)
        self._state.joined, self._state.left, self._state.changed = [*self._joined.items()], self._left, self._changed
        return self._state

    @property
    def is_empty(self) -> bool:
        """Whether the queue is empty. Throttle levels count until they expire."""
        return not (self._joined or self._left or self._changed or self._state.runs or self._rows.last_level())

    @property
    def counts(self) -> QueueCounts:
        return self._rows.counts

    @property
    def active(self) -> list[ActiveRun]:
        """The runs with calls that wait or have slots."""
        return list(self._state.runs.values())

    @property
    def function_ids(self) -> list[str]:
        return list(self._state.options)

    def change(self, signal: QueueSignal) -> None:
        """Queue and remove calls of a run. Repeating it changes nothing."""
        change = signal.change
        if signal.options is not None:
            self.update_options(change.function_id, signal.options)
        for generation in change.joined:
            self._joined.setdefault(CallId(change.run_id, generation), change)
        self._left += [CallId(change.run_id, generation) for generation in change.left]

    def leave(self, call: CallId) -> None:
        """Remove a call that has ended or is not made. Unknown calls are ignored."""
        self._left.append(call)

    def drop_run(self, run_id: str) -> None:
        """Remove the calls of a run that has ended."""
        key = self._keys.get(run_id)
        for generation in [] if key is None else self._rows.calls_of(key):
            self._left.append(CallId(run_id, generation))

    def next_time(self) -> int | None:
        """The time when a throttle opens or the last level expires."""
        opening = self._rows.next_throttle()
        return opening if opening is not None or self._state.runs else self._rows.last_level()

    def update_options(self, function_id: str, options: FunctionOptions) -> None:
        """Apply the current limits of a function at the next ``settle``."""
        if self._state.options.get(function_id) != options:
            self._changed[function_id] = options

    def settle(self, now: int) -> list[CallId]:
        """The calls that may be made now, in order."""
        queue = LimitQueue(self._rows, now)
        for function_id, options in self._changed.items():
            before = self._state.options.get(function_id)
            self._state.options[function_id] = options
            if before is not None and before != options:
                self._flows.pop(function_id, None)
                queue.update_limits(self._flow(function_id))
        for call, change in self._joined.items():
            self._join(queue, change, call.generation, now)
        touched = {call.run_id for call in (*self._joined, *self._left)}
        for left in self._left:
            if (key := self._keys.get(left.run_id)) is not None:
                queue.leave(key, left.generation)
        self._joined, self._left, self._changed = {}, [], {}
        queue.check_throttles(1000)
        made = [CallId(self._state.runs[call.run_key].run_id, call.generation) for call in queue.settle()]
        for run_id in sorted(touched | {call.run_id for call in made}):
            key = self._keys.get(run_id)
            if key is not None and not self._rows.has_run(key):
                del self._keys[run_id], self._state.runs[key]
        self._rows.forget_levels(now)
        return made

    def _join(self, queue: LimitQueue, change: QueueChange, generation: int, now: int) -> None:
        key = self._keys.get(change.run_id)
        if key is None:
            key, self._state.next_key = self._state.next_key, self._state.next_key + 1
            self._keys[change.run_id] = key
            self._state.runs[key] = ActiveRun(change.run_id, now)
        elif self._rows.is_known(key, generation):
            return
        queued = QueuedCall(change.queue_entry.position, key, generation)
        starts_run = change.starts_run and generation == change.joined[0]
        queue.join(queued, change.queue_entry, self._flow(change.function_id), starts_run=starts_run)

    def _flow(self, function_id: str) -> Flow:
        if function_id not in self._flows:
            options = msgspec.structs.asdict(self._state.options[function_id])
            self._flows[function_id] = read_flow(FunctionConfig(id=function_id, triggers=[], steps={}, **options))
        return self._flows[function_id]


QUEUE = "durably.LimitQueue"
GRANT = "durably.grant"
READ_LIMITS = "durably.read_limits"
CHANGE_QUEUE = "durably.change_queue"
"""The local activity by which a run changes its calls in a queue."""
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_GRANT_TIMEOUT = dt.timedelta(seconds=5)
_INSPECTION_PERIOD = 60_000
"""Milliseconds between inspections, which find terminated runs and new limits."""


@workflow.defn(name=QUEUE, sandboxed=False)
class LimitQueueWorkflow:
    @workflow.init
    def __init__(self, state: LimitQueueState) -> None:
        self._queue = CallLimitQueue(unpack(state))
        self._granting: set[asyncio.Task[None]] = set()
        self._is_changed = False
        self._timer = EarliestTimer(self._wake)
        self._inspection = 0

    @workflow.run
    async def run(self, state: LimitQueueState) -> None:
        self._inspection = now() + _INSPECTION_PERIOD
        while True:
            self._is_changed = False
            if self._inspection <= now():
                await self._inspect()
            if made := self._queue.settle(now()):
                task = asyncio.create_task(self._grant(made))
                self._granting.add(task)
                task.add_done_callback(self._granting.discard)
            if history_is_long():
                await workflow.wait_condition(lambda: not self._granting)
                workflow.continue_as_new(pack(self._queue.state))
            if self._queue.is_empty and not (self._granting or self._is_changed):
                return
            times = [self._queue.next_time(), self._inspection if self._queue.active else None]
            self._timer.set(min((each for each in times if each is not None), default=None))
            await workflow.wait_condition(lambda: self._is_changed)

    @workflow.signal(name="change")
    def change(self, signal: QueueSignal) -> None:
        self._queue.change(signal)
        self._is_changed = True

    @workflow.query(name="counts")
    def counts(self) -> QueueCounts:
        return self._queue.counts

    async def _grant(self, calls: list[CallId]) -> None:
        """Tell runs of their slots.

        An activity is faster than signals of this workflow: the server starts it with the answer to the workflow task.
        It may be repeated, and a repeated grant changes nothing.
        """
        for call in await workflow.execute_activity(
            GRANT, calls, result_type=list[CallId], start_to_close_timeout=_GRANT_TIMEOUT
        ):
            self._queue.leave(call)  # The run has ended.
        self._is_changed = True

    async def _inspect(self) -> None:
        """Free the slots of terminated runs, and read the functions' limits."""
        active, function_ids = self._queue.active, self._queue.function_ids
        if active:
            for run_id in await workflow.execute_local_activity(
                FIND_ENDED, active, result_type=list[str], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                self._queue.drop_run(run_id)
        if self._queue.counts.waiting:
            for function_id, options in await workflow.execute_local_activity(
                READ_LIMITS,
                function_ids,
                result_type=list[tuple[str, FunctionOptions]],
                start_to_close_timeout=_LOCAL_TIMEOUT,
            ):
                self._queue.update_options(function_id, options)
        self._inspection = now() + _INSPECTION_PERIOD

    def _wake(self, due: int) -> None:
        self._is_changed = True
