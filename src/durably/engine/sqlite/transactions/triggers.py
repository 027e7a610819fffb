"""Triggers: runs that start for an event, at once or later, or are skipped.

Functions that are paused skip runs. Batches and debounces hold events.
"""

from collections.abc import Sequence

from durably.engine.core.call_body import CallData
from durably.engine.core.flow.admission import (
    CANCELLED_BY_SINGLETON,
    PAUSED,
    REPLACED,
    SKIP_REASONS,
    Admission,
    Batched,
    CancelOn,
    Debounced,
    OpenBatch,
    Skip,
    Start,
    Trigger,
    admit,
    end_batch,
    end_debounce,
    release_singleton,
    skipped_error,
    start,
    take_singleton,
)
from durably.engine.core.flow.buckets import BucketKind, StateChange
from durably.engine.core.flow.queue_entries import QueueEntry
from durably.engine.core.machine import start as start_machine
from durably.engine.core.run_state import RunStatus
from durably.engine.core.transition import encode_error, error_memo
from durably.engine.model.events import RUN_END_EVENTS, ReceivedEvent, RunResult, index_key, run_end_events
from durably.engine.model.registry import CANCELLED_IN_BULK, SyncedFunction
from durably.engine.model.runs import END_UPDATES, UpdateKind
from durably.engine.model.subscriptions import RunChange
from durably.engine.sqlite.outbox import BucketTimer, DeadlineTimer, schedule_call
from durably.engine.sqlite.tables.flow import CancelRow, DeadlineKind
from durably.engine.sqlite.tables.runs import NewRun, RunRow
from durably.protocol.errors import ErrorData

from .reruns import Rerun, descends_from_cancelled, refuse_runaway
from .transaction import MOST_TRIGGER_BYTES, CachedRun, Transaction


def trigger_function(transaction: Transaction, function: SyncedFunction, event_key: int) -> RunRow | None:
    """Start a run of the function for an event.

    Returns the run, or a run that is shown as skipped. ``None`` if no run starts, or if one starts later.
    """
    controls = transaction.registry.controls.get(function.id)
    received = transaction.event(event_key)
    if received.origin is not None:
        runaway = refuse_runaway(transaction, function, received.origin, is_run_end=received.name in RUN_END_EVENTS)
        if runaway is not None:
            return _store_failed_run(transaction, function, (event_key,), runaway)
    if function.is_plain and controls is None:
        return _start_run(transaction, function, (event_key,))
    if controls is not None and controls.is_paused:
        return _skip_run(transaction, function, (event_key,), PAUSED)
    trigger = Trigger(event_key, received.fields, len(received.body))
    admission = admit(function.flow, trigger, transaction.store.flow.read, transaction.now)
    _put(transaction, admission.changes)
    match admission.outcome:
        case Debounced() as debounced:
            _hold_back(transaction, function, event_key, debounced)
            return None
        case Batched() as batched:
            return _add_to_batch(transaction, function, event_key, batched)
        case Skip(reason, None):
            _drop(transaction, function, event_key, SKIP_REASONS[reason])
            return None
        case _:
            return _start_or_skip(transaction, function, (event_key,), admission)


def start_rerun(transaction: Transaction, function: SyncedFunction, rerun: Rerun) -> RunRow:
    """Repeat a run."""
    event = transaction.event(rerun.event_keys[0]).fields
    admission = start(function.flow, event, transaction.store.flow.read, transaction.now)
    return _start_or_skip(transaction, function, rerun.event_keys, admission, rerun)


