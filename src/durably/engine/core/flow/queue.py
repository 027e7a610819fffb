"""The queue of calls, which applies the limits of their functions.

A run's queue entry names its buckets. Its calls join the queue in a concurrency key, the queue of the calls with the
same buckets, and leave it. ``settle`` returns the calls that may be made now: those that are within their limits,
lowest position first. A returned call occupies its concurrency slots until it leaves.

One rule keeps this cheap: *a concurrency key waits at a limit only while that limit is reached.* When a limit has
capacity again, the concurrency keys that wait at it are checked in order, and no others, until it is reached again. A
key that has to wait for another limit moves there. Waiting calls cost only their rows.

The module is pure except for its rows, which it reads and writes through ``QueueRows`` within one transaction.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from .buckets import Bucket, Level, Pace
from .config import Flow


class EntrySlot(msgspec.Struct, frozen=True, array_like=True):
    """``limit_name`` is the function's concurrency limit that the bucket belongs to."""

    limit_name: str
    bucket_id: str


class QueueEntry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The data that a run carries for flow control.

    - ``position``: The run's position in its function's queue, lowest first.
    - ``throttle``: The id of the bucket that counts its start.
    - ``singleton``: The bucket that it owns.
    """

    position: int
    slots: tuple[EntrySlot, ...] = ()
    throttle: str | None = None
    singleton: Bucket | None = None

    @property
    def is_queued(self) -> bool:
        """Whether the run's calls, or at least the first, go through the queue."""
        return bool(self.slots) or self.throttle is not None

    def has_to_queue(self, *, starts_run: bool) -> bool:
        """Whether a call goes through the queue. For ``starts_run`` see ``join``."""
        return bool(self.slots) or (starts_run and self.throttle is not None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(QueueEntry)


def encode_queue_entry(queue_entry: QueueEntry) -> bytes:
    return _encoder.encode(queue_entry)


def decode_queue_entry(stored: bytes) -> QueueEntry:
    """Decode an entry. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return _decoder.decode(stored)


class QueuedCall(NamedTuple):
    """A call in the queue.

    Calls compare by the order in which they are made: by position, then by age of the run, then of the call.
    """

    position: int
    run_key: int
    generation: int


class Limit(NamedTuple):
    """A concurrency bucket under a ``maximum`` or, if that is 0, a throttle's bucket."""

    bucket_id: str
    maximum: int = 0


NO_LIMIT = Limit("")
"""The limit of a concurrency key that waits for nothing."""


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """A concurrency bucket that counts calls, with the function's limit.

    ``limit`` is ``None`` if the function no longer has it. Calls are still counted, because the limit may return.
    """

    limit_name: str
    bucket_id: str
    limit: int | None


class Throttled(msgspec.Struct, frozen=True, array_like=True):
    """A throttle's bucket.

    ``pace`` is ``None`` if the function no longer has a throttle.
    """

    bucket_id: str
    pace: Pace | None


class ConcurrencyKey(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of the calls with the same slots and throttle.

    ``first`` is its next call; ``throttle`` is set if its calls start runs.
    """

    id: str
    function_id: str
    slots: tuple[Slot, ...]
    throttle: Throttled | None
    first: QueuedCall
    waits_at: Limit = NO_LIMIT

    @property
    def limits(self) -> list[Limit]:
        """The limits at which the key may wait."""
        limits = [Limit(slot.bucket_id, slot.limit) for slot in self.slots if slot.limit is not None]
        if self.throttle is not None and self.throttle.pace is not None:
            limits.append(Limit(self.throttle.bucket_id))
        return limits


class ReachedLimit(NamedTuple):
    """A reached limit. ``ready_at`` is ``None`` if it depends on the calls under way."""

    limit: Limit
    ready_at: int | None = None


def key_of(queue_entry: QueueEntry, flow: Flow, call: QueuedCall, *, starts_run: bool) -> ConcurrencyKey:
    """The concurrency key in which a call queues, with the function's current numbers."""
    throttle = queue_entry.throttle if starts_run else None
    names = (flow.function_id, throttle, *(slot.bucket_id for slot in queue_entry.slots))
    return ConcurrencyKey(
        id=hashlib.blake2b(msgspec.msgpack.encode(names), digest_size=16).hexdigest(),
        function_id=flow.function_id,
        slots=_slots(flow, queue_entry.slots),
        throttle=_throttled(flow, throttle),
        first=call,
    )


def with_current_limits(flow: Flow, key: ConcurrencyKey) -> ConcurrencyKey:
    """The concurrency key with the function's current numbers."""
    throttle = None if key.throttle is None else key.throttle.bucket_id
    return msgspec.structs.replace(key, slots=_slots(flow, key.slots), throttle=_throttled(flow, throttle))


def _slots(flow: Flow, slots: Iterable[EntrySlot | Slot]) -> tuple[Slot, ...]:
    return tuple(Slot(slot.limit_name, slot.bucket_id, flow.limit(slot.limit_name)) for slot in slots)


def _throttled(flow: Flow, bucket_id: str | None) -> Throttled | None:
    return None if bucket_id is None else Throttled(bucket_id, flow.throttle)


def find_reached_limit(
    key: ConcurrencyKey, used: Callable[[str], int], level: Callable[[str], Level | None], now: int
) -> ReachedLimit | None:
    """The limit at which the concurrency key has to wait; ``None`` if there is none.

    The limit at which it already waits is preferred, if that is still closed.
    """
    reached = [ReachedLimit(limit) for limit in key.limits if limit.maximum and used(limit.bucket_id) >= limit.maximum]
    if key.throttle is not None and key.throttle.pace is not None:
        ready_at = key.throttle.pace.ready_at(level(key.throttle.bucket_id), now)
        if ready_at > now:
            reached.append(ReachedLimit(Limit(key.throttle.bucket_id), ready_at))
    return min(reached, key=lambda found: found.limit != key.waits_at, default=None)


def encode_key(key: ConcurrencyKey) -> bytes:
    return msgspec.msgpack.encode(key)


def decode_key(stored: bytes) -> ConcurrencyKey:
    """Decode a key. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return msgspec.msgpack.decode(stored, type=ConcurrencyKey)


class QueueRows(Protocol):
    """The queue's rows. Each method is one statement that an index answers."""

    def key(self, key_id: str) -> ConcurrencyKey | None: ...

    def put_key(self, key: ConcurrencyKey) -> None: ...

    def drop_key(self, key_id: str) -> None: ...

    def keys_of(self, function_id: str) -> list[ConcurrencyKey]: ...

    def first_key(self, limit: Limit) -> ConcurrencyKey | None:
        """The concurrency key with the lowest ``first`` that waits at the limit."""

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        """The lowest limit above ``above`` at which a concurrency key waits in the bucket."""

    def add_call(self, key_id: str, call: QueuedCall) -> None: ...

    def first_call(self, key_id: str) -> QueuedCall | None: ...

    def drop_call(self, run_key: int, generation: int) -> str | None:
        """Remove a queued call.

        Returns the id of its concurrency key, or ``None`` if it is not queued.
        """

    def used(self, bucket_id: str) -> int:
        """The number of calls that hold a slot of the bucket."""
        ...

    def put_used(self, bucket_id: str, used: int) -> None: ...

    def put_slots(self, run_key: int, generation: int, bucket_ids: tuple[str, ...]) -> None:
        """Store that a call holds a slot of each of the buckets."""

    def free_slots(self, run_key: int, generation: int) -> tuple[str, ...] | None: ...

    def level(self, bucket_id: str) -> Level | None: ...

    def put_level(self, bucket_id: str, level: Level) -> None: ...

    def put_throttle_time(self, bucket_id: str, ready_at: int) -> None:
        """Store the time at which to check the concurrency keys that wait at a throttle."""

    def take_due_throttles(self, until: int, at_most: int) -> list[str]:
        """Remove and return the buckets whose throttle times have passed."""
        ...


class _NewKey:
    """A concurrency key without a row, and its calls as a heap."""

    def __init__(self, key: ConcurrencyKey) -> None:
        self.key = key
        self.calls: list[QueuedCall] = []


class LimitQueue:
    """The queue for one transaction. ``now`` is milliseconds since the epoch."""

    def __init__(self, rows: QueueRows, now: int) -> None:
        self._rows = rows
        self._now = now
        self._made: list[QueuedCall] = []
        self._heap: list[tuple[QueuedCall, _NewKey | ConcurrencyKey]] = []
        self._new: dict[str, _NewKey] = {}
        self._freed: set[str] = set()
        self._to_check: set[Limit] = set()
        self._used: dict[str, int] = {}
        self._used_stored: dict[str, int] = {}
        self._levels: dict[str, Level | None] = {}

    def join(self, call: QueuedCall, queue_entry: QueueEntry, flow: Flow, *, starts_run: bool) -> None:
        """Add a call.

        ``starts_run`` is true for the first call of a run, not for its retries.
        """
        key = key_of(queue_entry, flow, call, starts_run=starts_run)
        if not key.slots and key.throttle is None:
            self._made.append(call)
            return
        stored = self._rows.key(key.id)
        if stored is None:
            heapq.heappush(self._new.setdefault(key.id, _NewKey(key)).calls, call)
            return
        self._rows.add_call(key.id, call)
        if not stored.waits_at.maximum:  # Its throttle's time is too late if the clock was set back.
            self._to_check.add(stored.waits_at)
        if call < stored.first:
            self._rows.put_key(msgspec.structs.replace(stored, first=call))

    def leave(self, run_key: int, generation: int) -> None:
        """Remove a call that has ended, or is no longer outstanding.

        Works for any call, and repeatedly.
        """
        holding_slots = self._rows.free_slots(run_key, generation)
        if holding_slots is not None:
            for bucket_id in holding_slots:
                self._used[bucket_id] = self._count(bucket_id) - 1
                self._freed.add(bucket_id)
            return
        key_id = self._rows.drop_call(run_key, generation)
        key = None if key_id is None else self._rows.key(key_id)
        if key is not None:
            self._advance(key)
        else:
            self._forget(run_key, generation)

    def check_throttles(self, at_most: int) -> bool:
        """Check throttles that are ready. Returns true if there may be more of them."""
        opened = self._rows.take_due_throttles(self._now, at_most)
        self._to_check.update(Limit(bucket_id) for bucket_id in opened)
        return len(opened) == at_most

    def update_limits(self, flow: Flow) -> None:
        """Apply a function's new limits to its queued calls."""
        for key in self._rows.keys_of(flow.function_id):
            changed = with_current_limits(flow, key)
            if changed != key:
                self._clip_level(changed)
                self._put_changed(changed)

    def settle(self) -> list[QueuedCall]:
        """The calls that may be made now, in order. They occupy their slots from now on."""
        self._made.sort()
        for new in self._new.values():
            heapq.heappush(self._heap, (new.calls[0], new))
        for limit in self._limits_to_check():
            self._push(limit)
        while self._heap:
            _, source = heapq.heappop(self._heap)
            if isinstance(source, _NewKey):
                self._check_new(source)
            else:
                self._check_waiting(source)
        self._write_counts()
        return self._made

    def _limits_to_check(self) -> set[Limit]:
        limits = set(self._to_check)
        for bucket_id in self._freed:
            maximum = self._count(bucket_id)
            while (found := self._rows.next_limit(bucket_id, maximum)) is not None:
                limits.add(Limit(bucket_id, found))
                maximum = found
        return limits

    def _push(self, limit: Limit) -> None:
        """Check the first concurrency key that waits at a limit, in order.

        Keys join only closed limits, and limits do not reopen within a transaction, so this order is stable. A
        concurrency key with two limits that both change constantly may move between them at every transaction. That
        takes three limits on one function, two of them coarse and one fine. Otherwise a transaction moves at most as
        many concurrency keys as calls are under way.
        """
        key = self._rows.first_key(limit)
        if key is not None:
            heapq.heappush(self._heap, (key.first, key))

    def _check_waiting(self, key: ConcurrencyKey) -> None:
        reached = self._find_reached_limit(key)
        if reached is not None:
            if reached.ready_at is not None:
                self._rows.put_throttle_time(reached.limit.bucket_id, reached.ready_at)
            if reached.limit == key.waits_at:
                return
            self._rows.put_key(msgspec.structs.replace(key, waits_at=reached.limit))
        else:
            self._rows.drop_call(key.first.run_key, key.first.generation)
            self._make(key, key.first)
            self._advance(key)
        self._push(key.waits_at)

    def _check_new(self, new: _NewKey) -> None:
        reached = self._find_reached_limit(new.key)
        if reached is None:
            self._make(new.key, heapq.heappop(new.calls))
            if new.calls:
                heapq.heappush(self._heap, (new.calls[0], new))
            return
        if reached.ready_at is not None:
            self._rows.put_throttle_time(reached.limit.bucket_id, reached.ready_at)
        self._rows.put_key(msgspec.structs.replace(new.key, first=new.calls[0], waits_at=reached.limit))
        for call in new.calls:
            self._rows.add_call(new.key.id, call)

    def _find_reached_limit(self, key: ConcurrencyKey) -> ReachedLimit | None:
        self._clip_level(key)
        return find_reached_limit(key, self._count, self._level, self._now)

    def _clip_level(self, key: ConcurrencyKey) -> None:
        if key.throttle is None or key.throttle.pace is None:
            return
        bucket_id = key.throttle.bucket_id
        level = self._level(bucket_id)
        clipped = None if level is None else key.throttle.pace.clip(level, self._now)
        if clipped is not None and clipped is not level:
            self._levels[bucket_id] = clipped
            self._rows.put_level(bucket_id, clipped)

    def _make(self, key: ConcurrencyKey, call: QueuedCall) -> None:
        for slot in key.slots:
            self._used[slot.bucket_id] = self._count(slot.bucket_id) + 1
        if key.slots:
            self._rows.put_slots(call.run_key, call.generation, tuple(slot.bucket_id for slot in key.slots))
        if key.throttle is not None and key.throttle.pace is not None:
            bucket_id = key.throttle.bucket_id
            level = key.throttle.pace.take(self._level(bucket_id), self._now)
            self._levels[bucket_id] = level
            self._rows.put_level(bucket_id, level)
        self._made.append(call)

    def _advance(self, key: ConcurrencyKey) -> None:
        """Update a concurrency key after a call has left its rows."""
        first = self._rows.first_call(key.id)
        if first is None:
            self._rows.drop_key(key.id)
        elif first != key.first:
            self._rows.put_key(msgspec.structs.replace(key, first=first))

    def _put_changed(self, key: ConcurrencyKey) -> None:
        """Write a concurrency key whose limits may have changed, and check it."""
        limits = key.limits
        if key.waits_at not in limits:
            key = msgspec.structs.replace(key, waits_at=limits[0] if limits else NO_LIMIT)
        self._to_check.add(key.waits_at)
        self._rows.put_key(key)

    def _forget(self, run_key: int, generation: int) -> None:
        """Drop a call that has joined in this transaction."""
        self._made = [call for call in self._made if (call.run_key, call.generation) != (run_key, generation)]
        for key_id, new in list(self._new.items()):
            new.calls = [call for call in new.calls if (call.run_key, call.generation) != (run_key, generation)]
            heapq.heapify(new.calls)
            if not new.calls:
                del self._new[key_id]

    def _count(self, bucket_id: str) -> int:
        used = self._used.get(bucket_id)
        if used is None:
            used = self._used[bucket_id] = self._used_stored[bucket_id] = self._rows.used(bucket_id)
        return used

    def _level(self, bucket_id: str) -> Level | None:
        if bucket_id not in self._levels:
            self._levels[bucket_id] = self._rows.level(bucket_id)
        return self._levels[bucket_id]

    def _write_counts(self) -> None:
        for bucket_id, used in self._used.items():
            if used != self._used_stored[bucket_id]:
                self._rows.put_used(bucket_id, used)
