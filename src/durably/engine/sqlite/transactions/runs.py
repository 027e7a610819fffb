"""Runs: their inputs, and the commands of the run machine.

Inputs go through the run machine, and its commands become rows and actions after the commit.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from durably.engine.core.calls import CallData
from durably.engine.core.expressions import compile_expression
from durably.engine.core.flow.queue import QueuedCall
from durably.engine.core.inputs import (
    AbortDeferred,
    AwaitEvent,
    AwaitSignal,
    CancelRequested,
    CloseWait,
    Defer,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    MakeRequest,
    OfCall,
    RefuseDeferred,
    SignalConflicted,
    Sleep,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import advance
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import (
    MACHINE_VERSION,
    Call,
    Origin,
    RunState,
    RunStatus,
    origin_of,
)
from durably.engine.core.transition import data_memo, encode_error, error_memo
from durably.engine.model import subscriptions
from durably.engine.model.events import (
    ReceivedEvent,
    RunResult,
    check_event,
    deferred_data,
    index_key,
    invocation_event,
    run_end_events,
)
from durably.engine.model.records import (
    RunRow,
    WaitRow,
    arguments_to_keep,
    failed_call_row,
    failed_request_row,
    memo_times,
    unfinished_steps,
)
from durably.engine.model.runs import END_UPDATES
from durably.engine.model.subscriptions import RunChange
from durably.engine.sqlite.after_commit import (
    AfterCommit,
    RunEnded,
    ScheduledCall,
    ScheduledRequest,
    StepTimer,
    schedule_call,
)
from durably.protocol.engine_errors import DatabaseCorruptError, EngineError, EventInvalidError, StaleCallError
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger

from . import event_routing, triggers
from .transaction import CachedRun, LiveRun, Transaction, with_memo
from .triggers import refuse_runaway

_logger = get_logger("durably.engine")


def cancel(transaction: Transaction, run_key: int, reason: str) -> None:
    """Cancel a run; see ``CancelRun``."""
    live = transaction.runs.get(run_key)
    if live is not None and live.is_changing:
        transaction.inputs.append((run_key, CancelRequested(reason)))
    else:
        apply(transaction, run_key, CancelRequested(reason))


def apply(transaction: Transaction, run_key: int, run_input: Input) -> bool:
    """Apply an input to a run. Returns ``False`` if the run has ended.

    It may have ended because its run state is damaged. Raises the errors of ``advance``.
    """
    live = _load(transaction, run_key)
    if live is None:
        if isinstance(run_input, OfCall) and run_key not in transaction.runs:
            raise StaleCallError("the call is stale: its run has ended")
        return False
    before = live.before = live.state
    live.input, live.call, live.called_at = run_input, None, None
    live.began = transaction.now
    if isinstance(run_input, OfCall) and (call := before.call(run_input.generation)):
        is_queued = live.queue_entry is not None and live.queue_entry.is_queued
        live.began = transaction.queue.ready_since(live.row, call) if is_queued else call.due
        live.called_at = run_input.called_at
    live.state, commands = advance(before, run_input, transaction.now, transaction.policy)
    live.is_changing = True
    _leave_calls(transaction, live, before)
    for command in commands:
        _COMMANDS[type(command)](transaction, live, command)
    live.is_changing = False
    return True


def fail_run(transaction: Transaction, run_key: int, error: ErrorData) -> None:
    """Fail a run that the engine cannot continue, whatever its run state.

    Does nothing if the run has ended.
    """
    row = transaction.store.run(run_key)
    if row.status.has_ended:
        return
    _logger.error("run %s cannot continue, and has failed: %s", row.id, error.message)
    state = RunState(version=MACHINE_VERSION, status=RunStatus.FAILED, max_attempts=1)
    live = transaction.runs[run_key] = LiveRun(
        row,
        state,
        transaction.store.queue_entry(run_key),
        trigger=None,
        was_runnable=True,
        kept_memos=None,
        began=row.created_at,
        memos=0,
        may_have_waits=True,
        before=state,
    )
    transaction.store.drop_delayed_calls(run_key)
    transaction.queue.leave_all(run_key)
    _end_run(transaction, live, EndRun(RunStatus.FAILED, encode_error(error), by_engine=True))
    _start_deferred(transaction, row, origin_of(row.key, None, transaction.now), None)


def fail(transaction: Transaction, run_key: int, error: Exception) -> None:
    """Fail a run after an error of the engine, so that it does not stay stuck."""
    if isinstance(error, EngineError):
        fail_run(transaction, run_key, ErrorData(name=error.name, message=error.message))
    else:
        message = f"the engine cannot continue this run, see its log: {type(error).__name__}: {error}"
        fail_run(transaction, run_key, ErrorData(name="RunDamagedError", message=message))


def finish(transaction: Transaction) -> AfterCommit:
    """Complete a transaction. Returns its actions after the commit.

    Routes internal events, applies pending inputs, dispatches queued calls within their limits, and stores run states.
    """
    while True:
        while transaction.internal_events or transaction.inputs:
            if transaction.internal_events:
                event_routing.route_internal_event(transaction)
            else:
                apply(transaction, *transaction.inputs.popleft())
        through = [] if transaction.used_queue is None else transaction.used_queue.settle()
        if not through:
            break
        for queued in through:
            _dispatch_queued(transaction, queued)
    for event_id, notes in transaction.notes.items():
        more = [f"it ended {notes.unnamed} more waits or runs"] if notes.unnamed else []
        transaction.store.add_event_notes(event_id, notes.ended, notes.sentences + more)
    for key, live in transaction.runs.items():
        if live.state.status.has_ended:
            transaction.cache.forget(key)
        else:
            _store_live(transaction, live)
            if live.call_place is not None:
                _add_call_data(transaction, live, live.call_place)
    return transaction.after_commit


def _store_live(transaction: Transaction, live: LiveRun) -> None:
    row, state = live.row, live.state
    transaction.store.put_run_state(row.key, state)
    is_runnable = _is_runnable(transaction, live)
    if is_runnable != live.was_runnable:
        transaction.store.put_runnable(row.key, is_runnable)
    if state.status == RunStatus.RUNNING and row.status != RunStatus.RUNNING:
        row = transaction.store.begin_run(row, live.began)
    transaction.cache.put(CachedRun(row, state, live.queue_entry, is_runnable, live.trigger, live.kept_memos))


def _load(transaction: Transaction, run_key: int) -> LiveRun | None:
    """Load a run to change. ``None`` if it has ended, or has failed as damaged."""
    live = transaction.runs.get(run_key)
    if live is not None:
        return None if live.state.status.has_ended else live
    try:
        run = transaction.find_run(run_key)
    except DatabaseCorruptError as error:
        # The other runs are not affected.
        fail(transaction, run_key, error)
        return None
    if run is not None:
        live = transaction.runs[run_key] = LiveRun(
            run.row,
            run.state,
            run.queue_entry,
            run.trigger,
            was_runnable=run.is_runnable,
            before=run.state,
            kept_memos=run.memos,
            began=run.row.created_at,
            memos=run.state.memos,
            may_have_waits=bool(run.state.waits),
        )
    return live


def _is_runnable(transaction: Transaction, live: LiveRun) -> bool:
    """Whether the run proceeds without another input.

    If so, a call or request of the run is under way, or will be.
    """
    waiting = (
        transaction.queue.waiting(live.row.key) if live.queue_entry is not None and live.queue_entry.is_queued else ()
    )
    calls = [call for call in live.state.calls if call.generation not in waiting]
    return bool(calls or [wait for wait in live.state.waits if wait.op in REQUESTS])


def _leave_calls(transaction: Transaction, live: LiveRun, before: RunState) -> None:
    """Delete the timers and queue entries of calls that are no longer outstanding."""
    is_queued = live.queue_entry is not None and live.queue_entry.is_queued
    after = {call.generation: call for call in live.state.calls}
    for call in before.calls:
        now = after.get(call.generation)
        if (call.attempt or call.unreached) and (now is None or not (now.attempt or now.unreached)):
            transaction.store.drop_delayed_call(live.row.key, call.generation)
        if is_queued and now is None:
            transaction.queue.leave(live.row.key, call.generation)


# the queue


def join_queue(transaction: Transaction, run_key: int, generation: int) -> None:
    """Queue a due delayed call."""
    live = _load(transaction, run_key)
    call = None if live is None else live.state.call(generation)
    if live is None or call is None:
        return
    if live.queue_entry is not None and live.queue_entry.has_to_queue(starts_run=live.row.started_at is None):
        transaction.queue.join_again(live.row, call, live.queue_entry)
    else:
        _add_call(transaction, live, call)


def _dispatch_queued(transaction: Transaction, queued: QueuedCall) -> None:
    live = _load(transaction, queued.run_key)
    call = None if live is None else live.state.call(queued.generation)
    if live is None or call is None:
        transaction.queue.leave(queued.run_key, queued.generation)
        return
    _add_call(transaction, live, call)
    if live.row.started_at is None:
        live.row = transaction.store.begin_run(live.row, transaction.now)
        triggers.begin_run(transaction, live.row)


# commands


def _make_call(transaction: Transaction, live: LiveRun, command: MakeCall) -> None:
    # A repeated call stays delayed until then, even if the clock is set back.
    is_later = command.call.due > transaction.now
    if is_later or command.call.error:
        transaction.store.add_delayed_call(live.row.key, command.call.generation, command.call.due)
    if live.queue_entry is None or not live.queue_entry.has_to_queue(starts_run=live.row.started_at is None):
        _add_call(transaction, live, command.call)
    elif is_later:
        transaction.after_commit.append(schedule_call(live.row, live.queue_entry, command.call, has_to_queue=True))
    else:
        transaction.queue.join(live.row, command.call, live.queue_entry)
    failed = failed_call_row(live, command, transaction.now)
    if failed is not None:
        transaction.store.put_failed_attempt(live.row.key, failed)
        if failed.usage:
            transaction.store.add_usage(live.row, failed.step_id, failed.attempt, failed.usage, transaction.now)
        repeated = subscriptions.call_repeated(live.row, command.call, transaction.now, failed.usage)
        transaction.after_commit.append(repeated)


def _write_memo(transaction: Transaction, live: LiveRun, command: WriteMemo) -> None:
    live.memos += 1
    times = memo_times(live, command, transaction.now)
    arguments = None if command.arguments is None else arguments_to_keep(live, command)
    transaction.store.add_memo(live.row.key, live.memos, command, times, arguments)
    if command.usage:
        attempt = command.attempts - 1
        transaction.store.add_usage(live.row, command.step_id, attempt, command.usage, transaction.now)
    live.kept_memos = with_memo(live.kept_memos, command.step_id, command.memo)
    began = times.created_at if times.ran_from is None else times.ran_from // 1000
    transaction.after_commit.append(subscriptions.step_ended(live.row, command, began, times.ran_for, transaction.now))


def _sleep(transaction: Transaction, live: LiveRun, command: Sleep) -> None:
    _wait(transaction, live, command.name, WaitRow(live.row.key, command.step_id, Opcode.SLEEP, due=command.until))


def _await_event(transaction: Transaction, live: LiveRun, command: AwaitEvent) -> None:
    path = value = None
    if command.expression:
        path, value = index_key(compile_expression(command.expression), _trigger_of(transaction, live).fields)
    transaction.add_wait_path(command.event, path)
    wait = WaitRow(
        live.row.key,
        command.step_id,
        Opcode.WAIT_FOR_EVENT,
        topic=command.event,
        path=path,
        value=value,
        expression=command.expression,
        due=command.until,
    )
    _wait(transaction, live, command.name, wait)


def _await_signal(transaction: Transaction, live: LiveRun, command: AwaitSignal) -> None:
    for run_key, step_id in transaction.store.waits_for(Opcode.WAIT_FOR_SIGNAL, command.signal):
        if not command.replaces:
            transaction.inputs.append((live.row.key, SignalConflicted(command.step_id, command.signal)))
            return
        transaction.store.mute_wait(run_key, step_id)
    wait = WaitRow(
        live.row.key,
        command.step_id,
        Opcode.WAIT_FOR_SIGNAL,
        topic=command.signal,
        due=command.until,
        question=None if command.question is None else msgspec.json.encode(command.question),
    )
    _wait(transaction, live, command.name, wait)


def _invoke(transaction: Transaction, live: LiveRun, command: Invoke) -> None:
    function = transaction.registry.find_active(command.function_id)
    if function is None:
        message = (
            f"step {command.name!r} invokes the function {command.function_id!r}, which no app has synced: its id is "
            "its app's id, a hyphen, and its own"
        )
        _fail_wait(transaction, live, command.step_id, ErrorData(name="FunctionNotFoundError", message=message))
        return
    event = invocation_event(command.payload)
    try:
        check_event(event, transaction.max_event_bytes, is_internal=True)
    except EventInvalidError as invalid:
        message = f"step {command.name!r} cannot invoke {command.function_id!r}: {invalid.message}"
        _fail_wait(transaction, live, command.step_id, ErrorData(name=invalid.name, message=message))
        return
    metadata = {
        "correlation_id": f"{live.row.id}.{command.step_id}",
        "expire": command.until,
        "fn_id": command.function_id,
        "name": command.name,
        "source_app_id": live.row.app_id,
        "source_fn_id": live.row.function_id,
    }
    trigger = _trigger_of(transaction, live)
    origin = transaction.origin_of(live.row, trigger, is_invocation=True)
    runaway = refuse_runaway(transaction, function, origin)
    if runaway is not None:
        _fail_wait(transaction, live, command.step_id, runaway)
        return
    event_id = transaction.new_id()
    wait = WaitRow(live.row.key, command.step_id, Opcode.INVOKE_FUNCTION, topic=event_id, due=command.until)
    _wait(transaction, live, command.name, wait)
    traceparent = transaction.trace_of(live.row, trigger)
    event_routing.invoke(transaction, function, event, event_id, metadata, origin, traceparent)


def _trigger_of(transaction: Transaction, live: LiveRun) -> ReceivedEvent:
    """The event that triggered a run, or the first of them."""
    return live.trigger or transaction.event(live.row.event_key)


def _fail_wait(transaction: Transaction, live: LiveRun, step_id: str, error: ErrorData) -> None:
    transaction.inputs.append((live.row.key, WaitResolved(step_id, error_memo(error), failed=True)))


def _make_request(transaction: Transaction, live: LiveRun, command: MakeRequest) -> None:
    # The options are not stored, because they may contain credentials.
    failed = failed_request_row(command, transaction.now)
    if failed is not None:
        transaction.store.put_failed_attempt(live.row.key, failed)
    else:
        live.may_have_waits = True
        wait = WaitRow(live.row.key, command.step_id, command.op, called_at=live.called_at)
        transaction.store.put_wait(wait, transaction.now)
    transaction.after_commit.append(ScheduledRequest(live.row.key, live.row.id, command))


def _close_wait(transaction: Transaction, live: LiveRun, command: CloseWait) -> None:
    ended = transaction.store.take_wait(live.row.key, command.step_id)
    if ended is not None:
        live.ended_waits[command.step_id] = ended


def _end_run(transaction: Transaction, live: LiveRun, command: EndRun) -> None:
    row = live.row
    output = command.output
    before, unfinished = live.before, None
    if before.waits or len(before.calls) > 1 or not isinstance(live.input, OfCall):
        waits = transaction.store.waits_of(row.key) if before.waits else {}
        unfinished = unfinished_steps(waits, live, transaction.now)
    transaction.store.end_run(
        row.key,
        command.status,
        live.began,
        transaction.now,
        output,
        last_called_at=live.called_at,
        unfinished=unfinished,
    )
    if live.may_have_waits:
        transaction.store.drop_waits(row.key)
    transaction.after_commit.append(RunEnded(row.key))
    began = live.began if row.started_at is None else row.started_at
    completed = command.status == RunStatus.COMPLETED
    trigger_events = (
        [live.trigger] if live.trigger else [transaction.event(key) for key in transaction.store.event_keys(row)]
    )
    ended = RunChange(
        END_UPDATES[command.status],
        transaction.now,
        row,
        output=output,
        failed=not completed,
        began=began,
        event_id=trigger_events[0].id,
        by_engine=command.by_engine,
    )
    transaction.after_commit.append(ended)
    # A run keeps its error in the app's form. Events and invokers get it without nulls, as from official servers.
    reported = output if completed else encode_error(msgspec.json.decode(output, type=ErrorData))
    memo = data_memo(reported) if completed else b'{"error":' + reported + b"}"
    if live.queue_entry is not None:
        triggers.release_run(transaction, row, live.queue_entry)
    if row.rerun_of is None:
        for trigger in trigger_events:
            transaction.resolve_invokers(trigger, memo, failed=not completed)
    origin = transaction.origin_of(row, trigger_events[0])
    traceparent = trigger_events[0].traceparent
    if transaction.tracing is not None:
        transaction.note_end(row, command.status, output, trigger_events)
        traceparent = transaction.trace_of(row, trigger_events[0])
    for name, data in run_end_events(RunResult(row.id, row.function_id, command.status, reported), trigger_events):
        transaction.emit(name, data, origin, traceparent)
    if live.state.defers:
        _start_deferred(transaction, row, origin, traceparent)


def _start_deferred(transaction: Transaction, row: RunRow, origin: Origin, traceparent: str | None) -> None:
    for deferred in transaction.store.take_deferred(row.key):
        if transaction.registry.find_active(deferred.function_id) is None:
            message = "run %s: it deferred the function %r, which no app has synced"
            _logger.warning(message, row.id, deferred.function_id)
        data = deferred_data(deferred.data, deferred.function_id, row.id, row.function_id)
        transaction.emit(InternalEvent.DEFERRED_SCHEDULE, data, origin, traceparent, deferred.sessions)


def _defer(transaction: Transaction, live: LiveRun, command: Defer) -> None:
    transaction.store.add_deferred(live.row.key, command)


def _abort_deferred(transaction: Transaction, live: LiveRun, command: AbortDeferred) -> None:
    transaction.store.drop_deferred(live.row.key, command.step_id)


def _refuse_deferred(transaction: Transaction, live: LiveRun, command: RefuseDeferred) -> None:
    _logger.warning("run %s cannot defer %r: %s; it continues without", live.row.id, command.name, command.reason)


def _wait(transaction: Transaction, live: LiveRun, name: str, wait: WaitRow) -> None:
    live.may_have_waits = True
    transaction.store.put_wait(msgspec.structs.replace(wait, called_at=live.called_at), transaction.now)
    if wait.due is not None:
        transaction.after_commit.append(StepTimer(wait.run_key, wait.step_id, wait.due))
        transaction.after_commit.append(subscriptions.step_waits(live.row, name, wait.op, wait.due, transaction.now))


_COMMANDS: dict[type[Any], Callable[[Transaction, LiveRun, Any], None]] = {
    MakeCall: _make_call,
    WriteMemo: _write_memo,
    Sleep: _sleep,
    AwaitEvent: _await_event,
    AwaitSignal: _await_signal,
    Invoke: _invoke,
    MakeRequest: _make_request,
    CloseWait: _close_wait,
    Defer: _defer,
    AbortDeferred: _abort_deferred,
    RefuseDeferred: _refuse_deferred,
    EndRun: _end_run,
}


def _add_call(transaction: Transaction, live: LiveRun, call: Call) -> None:
    live.call_place = len(transaction.after_commit)
    transaction.after_commit.append(schedule_call(live.row, live.queue_entry, call))


def _add_call_data(transaction: Transaction, live: LiveRun, place: int) -> None:
    """Add the content to a call that follows the commit, which saves a read.

    The content must be in memory, the call due, and only the end of the run possible before it.
    """
    state, message = live.state, transaction.after_commit[place]
    assert isinstance(message, ScheduledCall), "calls stay at their places"
    if (
        live.trigger is None
        or live.kept_memos is None
        or message.call.due > transaction.now
        or state.waits
        or len(state.calls) != 1
        or message.call.generation != state.calls[0].generation
    ):
        return
    data = CallData(
        live.row.id,
        live.row.function_id,
        message.call,
        state.max_attempts,
        state.disable_immediate,
        [live.trigger.body],
        live.kept_memos,
        defers=state.defers,
        traceparent=live.trigger.traceparent,
    )
    transaction.after_commit[place] = msgspec.structs.replace(message, data=data)