def end_bucket(transaction: Transaction, bucket_id: str) -> None:
    """End a due debounce or batch. If it was postponed, set its timer again."""
    found = transaction.store.flow.due_bucket(bucket_id)
    if found is None:
        return
    bucket, state, due = found
    now, read = transaction.now, transaction.store.flow.read
    if due > now:
        transaction.outbox.append(BucketTimer(bucket_id, due))
        return
    change: StateChange | None
    if bucket.kind is BucketKind.DEBOUNCE:
        ended = end_debounce(bucket, read, now)
        change = ended[1] if ended else None
    else:
        change = end_batch(bucket, OpenBatch.decode(state).id, read)
    function = transaction.registry.functions.get(bucket.function_id)
    if change is not None and function is not None:
        _put(transaction, (change,))
        _start_held(transaction, function, bucket_id)


def begin_run(transaction: Transaction, run: RunRow) -> None:
    """End the run's start timeout, and begin its finish timeout.

    The run's first call leaves the queue.
    """
    transaction.store.flow.drop_deadline(run.key)
    function = transaction.registry.functions.get(run.function_id)
    if function is not None:
        _set_finish(transaction, function, run)


def release_run(transaction: Transaction, run: RunRow, queue_entry: QueueEntry) -> None:
    _put(transaction, release_singleton(queue_entry, run.key, transaction.store.flow.read))
    transaction.store.flow.forget_run(run.key)


# outcomes of an event


def _hold_back(transaction: Transaction, function: SyncedFunction, event_key: int, debounced: Debounced) -> None:
    bucket_id = debounced.bucket.id
    if debounced.fired_at_before is None or debounced.fires_at < debounced.fired_at_before:
        # The timer of a postponed one fires at its earlier time, and is then set again.
        transaction.outbox.append(BucketTimer(bucket_id, debounced.fires_at))
    if debounced.dropped != event_key:
        transaction.store.flow.hold_event(bucket_id, event_key)
    if debounced.dropped is not None:
        transaction.store.flow.drop_held_event(bucket_id, debounced.dropped)
        _drop(transaction, function, debounced.dropped, REPLACED)


def _add_to_batch(
    transaction: Transaction, function: SyncedFunction, event_key: int, batched: Batched
) -> RunRow | None:
    bucket_id = batched.bucket.id
    transaction.store.flow.hold_event(bucket_id, event_key)
    if batched.is_full:
        return _start_held(transaction, function, bucket_id)
    if batched.batch.size == 1:
        transaction.outbox.append(BucketTimer(bucket_id, batched.fires_at))
    return None


def _start_held(transaction: Transaction, function: SyncedFunction, bucket_id: str) -> RunRow | None:
    event_keys = transaction.store.flow.take_held_events(bucket_id)
    controls = transaction.registry.controls.get(function.id)
    if controls is not None and controls.is_paused:
        return _skip_run(transaction, function, event_keys, PAUSED)
    event = transaction.event(event_keys[0]).fields
    return _start_or_skip(
        transaction, function, event_keys, start(function.flow, event, transaction.store.flow.read, transaction.now)
    )


def _drop(transaction: Transaction, function: SyncedFunction, event_key: int, reason: str) -> None:
    """Drop the trigger.

    Report it to the invoking step, if there is one, and to users who inspect the event.
    """
    error = skipped_error(function.id, reason)
    transaction.note_dropped(transaction.event(event_key).id, error.message or reason)
    _fail_invokers(transaction, (event_key,), error)


def _skip_run(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: Sequence[int],
    reason: str,
    rerun_of: str | None = None,
) -> RunRow:
    """Store a skipped run, so that users can find and rerun it."""
    error = skipped_error(function.id, reason)
    run = _store_skipped_run(transaction, function, tuple(event_keys), error, rerun_of=rerun_of)
    if rerun_of is None:
        _fail_invokers(transaction, event_keys, error)
    return run


# starting a run


def _start_or_skip(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    admission: Admission,
    rerun: Rerun | None = None,
) -> RunRow:
    _put(transaction, admission.changes)
    outcome = admission.outcome
    if isinstance(outcome, Skip):
        rerun_of = None if rerun is None else rerun.run_id
        return _skip_run(transaction, function, event_keys, SKIP_REASONS[outcome.reason], rerun_of)
    assert isinstance(outcome, Start), f"a run that starts now cannot be {outcome}"
    return _start(transaction, function, event_keys, outcome, rerun)


