"""The state of a queue of calls: messages, and rows for its decisions.

The rows are those of ``engine.core.flow.queue``. Messages are in histories: fields are only ever added.
"""

import heapq

import msgspec

from durably.engine.core.flow.buckets import Level
from durably.engine.core.flow.queue import ConcurrencyKey, Limit, QueuedCall, QueueEntry, QueueRows
from durably.protocol.options import FunctionOptions

from .bucket import ActiveRun


class JoinInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that needs slots, or a start that is throttled."""

    queue: str
    function_id: str
    run_id: str
    generation: int
    queue_entry: QueueEntry
    starts_run: bool = False


class JoinRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The argument of the signal ``join``, with the function's current limits."""

    call: JoinInput
    options: FunctionOptions


class LeaveRecord(msgspec.Struct, frozen=True, array_like=True):
    """The argument of the signal ``leave``: a call has ended, or will not be made."""

    run_id: str
    generation: int


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

    ``runs`` are by key, ``calls`` by concurrency key id. The next ``settle`` applies ``joined`` and ``left``.
    """

    options: dict[str, FunctionOptions] = {}
    runs: dict[int, ActiveRun] = {}
    next_key: int = 1
    keys: list[ConcurrencyKey] = []
    calls: dict[str, list[QueuedCall]] = {}
    made: list[SlotHolder] = []
    throttles: dict[str, ThrottleLevel] = {}
    joined: list[JoinRecord] = []
    left: list[LeaveRecord] = []
    packed: bytes = b""


class FunctionLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    function_id: str
    options: FunctionOptions


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
            _remove(self._calls[key_id], run_key, generation)
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


def _remove(heap: list[QueuedCall], run_key: int, generation: int) -> None:
    if (heap[0].run_key, heap[0].generation) == (run_key, generation):
        heapq.heappop(heap)
        return
    heap[:] = [call for call in heap if (call.run_key, call.generation) != (run_key, generation)]
    heapq.heapify(heap)
