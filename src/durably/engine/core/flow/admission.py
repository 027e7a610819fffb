"""Admission: the decision about an event that triggers a function.

The options are applied in a fixed order. An event that repeats another or exceeds a limit starts no run. A debounced or
batched event starts a run later. A singleton skips the event, or cancels the run before. Otherwise a run starts, and
its calls go through the ``queue``. The module stores no state: decisions carry the states to store.
"""

import datetime as dt
import math
from enum import StrEnum

import msgspec

from durably.engine.core.expressions import Expression
from durably.protocol.errors import ErrorData
from durably.protocol.limits import IDEMPOTENCY_PERIOD
from durably.protocol.options import milliseconds

from .buckets import Bucket, BucketKind, BucketState, Fields, Level, ReadState, StateChange
from .config import Flow, deadline
from .queue import EntrySlot, QueueEntry

MAX_BATCH_BYTES = 10 * 1024 * 1024
MAX_PRIORITY_SECONDS = 600
_IDEMPOTENCY_PERIOD = IDEMPOTENCY_PERIOD // dt.timedelta(milliseconds=1)


class Trigger(msgspec.Struct, frozen=True):
    """The stored event that triggers the function.

    ``key`` grows from event to event, ``bytes`` is its size as JSON.
    """

    key: int
    fields: Fields
    bytes: int


class SkipReason(StrEnum):
    IDEMPOTENCY = "idempotency"
    RATE_LIMIT = "rate_limit"
    SINGLETON = "singleton"


SKIP_REASONS = {
    SkipReason.IDEMPOTENCY: "an event with the same value of its idempotency expression came less than 24 hours before",
    SkipReason.RATE_LIMIT: "the event is over its rate limit",
    SkipReason.SINGLETON: "a run of it is under way (singleton)",
}
PAUSED = "it is paused"
REPLACED = "a later event replaced this one (debounce)"
STARTED_LATE = "the run was cancelled: it had not started by the time that timeouts.start allows"
FINISHED_LATE = "the run was cancelled: it had not ended by the time that timeouts.finish allows"
CANCELLED_BY_SINGLETON = "the run was cancelled: a newer run replaced it (singleton)"


def skipped_error(function_id: str, reason: str) -> ErrorData:
    """The output of a skipped run, and the error of a step that invoked the function."""
    message = f"no run of the function {function_id!r} was started: {reason}"
    return ErrorData(name="FunctionSkippedError", message=message)