def _start(
    transaction: Transaction, function: SyncedFunction, event_keys: tuple[int, ...], how: Start, rerun: Rerun | None
) -> RunRow:
    queue_entry = how.queue_entry if _is_needed(transaction, function, how) else None
    run = _start_run(transaction, function, event_keys, queue_entry=queue_entry, rerun=rerun)
    if queue_entry is not None:
        _put(transaction, take_singleton(queue_entry, run.key))
        _listen(transaction, run, how.cancel_on)
        if not queue_entry.is_queued:
            _set_finish(transaction, function, run)
        elif how.start_by is not None:
            _set_deadline(transaction, run, DeadlineKind.START, how.start_by)
    if how.cancels is not None:
        # After the start, so that functions that its end triggers find the new run.
        transaction.cancel(how.cancels, CANCELLED_BY_SINGLETON)
    _heed_cancellations(transaction, function, run)
    return run


def _listen(transaction: Transaction, run: RunRow, cancel_on: Sequence[CancelOn]) -> None:
    for position, cancel in enumerate(cancel_on):
        path, value = index_key(cancel.condition, transaction.event(run.event_key).fields)
        expression = None if cancel.condition is None else cancel.condition.text
        transaction.store.flow.add_cancel(
            run.key, position, CancelRow(cancel.event, path, value, expression, cancel.until)
        )
        transaction.add_wait_path(cancel.event, path)


def _heed_cancellations(transaction: Transaction, function: SyncedFunction, run: RunRow) -> None:
    controls = transaction.registry.controls.get(function.id)
    if controls is None:
        return
    trigger = transaction.event(run.event_key)
    for cancellation in controls.cancellations:
        is_meant = cancellation.is_in_time(run.created_at) or (
            cancellation.is_followed(run.created_at)
            and descends_from_cancelled(transaction, function.id, trigger.origin, cancellation.created_at)
        )
        if is_meant and cancellation.holds_for(trigger.fields, transaction.now):
            transaction.cancel(run.key, CANCELLED_IN_BULK)
            return


def _set_finish(transaction: Transaction, function: SyncedFunction, run: RunRow) -> None:
    finish_by = function.flow.finish_by(transaction.now)
    if finish_by is not None:
        _set_deadline(transaction, run, DeadlineKind.FINISH, finish_by)


def _set_deadline(transaction: Transaction, run: RunRow, kind: DeadlineKind, due: int) -> None:
    transaction.store.flow.put_deadline(run.key, kind, due)
    transaction.outbox.append(DeadlineTimer(run.key, due))


def _is_needed(transaction: Transaction, function: SyncedFunction, how: Start) -> bool:
    """Whether the queue entry must be kept with the run.

    It must if the run's state depends on the entry, or must be cleaned up after it.
    """
    queue_entry = how.queue_entry
    has_deadline = function.flow.options.timeouts is not None
    has_priority = queue_entry.position != transaction.now
    is_limited = queue_entry.is_queued or queue_entry.singleton is not None
    return is_limited or bool(how.cancel_on) or has_deadline or has_priority


def _put(transaction: Transaction, changes: Sequence[StateChange]) -> None:
    for change in changes:
        transaction.store.flow.put(change, transaction.now)


def _fail_invokers(transaction: Transaction, event_keys: Sequence[int], error: ErrorData) -> None:
    """Fail the steps that invoked a function by these events: no run of it starts."""
    for event_key in event_keys:
        transaction.resolve_invokers(transaction.event(event_key), error_memo(error), failed=True)


_MOST_CARRIED_BYTES = 16 * 1024
"""The maximum size of an event that is kept in memory until the first call of its run."""


