"""Events held back: a batch starts one run for several, a debounce one for the last."""

import datetime as dt

import msgspec

from durably.engine.core.expressions import Expression, Kind
from durably.protocol import sync
from durably.protocol.limits import MAX_BATCH_SIZE

from .buckets import Bucket, BucketKind, BucketState, Fields, ReadState, key_of
from .option_values import OptionReader

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


_LONGEST_PERIOD = dt.timedelta(days=7)


class Debounce(msgspec.Struct, frozen=True):
    """``period`` and ``timeout`` are milliseconds."""

    period: int
    timeout: int | None = None
    key: Expression | None = None

    def bucket(self, function_id: str, event: Fields) -> Bucket:
        return Bucket(BucketKind.DEBOUNCE, function_id, key_of(self.key, event))


class PendingDebounce(BucketState, frozen=True, array_like=True):
    """The event that the run is to get, when it is to start, and when at the latest."""

    event_key: int
    event_ts: int
    due: int
    deadline: int | None = None


def read_debounce(config: sync.Debounce | None, reader: OptionReader) -> Debounce | None:
    if config is None:
        return None
    period = reader.duration("debounce.period", config.period, at_most=_LONGEST_PERIOD)
    timeout = reader.duration("debounce.timeout", config.timeout) if config.timeout else None
    if timeout is not None and timeout < period:
        raise reader.refuse(
            "debounce.timeout",
            f"is {config.timeout!r}, less than the period of {config.period!r}: no run would ever wait for the period",
        )
    return Debounce(period, timeout, reader.expression("debounce.key", config.key))


def debounce(rule: Debounce, pending: PendingDebounce | None, event_key: int, ts: int, now: int) -> PendingDebounce:
    """What is pending after an event; ``ts`` is the event's own timestamp."""
    if pending is None:
        deadline = None if rule.timeout is None else now + rule.timeout
    elif ts < pending.event_ts:
        return pending
    else:
        deadline = pending.deadline
    due = now + rule.period
    return PendingDebounce(event_key, ts, due if deadline is None else min(due, deadline), deadline)