class CancelOn(msgspec.Struct, frozen=True):
    """An event that cancels one run.

    ``until`` is ``None`` if it can do so until the run ends. In ``condition``, ``event`` is the run's trigger and
    ``async`` the cancelling event.
    """

    event: str
    condition: Expression | None = None
    until: int | None = None


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start a run, after cancelling the run with the key ``cancels``, if any.

    Events of ``cancel_on`` cancel the run, and so does the time ``start_by`` if its first call was not made before. If
    its queue entry has a ``singleton``, store ``take_singleton(queue_entry, run_key)`` with it.
    """

    queue_entry: QueueEntry
    cancels: int | None = None
    cancel_on: tuple[CancelOn, ...] = ()
    start_by: int | None = None


class Skip(msgspec.Struct, frozen=True):
    """Start no run. ``run_key`` is the run of the singleton, if that is the reason."""

    reason: SkipReason
    run_key: int | None = None


class Debounced(msgspec.Struct, frozen=True):
    """Start a run at ``fires_at``, for the event that is then pending in the bucket.

    ``fired_at_before`` is the time at which the run would have started without this event, if an event was pending.
    ``dropped`` is the key of the event without a run: the pending event, or this one if it is older.
    """

    bucket: Bucket
    fires_at: int
    fired_at_before: int | None = None
    dropped: int | None = None


class Batched(msgspec.Struct, frozen=True):
    """Add the event to the batch.

    Start a run for the batch now if it ``is_full``, otherwise at ``fires_at``.
    """

    bucket: Bucket
    batch: "OpenBatch"
    is_full: bool

    @property
    def fires_at(self) -> int:
        return self.batch.fires_at


class Admission(msgspec.Struct, frozen=True):
    """The decision, and the states to store in the same transaction."""

    outcome: Start | Skip | Debounced | Batched
    changes: tuple[StateChange, ...] = ()


class OpenBatch(BucketState, frozen=True, array_like=True):
    """A batch that still accepts events.

    ``id`` is the key of the batch's first event, ``bytes`` the size of all its events, ``fires_at`` the latest time at
    which it closes.
    """

    id: int
    size: int
    bytes: int
    fires_at: int


class PendingDebounce(BucketState, frozen=True, array_like=True):
    """The event for which a run starts at ``fires_at``.

    ``deadline`` is the latest time to which it is postponed.
    """

    event_key: int
    event_ts: int
    fires_at: int
    deadline: int | None = None


class Seen(BucketState, frozen=True, array_like=True):
    """A value of an idempotency expression, which skips events ``until`` a time."""

    until: int


class Holder(BucketState, frozen=True, array_like=True):
    """The run that owns a singleton."""

    run_key: int


def admit(
    flow: Flow, trigger: Trigger, read: ReadState, now: int, *, max_batch_bytes: int = MAX_BATCH_BYTES
) -> Admission:
    """Decide about an event that has just triggered the function."""
    event, options = trigger.fields, flow.options
    if options.batch_events is not None and is_batched(flow, event, now):
        return _add_to_batch(flow, trigger, read, now, max_batch_bytes)
    changes: tuple[StateChange, ...] = ()
    if options.idempotency and (bucket := flow.bucket(BucketKind.IDEMPOTENCY, event, now)) is not None:
        seen = Seen.load(read, bucket)
        until = now + _IDEMPOTENCY_PERIOD
        seen_now = StateChange(bucket, Seen(until).encode(), expires=until)
        if seen is not None and now < seen.until:
            # After the clock was set back, the value is skipped for a day of the new time, and not for longer.
            return Admission(Skip(SkipReason.IDEMPOTENCY), (seen_now,) if seen.until > until else ())
        changes = (seen_now,)
    if flow.rate_limit is not None and (bucket := flow.bucket(BucketKind.RATE_LIMIT, event, now)) is not None:
        level = Level.load(read, bucket)
        if flow.rate_limit.ready_at(level, now) > now:
            clipped = None if level is None else flow.rate_limit.clip(level, now)
            stored = () if clipped is None or clipped is level else (_level_change(bucket, clipped),)
            return Admission(Skip(SkipReason.RATE_LIMIT), stored)
        changes = (*changes, _level_change(bucket, flow.rate_limit.take(level, now)))
    decision = start(flow, event, read, now) if options.debounce is None else _debounce(flow, trigger, read, now)
    return Admission(decision.outcome, (*changes, *decision.changes)) if changes else decision


def _level_change(bucket: Bucket, level: Level) -> StateChange:
    return StateChange(bucket, level.encode(), expires=level.expires)


def start(flow: Flow, event: Fields, read: ReadState, now: int) -> Admission:
    """Decide about a run that is to start now.

    It starts for an admitted event, for a debounce or batch (its first event) that has ended, or for a rerun. The
    outcome is ``Start`` or ``Skip``.
    """
    options = flow.options
    singleton = None if options.singleton is None else flow.bucket(BucketKind.SINGLETON, event, now)
    holder = None if singleton is None else Holder.load(read, singleton)
    if holder is not None and options.singleton is not None and options.singleton.mode == "skip":
        return Admission(Skip(SkipReason.SINGLETON, holder.run_key))
    throttle = None if flow.throttle is None else flow.bucket(BucketKind.THROTTLE, event, now)
    return Admission(
        Start(
            queue_entry=QueueEntry(
                position=queue_position(flow, event, now),
                slots=_slots(flow, event, now),
                throttle=None if throttle is None else throttle.id,
                singleton=singleton,
            ),
            cancels=None if holder is None else holder.run_key,
            cancel_on=cancel_on_of(flow, now),
            start_by=flow.start_by(now),
        )
    )


def _slots(flow: Flow, event: Fields, now: int) -> tuple[EntrySlot, ...]:
    return tuple(EntrySlot(limit.name, limit.bucket_id(flow.function_id, event, now)) for limit in flow.concurrency)


def cancel_on_of(flow: Flow, now: int) -> tuple[CancelOn, ...]:
    """The events that cancel a run which is admitted now."""
    if not flow.options.cancel:
        return ()
    return tuple(
        CancelOn(cancel.event, condition, deadline(cancel.timeout, now))
        for cancel, condition in zip(flow.options.cancel, flow.cancel_conditions, strict=True)
    )


def queue_position(flow: Flow, event: Fields, now: int) -> int:
    """The position of a run admitted ``now`` in its function's queue, in milliseconds.

    The lowest goes first. Priority is whole seconds between -600 and 600: fractions are truncated, and values other
    than numbers count as 0.
    """
    if flow.options.priority is None:
        return now
    value = flow.expressions["priority.run"].value(event, now=now)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return now
    return now - 1000 * math.trunc(max(-MAX_PRIORITY_SECONDS, min(value, MAX_PRIORITY_SECONDS)))


# debounces


def _debounce(flow: Flow, trigger: Trigger, read: ReadState, now: int) -> Admission:
    bucket = flow.bucket(BucketKind.DEBOUNCE, trigger.fields, now)
    assert bucket is not None
    before = PendingDebounce.load(read, bucket)
    after = _postpone(flow, before, trigger, now)
    change = StateChange(bucket, after.encode(), fires_at=after.fires_at)
    if before is None:
        return Admission(Debounced(bucket, after.fires_at), (change,))
    dropped = trigger.key if after is before else before.event_key
    return Admission(Debounced(bucket, after.fires_at, before.fires_at, dropped), (change,))


def _postpone(flow: Flow, pending: PendingDebounce | None, trigger: Trigger, now: int) -> PendingDebounce:
    """The pending event after another one.

    An event with an older timestamp changes nothing.
    """
    debounce, ts = flow.options.debounce, trigger.fields.get("ts") or now
    assert debounce is not None
    if pending is None:
        latest = deadline(debounce.timeout, now)
    elif ts < pending.event_ts:
        return pending
    else:
        latest = pending.deadline
    fires_at = now + milliseconds(debounce.period)
    return PendingDebounce(trigger.key, ts, fires_at if latest is None else min(fires_at, latest), latest)


def end_debounce(bucket: Bucket, read: ReadState, now: int) -> tuple[int, StateChange] | None:
    """End a debounce when its timer fires.

    Returns the key of the event to ``start`` a run for, and the change that ends the debounce. ``None`` if the debounce
    was postponed or has ended.
    """
    pending = PendingDebounce.load(read, bucket)
    if pending is None or pending.fires_at > now:
        return None
    return pending.event_key, StateChange(bucket, None)


# batches


def is_batched(flow: Flow, event: Fields, now: int) -> bool:
    condition = flow.expressions.get("batch_events.if_exp")
    return condition is None or condition.matches(event, now=now)


def _add_to_batch(flow: Flow, trigger: Trigger, read: ReadState, now: int, max_bytes: int) -> Admission:
    bucket, batch_events = flow.bucket(BucketKind.BATCH, trigger.fields, now), flow.options.batch_events
    assert bucket is not None
    assert batch_events is not None
    assert batch_events.timeout is not None
    batch = OpenBatch.load(read, bucket)
    if batch is None:
        batch = OpenBatch(trigger.key, 1, trigger.bytes, now + milliseconds(batch_events.timeout))
    else:
        batch = OpenBatch(batch.id, batch.size + 1, batch.bytes + trigger.bytes, batch.fires_at)
    is_full = batch.size >= batch_events.max_size or batch.bytes >= max_bytes
    change = StateChange(bucket, None) if is_full else StateChange(bucket, batch.encode(), fires_at=batch.fires_at)
    return Admission(Batched(bucket, batch, is_full), (change,))


def end_batch(bucket: Bucket, batch_id: int, read: ReadState) -> StateChange | None:
    """The change that ends a batch when its timer fires.

    ``start`` a run after it. ``None`` if the batch was already full. Another batch may be open then.
    """
    batch = OpenBatch.load(read, bucket)
    return StateChange(bucket, None) if batch is not None and batch.id == batch_id else None


# singletons


def take_singleton(queue_entry: QueueEntry, run_key: int) -> tuple[StateChange, ...]:
    """The states to store when the run of a ``Start`` has its key."""
    return () if queue_entry.singleton is None else (StateChange(queue_entry.singleton, Holder(run_key).encode()),)


def release_singleton(queue_entry: QueueEntry, run_key: int, read: ReadState) -> tuple[StateChange, ...]:
    """The states to store when the run has ended."""
    if queue_entry.singleton is None or Holder.load(read, queue_entry.singleton) != Holder(run_key):
        return ()
    return (StateChange(queue_entry.singleton, None),)