def _start_run(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    *,
    queue_entry: QueueEntry | None = None,
    rerun: Rerun | None = None,
) -> RunRow:
    """Store a new run and schedule its first call.

    A rerun copies memos of the run that it repeats.
    """
    taken_over = (0, 0) if rerun is None else (rerun.memos, rerun.size)
    state = start_machine(function.max_attempts, transaction.now, *taken_over)
    has_to_queue = queue_entry is not None and queue_entry.is_queued
    new = NewRun(
        id=transaction.new_id(),
        function_id=function.id,
        app_id=function.app_id,
        event_keys=event_keys,
        status=state.status,
        max_attempts=state.max_attempts,
        created_at=transaction.now,
        rerun_of=None if rerun is None else rerun.run_id,
        state=state,
        queue_entry=queue_entry,
        is_runnable=not has_to_queue,
        step_input=None if rerun is None else rerun.step_input,
        app_version=function.app_version,
    )
    run = transaction.store.add_run(new)
    event = transaction.event(run.event_key)
    kept_event = None
    if not run.is_batch and len(event.body) <= MOST_TRIGGER_BYTES:
        kept_event = ReceivedEvent(event.id, event.name, event.body, origin=event.origin, traceparent=event.traceparent)
    transaction.cache.put(
        CachedRun(run, state, queue_entry, not has_to_queue, kept_event, () if rerun is None else None)
    )
    if rerun is not None and rerun.memos:
        transaction.store.copy_memos(rerun.run_key, run.key, rerun.until)
    (call,) = state.calls
    if queue_entry is not None and has_to_queue:
        transaction.queue.join(run, call, queue_entry)
    else:
        data = None
        if rerun is None and not run.is_batch and len(event.body) <= _MOST_CARRIED_BYTES:
            # The first call's content is only the event. This saves a read.
            data = CallData(
                run.id,
                run.function_id,
                call,
                state.max_attempts,
                state.disable_immediate,
                [event.body],
                [],
                traceparent=event.traceparent,
            )
        transaction.outbox.append(schedule_call(run, queue_entry, call, data=data))
    transaction.outbox.append(RunChange(UpdateKind.RUN_STARTED, transaction.now, run))
    return run


def _store_skipped_run(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    error: ErrorData,
    *,
    rerun_of: str | None = None,
) -> RunRow:
    """Store a run that was skipped."""
    return _end_at_once(transaction, function, event_keys, RunStatus.SKIPPED, error, rerun_of)


def _store_failed_run(
    transaction: Transaction, function: SyncedFunction, event_keys: tuple[int, ...], error: ErrorData
) -> RunRow:
    """Store a run that failed before it began, and report its end."""
    run = _end_at_once(transaction, function, event_keys, RunStatus.FAILED, error, None)
    triggers = [transaction.event(event_key) for event_key in event_keys]
    origin = transaction.origin_of(run, triggers[0])
    for name, data in run_end_events(RunResult(run.id, function.id, run.status, encode_error(error)), triggers):
        transaction.emit(name, data, origin, transaction.trace_of(run, triggers[0]))
    return run


def _end_at_once(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    status: RunStatus,
    error: ErrorData,
    rerun_of: str | None,
) -> RunRow:
    output = encode_error(error)
    new = NewRun(
        id=transaction.new_id(),
        function_id=function.id,
        app_id=function.app_id,
        event_keys=event_keys,
        status=status,
        max_attempts=function.max_attempts,
        created_at=transaction.now,
        rerun_of=rerun_of,
        output=output,
        app_version=function.app_version,
    )
    run = transaction.store.add_run(new)
    events = [transaction.event(event_key) for event_key in event_keys]
    ended = RunChange(
        END_UPDATES[status],
        transaction.now,
        run,
        output=output,
        failed=True,
        event_id=events[0].id,
        by_engine=status is RunStatus.FAILED,
    )
    transaction.outbox.append(ended)
    transaction.note_end(run, status, output, events)
    return run
