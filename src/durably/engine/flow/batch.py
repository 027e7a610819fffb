"""Batch: one run for several events.

A batch opens with its first event and closes when it is full, in number or in bytes, or when its time is up. Events for
which the condition does not hold, or cannot be told, start runs of their own.
"""

import msgspec

from durably.engine.expressions import Expression, Kind
from durably.protocol import sync
from durably.protocol.limits import MAX_BATCH_SIZE

from .buckets import Bucket, BucketKind, BucketState, Fields, ReadState, key_of
from .reading import OptionReader

MAX_BATCH_BYTES = 10 * 1024 * 1024


class Batch(msgspec.Struct, frozen=True):
    """``timeout`` is milliseconds."""

    max_size: int
    timeout: int
    key: Expression | None = None
    condition: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket | None:
        """``None`` where the event is not to be batched."""
        if self.condition is not None and not self.condition.matches(event):
            return None
        return Bucket(BucketKind.BATCH, function_id, key_of(self.key, event))


class OpenBatch(BucketState, frozen=True, array_like=True):
    """``id`` is the key of the batch's first event, ``bytes`` the size of all of its events, ``due`` when it closes
    at the latest."""

    id: int
    size: int
    bytes: int
    due: int

    def is_full(self, rule: Batch) -> bool:
        return self.size >= rule.max_size or self.bytes >= MAX_BATCH_BYTES


def read_batch(config: sync.BatchEvents | None, reader: OptionReader) -> Batch | None:
    if config is None:
        return None
    if not config.timeout:
        raise reader.refuse("batch_events.timeout", "is missing: a batch that does not fill up would never start a run")
    return Batch(
        max_size=reader.count("batch_events.max_size", config.max_size, at_least=2, at_most=MAX_BATCH_SIZE),
        timeout=reader.duration("batch_events.timeout", config.timeout),
        key=reader.expression("batch_events.key", config.key),
        condition=reader.expression("batch_events.if_exp", config.if_exp, gives=Kind.BOOL),
    )


def join_batch(rule: Batch, bucket: Bucket, read: ReadState, event_key: int, event_bytes: int, now: int) -> OpenBatch:
    """The batch with the event in it."""
    batch = OpenBatch.load(read, bucket)
    if batch is None:
        return OpenBatch(event_key, 1, event_bytes, now + rule.timeout)
    return OpenBatch(batch.id, batch.size + 1, batch.bytes + event_bytes, batch.due)
