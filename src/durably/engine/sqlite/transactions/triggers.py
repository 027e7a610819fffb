"""Triggers: runs that start for an event, at once or later, or are skipped; reruns; and the lineage of events.

Functions that are paused skip runs. Batches and debounces hold events.
"""

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from durably.engine.core.calls import CallData
from durably.engine.core.flow.admission import (
    CANCELLED_BY_SINGLETON,
    PAUSED,
    REPLACED,
    SKIP_REASONS,
    Admission,
    Batched,
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
from durably.engine.core.flow.queue import QueueEntry
from durably.engine.core.machine import start as start_machine
from durably.engine.core.run_state import Origin, RunStatus, describe_chain, explain_runaway
from durably.engine.core.transition import encode_error, error_memo
from durably.engine.model.events import RUN_END_EVENTS, ReceivedEvent, RunResult, index_key, run_end_events
from durably.engine.model.functions import CANCELLED_IN_BULK, SyncedFunction
from durably.engine.model.records import RunRow
from durably.engine.model.runs import END_UPDATES, FromStep, UpdateKind
from durably.engine.model.subscriptions import RunChange
from durably.engine.sqlite.after_commit import BucketTimer, DeadlineTimer, schedule_call
from durably.engine.sqlite.tables.flow import CancelRow, DeadlineKind
from durably.engine.sqlite.tables.runs import NewRun
from durably.protocol.engine_errors import StepNotFoundError
from durably.protocol.errors import RUNAWAY_ERROR, ErrorData
from durably.protocol.opcodes import hash_step_id

from .transaction import MOST_TRIGGER_BYTES, CachedRun, Transaction

_MOST_CARRIED_BYTES = 16 * 1024
"""The maximum size of an event that is kept in memory until the first call of its run."""
_MOST_NAMED_STEPS, _MOST_NAMED_FUNCTIONS = 20, 8
MOST_ANCESTORS = 100
"""The maximum number of ancestors to follow. Each costs two queries."""


def trigger_function(transaction: Transaction, function: SyncedFunction, event_key: int) -> RunRow | None:
    """Start a run of the function for an event.

    Returns the run, or a run that is shown as skipped. ``None`` if no run starts, or if one starts later.
    """
    controls = transaction.registry.controls.get(function.id)
    received = transaction.event(event_key)
    if received.origin is not None:
        runaway = refuse_runaway(transaction, function, received.origin, is_run_end=received.name in RUN_END_EVENTS)
        if runaway is not None:
            return _store_ended_run(transaction, function, (event_key,), RunStatus.FAILED, runaway)
    if function.is_plain and controls is None:
        return _store_run(transaction, function, (event_key,))
    if controls is not None and controls.is_paused:
        return _skip_run(transaction, function, (event_key,), PAUSED)
    trigger = Trigger(event_key, received.fields, len(received.body))
    admission = admit(function.flow, trigger, transaction.flow.read, transaction.now)
    _put(transaction, admission.changes)
    match admission.outcome:
        case Debounced() as debounced:
            _hold_back(transaction, function, event_key, debounced)
            return None
        case Batched(bucket, batch, is_full):
            transaction.flow.hold_event(bucket.id, event_key)
            if is_full:
                return _start_held(transaction, function, bucket.id)
            if batch.size == 1:
                transaction.after_commit.append(BucketTimer(bucket.id, batch.fires_at))
            return None
        case Skip(reason, None):
            _drop(transaction, function, event_key, SKIP_REASONS[reason])
            return None
        case _:
            return _start_or_skip(transaction, function, (event_key,), admission)


def _hold_back(transaction: Transaction, function: SyncedFunction, event_key: int, debounced: Debounced) -> None:
    bucket_id = debounced.bucket.id
    if debounced.fired_at_before is None or debounced.fires_at < debounced.fired_at_before:
        # The timer of a postponed one fires at its earlier time, and is then set again.
        transaction.after_commit.append(BucketTimer(bucket_id, debounced.fires_at))
    if debounced.dropped != event_key:
        transaction.flow.hold_event(bucket_id, event_key)
    if debounced.dropped is not None:
        transaction.flow.drop_held_event(bucket_id, debounced.dropped)
        _drop(transaction, function, debounced.dropped, REPLACED)


def _drop(transaction: Transaction, function: SyncedFunction, event_key: int, reason: str) -> None:
    """Drop the trigger.

    Report it to the invoking step, if there is one, and to users who inspect the event.
    """
    error = skipped_error(function.id, reason)
    transaction.note(transaction.event(event_key).id, lambda: error.message or reason)
    _fail_invokers(transaction, (event_key,), error)


def end_bucket(transaction: Transaction, bucket_id: str) -> None:
    """End a due debounce or batch. If it was postponed, set its timer again."""
    found = transaction.flow.due_bucket(bucket_id)
    if found is None:
        return
    bucket, state, due = found
    now, read = transaction.now, transaction.flow.read
    if due > now:
        transaction.after_commit.append(BucketTimer(bucket_id, due))
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


def _start_held(transaction: Transaction, function: SyncedFunction, bucket_id: str) -> RunRow | None:
    event_keys = transaction.flow.take_held_events(bucket_id)
    controls = transaction.registry.controls.get(function.id)
    if controls is not None and controls.is_paused:
        return _skip_run(transaction, function, event_keys, PAUSED)
    event = transaction.event(event_keys[0]).fields
    admission = start(function.flow, event, transaction.flow.read, transaction.now)
    return _start_or_skip(transaction, function, event_keys, admission)


def begin_run(transaction: Transaction, run: RunRow) -> None:
    """End the run's start timeout, and begin its finish timeout.

    The run's first call leaves the queue.
    """
    transaction.flow.drop_deadline(run.key)
    function = transaction.registry.functions.get(run.function_id)
    if function is not None:
        _set_deadline(transaction, run, DeadlineKind.FINISH, function.flow.finish_by(transaction.now))


def release_run(transaction: Transaction, run: RunRow, queue_entry: QueueEntry) -> None:
    _put(transaction, release_singleton(queue_entry, run.key, transaction.flow.read))
    transaction.flow.forget_run(run.key)


# reruns


class Rerun(msgspec.Struct, frozen=True):
    """A run to repeat, and the memos that the new run takes over.

    They are the memos of the run ``run_key`` before the position ``until``. ``memos`` is their number, and ``size``
    their bytes. ``step_input``: see the schema.
    """

    run_key: int
    run_id: str
    until: int = 0
    memos: int = 0
    size: int = 0
    step_input: bytes | None = None


def start_rerun(
    transaction: Transaction, function: SyncedFunction, run: RunRow, from_step: FromStep | None = None
) -> RunRow:
    """Repeat a run. Raises ``StepNotFoundError``."""
    rerun = Rerun(run.key, run.id) if from_step is None else _plan_rerun(transaction, run, from_step)
    event_keys = transaction.store.event_keys(run)
    event = transaction.event(event_keys[0]).fields
    admission = start(function.flow, event, transaction.flow.read, transaction.now)
    return _start_or_skip(transaction, function, event_keys, admission, rerun)


def _plan_rerun(transaction: Transaction, run: RunRow, from_step: FromStep) -> Rerun:
    wanted, steps = from_step.step_id, transaction.store.memo_order(run.key)
    accepted = (wanted, hash_step_id(wanted))
    for until, hashed_id, name in steps:
        if name == wanted or hashed_id in accepted:
            memos, size = transaction.store.size_of_memos(run.key, until)
            step_input = None
            if from_step.input is not None:
                step_input = msgspec.json.encode({hashed_id: {"input": from_step.input}})
            return Rerun(run.key, run.id, until, memos, size, step_input)
    names = ", ".join(repr(name) for _, _, name in steps[:_MOST_NAMED_STEPS])
    more = ", …" if len(steps) > _MOST_NAMED_STEPS else ""
    known = f"it has {names}{more}" if steps else "no step has finished; rerun it from the start"
    raise StepNotFoundError(f"run {run.id} has no finished step {wanted!r}: {known}")


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
        return _skip_run(transaction, function, event_keys, SKIP_REASONS[outcome.reason], rerun)
    assert isinstance(outcome, Start), f"a run that starts now cannot be {outcome}"
    queue_entry = outcome.queue_entry if _is_needed(transaction, function, outcome) else None
    run = _store_run(transaction, function, event_keys, queue_entry=queue_entry, rerun=rerun)
    if queue_entry is not None:
        _put(transaction, take_singleton(queue_entry, run.key))
        for position, cancel in enumerate(outcome.cancel_on):
            path, value = index_key(cancel.condition, transaction.event(run.event_key).fields)
            expression = None if cancel.condition is None else cancel.condition.text
            row = CancelRow(cancel.event, path, value, expression, cancel.until)
            transaction.flow.add_cancel(run.key, position, row)
            transaction.add_wait_path(cancel.event, path)
        if queue_entry.is_queued:
            _set_deadline(transaction, run, DeadlineKind.START, outcome.start_by)
        else:
            _set_deadline(transaction, run, DeadlineKind.FINISH, function.flow.finish_by(transaction.now))
    if outcome.cancels is not None:
        # After the start, so that functions that its end triggers find the new run.
        transaction.cancel(outcome.cancels, CANCELLED_BY_SINGLETON)
    _heed_cancellations(transaction, function, run)
    return run


def _is_needed(transaction: Transaction, function: SyncedFunction, how: Start) -> bool:
    """Whether the queue entry must be kept with the run.

    It must if the run's state depends on the entry, or must be cleaned up after it.
    """
    queue_entry = how.queue_entry
    has_deadline = function.flow.options.timeouts is not None
    has_priority = queue_entry.position != transaction.now
    is_limited = queue_entry.is_queued or queue_entry.singleton is not None
    return is_limited or bool(how.cancel_on) or has_deadline or has_priority


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


def _set_deadline(transaction: Transaction, run: RunRow, kind: DeadlineKind, due: int | None) -> None:
    if due is not None:
        transaction.flow.put_deadline(run.key, kind, due)
        transaction.after_commit.append(DeadlineTimer(run.key, due))


def _put(transaction: Transaction, changes: Sequence[StateChange]) -> None:
    for change in changes:
        transaction.flow.put(change, transaction.now)


def _store_run(
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
        transaction.after_commit.append(schedule_call(run, queue_entry, call, data=data))
    transaction.after_commit.append(RunChange(UpdateKind.RUN_STARTED, transaction.now, run))
    return run


# runs that end at once


def _skip_run(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    reason: str,
    rerun: Rerun | None = None,
) -> RunRow:
    """Store a skipped run, so that users can find and rerun it."""
    error = skipped_error(function.id, reason)
    rerun_of = None if rerun is None else rerun.run_id
    run = _store_ended_run(transaction, function, event_keys, RunStatus.SKIPPED, error, rerun_of)
    if rerun is None:
        _fail_invokers(transaction, event_keys, error)
    return run


def _fail_invokers(transaction: Transaction, event_keys: Sequence[int], error: ErrorData) -> None:
    """Fail the steps that invoked a function by these events: no run of it starts."""
    for event_key in event_keys:
        transaction.resolve_invokers(transaction.event(event_key), error_memo(error), failed=True)


def _store_ended_run(
    transaction: Transaction,
    function: SyncedFunction,
    event_keys: tuple[int, ...],
    status: RunStatus,
    error: ErrorData,
    rerun_of: str | None = None,
) -> RunRow:
    """Store a run that was skipped, or failed before it began. A failure is reported by events too."""
    output, has_failed = encode_error(error), status is RunStatus.FAILED
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
        by_engine=has_failed,
    )
    transaction.after_commit.append(ended)
    transaction.note_end(run, status, output, events)
    if has_failed:
        origin, traceparent = transaction.origin_of(run, events[0]), transaction.trace_of(run, events[0])
        for name, data in run_end_events(RunResult(run.id, function.id, status, output), events):
            transaction.emit(name, data, origin, traceparent)
    return run


# the lineage of events


def _ancestors(transaction: Transaction, origin: Origin | None) -> Iterator[RunRow]:
    """The runs that led to an event, the latest first.

    They are the run that sent the event, the run that sent that run's event, and so on, until a run is no longer known.
    """
    for _ in range(MOST_ANCESTORS):
        run = None if origin is None else transaction.store.find_run(origin.run_key)
        if run is None:
            return
        yield run
        origin = transaction.event(run.event_key).origin


def descends_from_cancelled(transaction: Transaction, function_id: str, origin: Origin | None, since: int) -> bool:
    """Whether a cancelled run of this function led to an event.

    Only runs that were cancelled at ``since`` or later count.
    """
    return any(
        run.function_id == function_id
        and run.status is RunStatus.CANCELLED
        and transaction.store.ended_at(run.key) >= since
        for run in _ancestors(transaction, origin)
    )


def refuse_runaway(
    transaction: Transaction, function: SyncedFunction, origin: Origin | None, *, is_run_end: bool = False
) -> ErrorData | None:
    """The reason why an event must not start a run of a function, or ``None``.

    ``origin`` is the event's.
    """
    reason = explain_runaway(origin, transaction.policy.max_depth, is_run_end=is_run_end)
    if reason is None:
        return None
    before = [run.function_id for run in itertools.islice(_ancestors(transaction, origin), _MOST_NAMED_FUNCTIONS)]
    named = [function.id, *before[: _MOST_NAMED_FUNCTIONS - 1]]
    chain = describe_chain(named, is_whole=len(before) < _MOST_NAMED_FUNCTIONS)
    return ErrorData(name=RUNAWAY_ERROR, message=f"functions start each other endlessly ({chain}): {reason}")
