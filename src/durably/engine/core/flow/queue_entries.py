"""Queue entries of runs, and the concurrency keys in which their calls wait."""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from . import rates
from .buckets import Bucket
from .config import Flow
from .rates import Level, Pace


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
        ready_at = rates.ready_at(key.throttle.pace, level(key.throttle.bucket_id), now)
        if ready_at > now:
            reached.append(ReachedLimit(Limit(key.throttle.bucket_id), ready_at))
    return min(reached, key=lambda found: found.limit != key.waits_at, default=None)


def encode_key(key: ConcurrencyKey) -> bytes:
    return msgspec.msgpack.encode(key)


def decode_key(stored: bytes) -> ConcurrencyKey:
    """Decode a key. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return msgspec.msgpack.decode(stored, type=ConcurrencyKey)
