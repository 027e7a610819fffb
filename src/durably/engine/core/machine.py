"""The run machine: a run state and an input give the next run state and commands.

Pure: ``advance`` reads no clock, draws no random number, touches no storage, and never sees a stored memo. The
engine stores the run state and executes the commands in one transaction. ``_TABLE`` lists the inputs by status,
the table of ``ops`` the ops. The semantics are those of spec §5.

Three rules:
- A call is known by its generation. Generations are never given out twice, so an answer to a call that was
  given up finds no call, and changes nothing (``StaleCallError``).
- At most one discovery is outstanding. Requests for another while it is under way become one more discovery
  afterwards.
- A run that has not ended has a call or wait outstanding; otherwise nothing would continue it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from durably.protocol.errors import ErrorCode, ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op, Opcode

from .answers import AttemptFailed, ReportedOps, Returned, Unreached
from .errors import CheckpointInvalidError, OpInvalidError, StaleCallError, TooLargeError
from .inputs import (
    Answered,
    AnsweredTogether,
    CancelRequested,
    Checkpointed,
    Command,
    Input,
    MakeRequest,
    Recovered,
    RequestFinished,
    SignalConflicted,
    TimerFired,
    WaitResolved,
)
from .op_options import step_name
from .ops import ASKING, EXECUTED, REQUESTS, STARTING, Answering, apply_op, executed_memo, target_not_found
from .run_state import MACHINE_VERSION, Call, RunState, RunStatus
from .transition import LAZY, Policy, RunOverflow, Transition, encode_error, error_memo, excerpt, note_deferred

INVOKE_TIMED_OUT = ErrorData(
    name="InngestInvokeTimeoutError", message="Timed out waiting for invoked function to complete"
)
NOTHING_ASKED = ErrorData(
    name="NothingAskedError",
    message="the app answered without a result, without a new step, and with no step of the run under way",
)


def start(max_attempts: int, now: int, memos: int = 0, size: int = 0) -> tuple[RunState, list[Command]]:
    """The run state of a new run, and its first call. ``memos`` and ``size`` count what it takes over from another run,
    in number and in bytes."""
    state = RunState(
        version=MACHINE_VERSION, status=RunStatus.SCHEDULED, max_attempts=max_attempts, memos=memos, bytes=size
    )
    transition = Transition(state, now, _NO_RETRIES)
    transition.discover()
    return transition.next_state(), transition.commands


def advance(state: RunState, run_input: Input, now: int, policy: Policy) -> tuple[RunState, list[Command]]:
    """Raises ``StaleCallError``, and for checkpoints ``CheckpointInvalidError`` and ``TooLargeError``; then
    nothing has changed."""
    transition = Transition(state, now, policy)
    handle = _TABLE[state.status][type(run_input)]
    handle(transition, run_input)
    transition.settle()
    return transition.next_state(), transition.commands


# calls


def _on_answer(transition: Transition, run_input: Answered) -> None:
    call = transition.find_call(run_input.generation)
    del transition.calls[call.generation]
    transition.status = RunStatus.RUNNING
    match run_input.answer:
        case Returned(output):
            transition.end(RunStatus.COMPLETED, output)
        case ReportedOps() as answer:
            _on_ops(transition, call, answer, run_input.memoised)
        case AttemptFailed(error) if error.code == ErrorCode.STEP_UNEXPECTED and not call.is_discovery:
            target_not_found(transition, call, call.name)
        case AttemptFailed(error, no_retry, retry_at, written):
            transition.fail_attempt(call, error, no_retry=no_retry, retry_at=retry_at, written=written)
        case Unreached(error):
            delay = transition.policy.unreached_delay(call.unreached)
            again = msgspec.structs.replace(
                call, due=transition.now + delay, unreached=call.unreached + 1, error=excerpt(error)
            )
            transition.call(again)


def _on_answers(transition: Transition, run_input: AnsweredTogether) -> None:
    outstanding = [answered for answered in run_input.answers if answered.generation in transition.calls]
    if not outstanding:
        transition.find_call(run_input.generation)
    for answered in outstanding:
        if not transition.status.has_ended:
            _on_answer(transition, answered)


def _on_ops(transition: Transition, call: Call, answer: ReportedOps, memoised: frozenset[str]) -> None:
    asking = [op for op in answer.ops if op.op in ASKING]
    if len(asking) > 1 or any(op.op == Opcode.STEP_PLANNED for op in asking):
        transition.disable_immediate = True
    answering = Answering(transition, call, answer)
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
            apply_op(answering, op)
            if transition.status.has_ended:
                return
    except OpInvalidError as error:
        transition.fail(ErrorData(name="OpInvalidError", message=str(error)))
    except RunOverflow as overflow:
        transition.fail(overflow.error)
    else:
        if not answering.gave_up:
            _check_progress(transition, call, memoised)


def _is_known(transition: Transition, op: Op, memoised: frozenset[str]) -> bool:
    """Whether the step of an op has ended, or is under way."""
    return bool(op.id) and (op.id in memoised or op.id in transition.written or transition.is_outstanding(op.id))


def _is_new_step(transition: Transition, op: Op, memoised: frozenset[str]) -> bool:
    return op.op in STARTING and not _is_known(transition, op, memoised) and op.id not in transition.waits


def _check_progress(transition: Transition, call: Call, memoised: frozenset[str]) -> None:
    """Where an answer leaves undone what it was asked for, its attempt has failed: such an answer comes of a
    faulty app, or of a checkpoint that was committed but whose acknowledgement was lost."""
    if call.is_discovery:
        _drop_lost_requests(transition)
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


def _drop_lost_requests(transition: Transition) -> None:
    """Requests lost at a restart which a discovery since has not reported again: the function has gone on
    without them."""
    for wait in [wait for wait in transition.waits.values() if wait.needs_op]:
        transition.close_wait(wait.step_id)


def _on_checkpoint(transition: Transition, run_input: Checkpointed) -> None:
    call = transition.find_call(run_input.generation)
    transition.status = RunStatus.RUNNING
    attempts = call.attempt + 1
    for op in run_input.ops:
        _check_checkpointable(op)
        if op.op in LAZY:
            note_deferred(transition, op)
        if op.op not in EXECUTED or op.id in run_input.memoised or op.id in transition.written:
            continue
        memo, _ = executed_memo(op)
        try:
            transition.write(op.id, step_name(op), Opcode.STEP_RUN, memo, attempts=attempts)
        except RunOverflow as overflow:
            raise TooLargeError(str(overflow)) from overflow
        attempts = 1
    if transition.written:
        name = "" if call.is_discovery else call.name
        transition.calls[call.generation] = msgspec.structs.replace(call, attempt=0, unreached=0, name=name, error="")


def _check_checkpointable(op: Op) -> None:
    if op.op not in EXECUTED and op.op not in LAZY and op.op != Opcode.STEP_PLANNED:
        raise CheckpointInvalidError(
            f"step {step_name(op)!r}: an op {op.op!r} needs a decision of the engine, so it cannot be checkpointed; "
            "end the call with it"
        )
    if not op.id:
        raise CheckpointInvalidError(f"an op {op.op!r} has no id")
    if isinstance(op.data, msgspec.Raw) and len(bytes(op.data)) > MAX_STEP_OUTPUT_BYTES:
        raise TooLargeError(f"step {step_name(op)!r} returned more than {MAX_STEP_OUTPUT_BYTES} bytes")


# waits


def _on_timer(transition: Transition, run_input: TimerFired) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is None or wait.op in REQUESTS:
        return
    if wait.op == Opcode.INVOKE_FUNCTION:
        transition.resolve(wait, error_memo(INVOKE_TIMED_OUT), failed=True)
    else:
        transition.resolve(wait, b"null")


def _on_wait_resolved(transition: Transition, run_input: WaitResolved) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is not None:
        transition.resolve(wait, run_input.memo, failed=run_input.failed)


def _on_signal_conflict(transition: Transition, run_input: SignalConflicted) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is not None:
        message = (
            f"step {wait.name!r} waits for the signal {run_input.signal!r}, for which another step waits already; give "
            "the wait on_conflict='replace' to take its place"
        )
        transition.fail(ErrorData(name="SignalConflictError", message=message))


def _on_request_finished(transition: Transition, run_input: RequestFinished) -> None:
    wait = transition.waits.get(run_input.step_id)
    if wait is None or wait.generation != run_input.generation or wait.needs_op:
        return
    attempts = wait.attempt + 1
    if not run_input.failed or not run_input.is_retriable or attempts >= transition.max_attempts:
        transition.resolve(wait, run_input.memo, attempts=attempts, failed=run_input.failed)
        return
    generation, due = transition.next_generation(), transition.now + transition.policy.retry_delay(wait.attempt)
    transition.waits[wait.step_id] = msgspec.structs.replace(wait, generation=generation, attempt=attempts)
    transition.commands.append(MakeRequest(wait.step_id, wait.name, wait.op, generation, attempts, due, None))


# the run


def _cancel(transition: Transition, run_input: CancelRequested) -> None:
    transition.end(
        RunStatus.CANCELLED, encode_error(ErrorData(name="FunctionCancelledError", message=run_input.reason))
    )


def _on_recovery(transition: Transition, run_input: Recovered) -> None:
    for wait in [wait for wait in transition.waits.values() if wait.op in REQUESTS]:
        transition.waits[wait.step_id] = msgspec.structs.replace(wait, needs_op=True)
        transition.discover_again = True
    for call in [call for call in transition.calls.values() if call.is_made(transition.now)]:
        del transition.calls[call.generation]
        transition.call(msgspec.structs.replace(call, due=min(call.due, transition.now)))
    if transition.discovery is not None:
        transition.discover_again = False


def _ignore(transition: Transition, run_input: Input) -> None:
    """What comes too late, to a run that has ended, and whose sender need not know."""


def _refuse(transition: Transition, run_input: Input) -> None:
    raise StaleCallError(f"the call is stale: its run has ended and is {transition.status.value.lower()}")


_Handler = Callable[[Transition, Any], None]

_LIVE: dict[type[Input], _Handler] = {
    Answered: _on_answer,
    AnsweredTogether: _on_answers,
    Checkpointed: _on_checkpoint,
    TimerFired: _on_timer,
    WaitResolved: _on_wait_resolved,
    SignalConflicted: _on_signal_conflict,
    RequestFinished: _on_request_finished,
    CancelRequested: _cancel,
    Recovered: _on_recovery,
}

_ENDED: dict[type[Input], _Handler] = {
    Answered: _refuse,
    AnsweredTogether: _refuse,
    Checkpointed: _refuse,
    TimerFired: _ignore,
    WaitResolved: _ignore,
    SignalConflicted: _ignore,
    RequestFinished: _ignore,
    CancelRequested: _ignore,
    Recovered: _ignore,
}

_TABLE: dict[RunStatus, dict[type[Input], _Handler]] = {
    RunStatus.SCHEDULED: _LIVE,
    RunStatus.RUNNING: _LIVE,
    RunStatus.COMPLETED: _ENDED,
    RunStatus.FAILED: _ENDED,
    RunStatus.CANCELLED: _ENDED,
    RunStatus.SKIPPED: _ENDED,
}

_NO_RETRIES = Policy(retry_delay=lambda attempt: 0, unreached_delay=lambda failures: 0)
"""For the transition that starts a run, in which nothing can fail."""
