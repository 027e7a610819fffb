"""The run machine: a run state and an input give the next run state and commands.

Pure: ``advance`` reads no clock, draws no random number, touches no storage, and never reads a stored memo. The engine
stores the run state and executes the commands in one transaction. ``TRANSITIONS``, at the end, is the table of all
inputs by the run's status; the table of ``ops`` lists the ops of an answer. The semantics are those of spec §5.

Three rules:
- A call is identified by its generation, and no generation is used twice. An answer to a call that was given up
  therefore finds no call, and changes nothing (``StaleCallError``).
- At most one discovery is outstanding. Requests for another while it is under way become one more discovery afterwards.
- A run that has not ended has a call or wait outstanding; otherwise nothing would continue it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from durably.protocol.engine_errors import CheckpointInvalidError, OpInvalidError, StaleCallError, TooLargeError
from durably.protocol.errors import ErrorCode, ErrorData
from durably.protocol.opcodes import Op, Opcode, hash_step_id
from durably.protocol.questions import without_run

from .calls import AttemptFailed, ReportedOps, Returned, Unreached
from .inputs import (
    Answered,
    AnsweredTogether,
    CancelRequested,
    Checkpointed,
    Command,
    DelaysSkipped,
    FailedAttempt,
    Input,
    MakeRequest,
    Recovered,
    RequestFinished,
    RequestLost,
    SignalConflicted,
    TimerFired,
    WaitResolved,
)
from .ops import (
    ASKING,
    EXECUTED,
    LAZY,
    REQUESTS,
    STARTING,
    AnsweredCall,
    apply_op,
    executed_memo,
    note_deferred,
    step_name,
    target_not_found,
)
from .run_state import MACHINE_VERSION, Call, Policy, RunState, RunStatus, Wait
from .transition import RunOverflow, Transition, encode_error, error_memo, excerpt

INVOKE_TIMED_OUT = ErrorData(
    name="InngestInvokeTimeoutError", message="Timed out waiting for invoked function to complete"
)
NOTHING_ASKED = ErrorData(
    name="NothingAskedError",
    message="the app answered without a result, without a new step, and with no step of the run under way",
)


def start(max_attempts: int, now: int, memos: int = 0, size: int = 0) -> RunState:
    """The run state of a new run, with an outstanding discovery as its first call.

    ``memos`` and ``size`` are the number and the bytes of the memos that it copies from another run.
    """
    return RunState(
        version=MACHINE_VERSION,
        status=RunStatus.SCHEDULED,
        max_attempts=max_attempts,
        generation=1,
        calls=(Call(generation=1, due=now, memos_seen=memos),),
        memos=memos,
        bytes=size,
    )


def advance(state: RunState, run_input: Input, now: int, policy: Policy) -> tuple[RunState, list[Command]]:
    """The run state after an input, and the commands to execute with it.

    Raises ``StaleCallError``, and for checkpoints ``CheckpointInvalidError`` and ``TooLargeError``. The state is then
    unchanged.
    """
    transition = Transition(state, now, policy)
    _HANDLERS[state.status, type(run_input)](transition, run_input)
    transition.settle()
    return transition.next_state(), transition.commands


# calls


def _end_call(transition: Transition, run_input: Answered) -> None:
    call = transition.find_call(run_input.generation)
    del transition.calls[call.generation]
    transition.status = RunStatus.RUNNING
    match run_input.answer:
        case Returned(output):
            transition.end(RunStatus.COMPLETED, output)
        case ReportedOps() as answer:
            _apply_ops(transition, call, answer, run_input.memoised)
        case AttemptFailed(error) if error.code == ErrorCode.STEP_UNEXPECTED and not call.is_discovery:
            target_not_found(transition, call, error)
        case AttemptFailed(error, no_retry, retry_at, written):
            transition.fail_attempt(call, error, no_retry=no_retry, retry_at=retry_at, written=written)
        case Unreached(error):
            delay = transition.policy.unreached_delay(call.unreached)
            again = msgspec.structs.replace(
                call, due=transition.now + delay, unreached=call.unreached + 1, error=excerpt(error)
            )
            transition.call(again, FailedAttempt(call.step_id, error))


def _end_calls(transition: Transition, run_input: AnsweredTogether) -> None:
    outstanding = [answered for answered in run_input.answers if answered.generation in transition.calls]
    if not outstanding:
        transition.find_call(run_input.generation)
    for answered in outstanding:
        if not transition.status.has_ended:
            _end_call(transition, answered)


def _apply_ops(transition: Transition, call: Call, answer: ReportedOps, memoised: frozenset[str]) -> None:
    asking = [op for op in answer.ops if op.op in ASKING]
    if len(asking) > 1 or any(op.op == Opcode.STEP_PLANNED for op in asking):
        transition.disable_immediate = True
    answered = AnsweredCall(transition, call, answer)
    # Before all others: defers count even if another op ends the run.
    has_deferred = [note_deferred(transition, op) for op in answer.ops if op.op in LAZY]
    ops = [op for op in answer.ops if op.op not in LAZY]
    if call.is_discovery and not ops and any(has_deferred):
        transition.discover_again = True
    try:
        transition.check_room_for(len({op.id for op in ops if _is_new_step(transition, op, memoised)}))
        for op in ops:
            if _is_known(transition, op, memoised):
                continue
            apply_op(answered, op)
            if transition.status.has_ended:
                return
    except OpInvalidError as error:
        transition.fail(ErrorData(name="OpInvalidError", message=str(error)))
    except RunOverflow as overflow:
        transition.fail(overflow.error)
    else:
        if not answered.gave_up:
            _check_progress(transition, call, memoised)


def _is_known(transition: Transition, op: Op, memoised: frozenset[str]) -> bool:
    """Whether the step of an op has ended or is under way."""
    return bool(op.id) and (op.id in memoised or op.id in transition.written or transition.is_outstanding(op.id))


def _is_new_step(transition: Transition, op: Op, memoised: frozenset[str]) -> bool:
    return op.op in STARTING and not _is_known(transition, op, memoised) and op.id not in transition.waits


def _check_progress(transition: Transition, call: Call, memoised: frozenset[str]) -> None:
    """Fail the attempt if the answer has no result of its call.

    In that case the app has a bug, or a checkpoint was committed and its acknowledgement was lost.
    """
    if call.is_discovery:
        # Close lost requests that the discovery has not reported again: the function has continued without them.
        for wait in [wait for wait in transition.waits.values() if wait.needs_op]:
            transition.close_wait(wait.step_id)
        is_undone = not (transition.calls or transition.waits or transition.written or transition.discover_again)
    else:
        target = call.step_id
        is_undone = (
            target not in memoised and target not in transition.written and not transition.is_outstanding(target)
        )
        if target in memoised:
            transition.step_ended(call.race)
    if is_undone:
        transition.fail_attempt(call, NOTHING_ASKED, no_retry=False, retry_at=transition.now)


def _write_steps(transition: Transition, run_input: Checkpointed) -> None:
    call = transition.find_call(run_input.generation)
    transition.status = RunStatus.RUNNING
    attempts = call.attempt + 1
    for op in run_input.ops:
        _check_checkpointable(op, transition.policy.max_step_output_bytes)
        if op.op in LAZY:
            note_deferred(transition, op)
        if op.op not in EXECUTED or op.id in run_input.memoised or op.id in transition.written:
            continue
        memo, _ = executed_memo(op, transition.policy.max_step_output_bytes)
        try:
            transition.write(op.id, step_name(op), Opcode.STEP_RUN, memo, attempts=attempts, executed=op)
        except RunOverflow as overflow:
            raise TooLargeError(str(overflow)) from overflow
        attempts = 1
    if transition.written:
        name = "" if call.is_discovery else call.name
        transition.calls[call.generation] = msgspec.structs.replace(call, attempt=0, unreached=0, name=name, error="")


def _check_checkpointable(op: Op, max_bytes: int) -> None:
    if op.op not in EXECUTED and op.op not in LAZY and op.op != Opcode.STEP_PLANNED:
        raise CheckpointInvalidError(
            f"step {step_name(op)!r}: an op {op.op!r} needs a decision of the engine, so it cannot be checkpointed; "
            "end the call with it"
        )
    if not op.id:
        raise CheckpointInvalidError(f"an op {op.op!r} has no id")
    if isinstance(op.data, msgspec.Raw) and len(bytes(op.data)) > max_bytes:
        raise TooLargeError(f"step {step_name(op)!r} returned more than {max_bytes} bytes")


# waits


def _time_out(transition: Transition, run_input: TimerFired) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is None or wait.op in REQUESTS:
        return
    if wait.op == Opcode.INVOKE_FUNCTION:
        transition.resolve(wait, error_memo(INVOKE_TIMED_OUT), failed=True)
    else:
        transition.resolve(wait, b"null")


def _end_wait(transition: Transition, run_input: WaitResolved) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is not None:
        transition.resolve(wait, run_input.memo, failed=run_input.failed)


def _fail_wait(transition: Transition, run_input: SignalConflicted) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is not None:
        name = without_run(run_input.signal)
        message = (
            f"step {wait.name!r} waits for the signal {run_input.signal!r}, for which another step already waits; give "
            "the wait on_conflict='replace' to replace it"
            if name == run_input.signal
            else f"step {wait.name!r} receives {name!r}, and so does another step of the run at the same time: give "
            "one of them another name"
        )
        transition.fail(ErrorData(name="SignalConflictError", message=message))


def _end_request(transition: Transition, run_input: RequestFinished) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is None or wait.generation != run_input.generation or wait.needs_op:
        return
    attempts = wait.attempt + 1
    if not run_input.failed or not run_input.is_retriable or attempts >= transition.max_attempts:
        transition.resolve(wait, run_input.memo, attempts=attempts, failed=run_input.failed, usage=run_input.usage)
        return
    generation, due = transition.next_generation(), transition.now + transition.policy.retry_delay(wait.attempt)
    transition.waits[wait.step_id] = msgspec.structs.replace(wait, generation=generation, attempt=attempts)
    transition.commands.append(
        MakeRequest(wait.step_id, wait.name, wait.op, generation, attempts, due, None, run_input.memo)
    )


def _lose_request(transition: Transition, run_input: RequestLost) -> None:
    """Ask the app for the request again.

    A discovery that is under way may still report it.
    """
    wait = transition.waits.get(run_input.step_id)
    if wait is not None and wait.generation == run_input.generation:
        transition.waits[wait.step_id] = msgspec.structs.replace(wait, needs_op=True)
        transition.discover()


# the run


def _cancel(transition: Transition, run_input: CancelRequested) -> None:
    transition.end(
        RunStatus.CANCELLED, encode_error(ErrorData(name="FunctionCancelledError", message=run_input.reason))
    )


def find_delays(state: RunState, step_id: str | None, now: int) -> tuple[list[Wait], list[Call]]:
    """The sleeps and the delayed calls to which ``DelaysSkipped`` applies."""

    def is_of_step(call: Call) -> bool:
        hashed = hash_step_id(call.name) if call.is_discovery and call.name else call.step_id
        return step_id in (None, hashed, call.name)

    sleeps = [wait for wait in state.waits if wait.op == Opcode.SLEEP and step_id in (None, wait.step_id, wait.name)]
    return sleeps, [call for call in state.calls if not call.is_made(now) and is_of_step(call)]


def _skip_delays(transition: Transition, run_input: DelaysSkipped) -> None:
    sleeps, delayed = find_delays(transition.next_state(), run_input.step_id, transition.now)
    if run_input.only_unreached:
        sleeps, delayed = [], [call for call in delayed if call.unreached]
    for call in delayed:
        del transition.calls[call.generation]
        transition.call(msgspec.structs.replace(call, due=transition.now))
    for wait in sleeps:
        transition.resolve(wait, b"null")


def _repeat_lost(transition: Transition, run_input: Recovered) -> None:
    for wait in [wait for wait in transition.waits.values() if wait.op in REQUESTS]:
        transition.waits[wait.step_id] = msgspec.structs.replace(wait, needs_op=True)
        transition.discover_again = True
    for call in [call for call in transition.calls.values() if call.is_made(transition.now)]:
        del transition.calls[call.generation]
        transition.call(msgspec.structs.replace(call, due=min(call.due, transition.now)))
    if transition.discovery is not None:
        transition.discover_again = False


def _ignore(transition: Transition, run_input: Input) -> None:
    """Ignore the input, and report nothing to its sender.

    The input is too late, or concerns no part of the run.
    """


def _refuse(transition: Transition, run_input: Input) -> None:
    raise StaleCallError(f"the call is stale: its run has ended and is {transition.status.value.lower()}")


# the table

Handler = Callable[[Transition, Any], None]
SCHEDULED, RUNNING, COMPLETED, FAILED, CANCELLED, SKIPPED = RunStatus

# fmt: off
TRANSITIONS: dict[type[Input], tuple[Handler, Handler, Handler, set[RunStatus]]] = {
    # input           in a scheduled run  in a running run  in an ended run  the run may become
    Answered:         (_end_call,         _end_call,        _refuse,         {RUNNING, COMPLETED, FAILED}),
    AnsweredTogether: (_end_calls,        _end_calls,       _refuse,         {RUNNING, COMPLETED, FAILED}),
    Checkpointed:     (_write_steps,      _write_steps,     _refuse,         {RUNNING}),
    TimerFired:       (_ignore,           _time_out,        _ignore,         {FAILED}),
    WaitResolved:     (_ignore,           _end_wait,        _ignore,         {FAILED}),
    SignalConflicted: (_ignore,           _fail_wait,       _ignore,         {FAILED}),
    RequestFinished:  (_ignore,           _end_request,     _ignore,         {FAILED}),
    RequestLost:      (_ignore,           _lose_request,    _ignore,         set()),
    CancelRequested:  (_cancel,           _cancel,          _ignore,         {CANCELLED}),
    DelaysSkipped:    (_ignore,           _skip_delays,     _ignore,         {FAILED}),
    Recovered:        (_repeat_lost,      _repeat_lost,     _ignore,         set()),
}
# fmt: on
"""The handler of each input by the run's status. A skipped run counts as ended; it never has another status."""

_COLUMNS = {SCHEDULED: 0, RUNNING: 1, COMPLETED: 2, FAILED: 2, CANCELLED: 2, SKIPPED: 2}
_HANDLERS: dict[tuple[RunStatus, type[Input]], Handler] = {
    (status, kind): row[column]  # type: ignore[misc]
    for kind, row in TRANSITIONS.items()
    for status, column in _COLUMNS.items()
}
