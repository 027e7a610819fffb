"""Admission: what becomes of an event that triggers a function.

The options are applied in a fixed order: an event that repeats another, or is one too many, starts nothing; one that is
debounced or batched starts a run later; then a singleton's run makes way, or does not. What is left starts a run,
whose calls go through the ``queue``. Nothing here stores anything: decisions carry the states to store.
"""

from enum import StrEnum

import msgspec

from .buckets import Bucket, Fields, ReadState, StateChange
from .cancellation import CancelOn, listen
from .concurrency import place_of
from .config import Flow
from .held_events import Batch, Debounce, OpenBatch, PendingDebounce, debounce, join_batch
from .queue_entries import EntrySlot, QueueEntry
from .rates import count_event
from .single_runs import Holder, SingletonMode, see


class Trigger(msgspec.Struct, frozen=True):
    """The event, as it is stored: ``key`` grows from event to event, ``bytes`` is its size as JSON."""

    key: int
    fields: Fields
    bytes: int


class SkipReason(StrEnum):
    IDEMPOTENCY = "idempotency"
    RATE_LIMIT = "rate_limit"
    SINGLETON = "singleton"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start a run, after cancelling the one with the key ``cancels``, if any.

    The run listens to ``cancel_on``, and is cancelled if it has not made its first call by ``start_by``. If its
    queue entry has a ``singleton``, store ``take_singleton(queue_entry, run_key)`` with it.
    """

    queue_entry: QueueEntry
    cancels: int | None = None
    cancel_on: tuple[CancelOn, ...] = ()
    start_by: int | None = None


class Skip(msgspec.Struct, frozen=True):
    """Start nothing. ``run_key`` is the run because of which."""

    reason: SkipReason
    run_key: int | None = None


class Debounced(msgspec.Struct, frozen=True):
    """Start a run when ``due``, for whatever event is pending in the bucket then.

    ``was_due`` is when one would have started before this event, if any was pending. ``dropped`` is the key of the
    event that lost its place thereby: the one that was pending, or this one if it is late news.
    """

    bucket: Bucket
    due: int
    was_due: int | None = None
    dropped: int | None = None


class Batched(msgspec.Struct, frozen=True):
    """Add the event to the batch, and start a run for it if it ``is_full``, or else when ``due``."""

    bucket: Bucket
    batch: OpenBatch
    is_full: bool

    @property
    def due(self) -> int:
        return self.batch.due


class Admission(msgspec.Struct, frozen=True):
    """What to do, and the states to store in the same transaction."""

    outcome: Start | Skip | Debounced | Batched
    changes: tuple[StateChange, ...] = ()


def admit(flow: Flow, trigger: Trigger, read: ReadState, now: int) -> Admission:
    """Decide about an event that has just triggered the function."""
    event, changes = trigger.fields, []
    if flow.batch is not None and (bucket := flow.batch.bucket(flow.function_id, event)) is not None:
        return _add_to_batch(flow.batch, bucket, trigger, read, now)
    if flow.idempotency is not None and (bucket := flow.idempotency.bucket(flow.function_id, event)) is not None:
        seen = see(bucket, read, now)
        if seen is None:
            return Admission(Skip(SkipReason.IDEMPOTENCY))
        changes.append(seen)
    if flow.rate_limit is not None and (bucket := flow.rate_limit.bucket(flow.function_id, event)) is not None:
        counted = count_event(flow.rate_limit, bucket, read, now)
        if counted is None:
            return Admission(Skip(SkipReason.RATE_LIMIT))
        changes.append(counted)
    if flow.debounce is not None:
        held_back = _hold_back(flow.debounce, flow.debounce.bucket(flow.function_id, event), trigger, read, now)
        return Admission(held_back.outcome, (*changes, *held_back.changes))
    started = start(flow, event, read, now)
    return Admission(started.outcome, (*changes, *started.changes))


def start(flow: Flow, event: Fields, read: ReadState, now: int) -> Admission:
    """Decide about a run that is to start now: of an event that was admitted, of a debounce or batch (its first event)
    that has ended, or one that a person asked for again. The outcome is ``Start`` or ``Skip``."""
    queue_entry = QueueEntry(
        place=place_of(flow.priority, event, now),
        slots=tuple(EntrySlot(limit.name, limit.bucket_id(flow.function_id, event)) for limit in flow.concurrency),
        throttle=None if flow.throttle is None else flow.throttle.bucket(flow.function_id, event).id,
        singleton=None if flow.singleton is None else flow.singleton.bucket(flow.function_id, event),
    )
    holder = None if queue_entry.singleton is None else Holder.load(read, queue_entry.singleton)
    if holder is not None and flow.singleton is not None and flow.singleton.mode is SingletonMode.SKIP:
        return Admission(Skip(SkipReason.SINGLETON, holder.run_key))
    return Admission(
        Start(
            queue_entry=queue_entry,
            cancels=None if holder is None else holder.run_key,
            cancel_on=listen(flow.cancels, now),
            start_by=flow.timeouts.start_by(now),
        )
    )


def end_debounce(bucket: Bucket, read: ReadState, now: int) -> tuple[int, StateChange] | None:
    """When a debounce falls due: the key of the event to ``start`` a run for, and the change that ends the debounce.
    ``None`` if it has been put off meanwhile, or is there no more."""
    pending = PendingDebounce.load(read, bucket)
    if pending is None or pending.due > now:
        return None
    return pending.event_key, StateChange(bucket, None)


def end_batch(bucket: Bucket, batch_id: int, read: ReadState) -> StateChange | None:
    """When a batch falls due: the change that ends it, after which to ``start`` a run. ``None`` if it has been full
    before, and another may be open in its place."""
    batch = OpenBatch.load(read, bucket)
    return StateChange(bucket, None) if batch is not None and batch.id == batch_id else None


def take_singleton(queue_entry: QueueEntry, run_key: int) -> tuple[StateChange, ...]:
    """What to store when the run of a ``Start`` has its key."""
    return () if queue_entry.singleton is None else (StateChange(queue_entry.singleton, Holder(run_key).encode()),)


def release_singleton(queue_entry: QueueEntry, run_key: int, read: ReadState) -> tuple[StateChange, ...]:
    """What to store when the run has ended, however it did."""
    if queue_entry.singleton is None or Holder.load(read, queue_entry.singleton) != Holder(run_key):
        return ()
    return (StateChange(queue_entry.singleton, None),)


def _hold_back(rule: Debounce, bucket: Bucket, trigger: Trigger, read: ReadState, now: int) -> Admission:
    before = PendingDebounce.load(read, bucket)
    after = debounce(rule, before, trigger.key, trigger.fields.get("ts") or now, now)
    change = StateChange(bucket, after.encode(), due=after.due)
    if before is None:
        return Admission(Debounced(bucket, after.due), (change,))
    dropped = trigger.key if after is before else before.event_key
    return Admission(Debounced(bucket, after.due, before.due, dropped), (change,))


def _add_to_batch(rule: Batch, bucket: Bucket, trigger: Trigger, read: ReadState, now: int) -> Admission:
    batch = join_batch(rule, bucket, read, trigger.key, trigger.bytes, now)
    is_full = batch.is_full(rule)
    change = StateChange(bucket, None) if is_full else StateChange(bucket, batch.encode(), due=batch.due)
    return Admission(Batched(bucket, batch, is_full), (change,))
