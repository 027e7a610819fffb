"""The run machine: from the head of a run and what happened to it, to its next head and what is to be done.

Pure, in the spirit of a protocol machine that does no I/O: ``advance`` reads no clock, draws no random number,
touches no storage, and never sees a memo that was written before. Whoever drives it stores the head and
carries out the commands in one transaction. What may happen when stands in the table below, what ops do in
the one of ``ops``; the semantics are those of spec §5.

Three rules shape the rest:
- A call is known by its generation. Generations are never given out twice, so an answer to a call that was
  given up on finds no call, and changes nothing (``StaleCallError``).
- At most one discovery is outstanding. A wish for another while it is under way is remembered, and becomes
  one more discovery afterwards, however many wishes there were.
- A run that has not ended has something outstanding; else nothing would ever move it again.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from durably.protocol.errors import ErrorCode, ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op, Opcode

from .answers import Asked, AttemptFailed, Returned, Unreached
from .errors import CheckpointInvalidError, OpInvalidError, StaleCallError, TooLargeError
from .inputs import (
    Answered,
    AnsweredTogether,
    CancelAsked,
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
from .ops import ASKING, EXECUTED, REQUESTS, STARTING, Answering, carry_out, executed_memo, target_not_found
from .run_state import MACHINE_VERSION, Call, Head, RunStatus
from .transition import LAZY, Policy, RunOverflow, Turn, encode_error, error_memo, excerpt, note_deferred

INVOKE_TIMED_OUT = ErrorData(
    name="InngestInvokeTimeoutError", message="Timed out waiting for invoked function to complete"
)
NOTHING_ASKED = ErrorData(
    name="NothingAskedError",
    message="the app answered without a result, without a new step, and with no step of the run under way",
)


def start(max_attempts: int, now: int, memos: int = 0, size: int = 0) -> tuple[Head, list[Command]]:
    """The head of a new run, and its first call. ``memos`` and ``size`` count what it takes over from another run, in
    number and in bytes."""
    head = Head(version=MACHINE_VERSION, status=RunStatus.SCHEDULED, max_attempts=max_attempts, memos=memos, bytes=size)
    turn = Turn(head, now, _NO_RETRIES)
    turn.discover()
    return turn.next_head(), turn.commands


def advance(head: Head, happened: Input, now: int, policy: Policy) -> tuple[Head, list[Command]]:
    """Raises ``StaleCallError``, and for checkpoints ``CheckpointInvalidError`` and ``TooLargeError``; then
    nothing has changed."""
    turn = Turn(head, now, policy)
    handle = _TABLE[head.status][type(happened)]
    handle(turn, happened)
    turn.settle()
    return turn.next_head(), turn.commands


# calls


def _on_answer(turn: Turn, happened: Answered) -> None:
    call = turn.find_call(happened.generation)
    del turn.calls[call.generation]
    turn.status = RunStatus.RUNNING
    match happened.answer:
        case Returned(output):
            turn.end(RunStatus.COMPLETED, output)
        case Asked() as answer:
            _on_ops(turn, call, answer, happened.memoised)
        case AttemptFailed(error) if error.code == ErrorCode.STEP_UNEXPECTED and not call.is_discovery:
            target_not_found(turn, call, call.name)
        case AttemptFailed(error, no_retry, retry_at, written):
            turn.fail_attempt(call, error, no_retry=no_retry, retry_at=retry_at, written=written)
        case Unreached(error):
            delay = turn.policy.unreached_delay(call.unreached)
            again = msgspec.structs.replace(
                call, due=turn.now + delay, unreached=call.unreached + 1, error=excerpt(error)
            )
            turn.call(again)


def _on_answers(turn: Turn, happened: AnsweredTogether) -> None:
    outstanding = [answered for answered in happened.answers if answered.generation in turn.calls]
    if not outstanding:
        turn.find_call(happened.generation)
    for answered in outstanding:
        if not turn.status.has_ended:
            _on_answer(turn, answered)


def _on_ops(turn: Turn, call: Call, answer: Asked, memoised: frozenset[str]) -> None:
    asking = [op for op in answer.ops if op.op in ASKING]
    if len(asking) > 1 or any(op.op == Opcode.STEP_PLANNED for op in asking):
        turn.disable_immediate = True
    answering = Answering(turn, call, answer)
    # Before all others: defers count even if another op ends the run.
    has_deferred = [note_deferred(turn, op) for op in answer.ops if op.op in LAZY]
    ops = [op for op in answer.ops if op.op not in LAZY]
    if call.is_discovery and not ops and any(has_deferred):
        turn.discover_again = True
    try:
        turn.check_room_for(len({op.id for op in ops if _is_new_step(turn, op, memoised)}))
        for op in ops:
            if _is_known(turn, op, memoised):
                continue
            carry_out(answering, op)
            if turn.status.has_ended:
                return
    except OpInvalidError as error:
        turn.fail(ErrorData(name="OpInvalidError", message=str(error)))
    except RunOverflow as overflow:
        turn.fail(overflow.error)
    else:
        if not answering.gave_up:
            _check_progress(turn, call, memoised)


def _is_known(turn: Turn, op: Op, memoised: frozenset[str]) -> bool:
    """Whether the step of an op has ended, or is under way."""
    return bool(op.id) and (op.id in memoised or op.id in turn.written or turn.is_outstanding(op.id))


def _is_new_step(turn: Turn, op: Op, memoised: frozenset[str]) -> bool:
    return op.op in STARTING and not _is_known(turn, op, memoised) and op.id not in turn.waits


def _check_progress(turn: Turn, call: Call, memoised: frozenset[str]) -> None:
    """Where an answer leaves undone what it was asked for, its attempt has failed: such an answer comes of a
    faulty app, or of a checkpoint that was committed but whose acknowledgement was lost."""
    if call.is_discovery:
        _drop_lost_requests(turn)
        is_undone = not (turn.calls or turn.waits or turn.written or turn.discover_again)
    else:
        target = call.step_id
        is_undone = target not in memoised and target not in turn.written and not turn.is_outstanding(target)
        if target in memoised:
            turn.step_ended(call.race)
    if is_undone:
        turn.fail_attempt(call, NOTHING_ASKED, no_retry=False, retry_at=turn.now)


def _drop_lost_requests(turn: Turn) -> None:
    """Requests lost at a restart which a discovery since has not reported again: the function has gone on
    without them."""
    for wait in [wait for wait in turn.waits.values() if wait.needs_op]:
        turn.close_wait(wait.step_id)


def _on_checkpoint(turn: Turn, happened: Checkpointed) -> None:
    call = turn.find_call(happened.generation)
    turn.status = RunStatus.RUNNING
    attempts = call.attempt + 1
    for op in happened.ops:
        _check_checkpointable(op)
        if op.op in LAZY:
            note_deferred(turn, op)
        if op.op not in EXECUTED or op.id in happened.memoised or op.id in turn.written:
            continue
        memo, _ = executed_memo(op)
        try:
            turn.write(op.id, step_name(op), Opcode.STEP_RUN, memo, attempts=attempts)
        except RunOverflow as overflow:
            raise TooLargeError(str(overflow)) from overflow
        attempts = 1
    if turn.written:
        name = "" if call.is_discovery else call.name
        turn.calls[call.generation] = msgspec.structs.replace(call, attempt=0, unreached=0, name=name, error="")


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


def _on_timer(turn: Turn, happened: TimerFired) -> None:
    wait = turn.waits.get(happened.step_id)
    if wait is None or wait.op in REQUESTS:
        return
    if wait.op == Opcode.INVOKE_FUNCTION:
        turn.resolve(wait, error_memo(INVOKE_TIMED_OUT), failed=True)
    else:
        turn.resolve(wait, b"null")


def _on_wait_resolved(turn: Turn, happened: WaitResolved) -> None:
    wait = turn.waits.get(happened.step_id)
    if wait is not None:
        turn.resolve(wait, happened.memo, failed=happened.failed)


def _on_signal_conflict(turn: Turn, happened: SignalConflicted) -> None:
    wait = turn.waits.get(happened.step_id)
    if wait is not None:
        message = (
            f"step {wait.name!r} waits for the signal {happened.signal!r}, for which another step waits already; give "
            "the wait on_conflict='replace' to take its place"
        )
        turn.fail(ErrorData(name="SignalConflictError", message=message))


def _on_request_finished(turn: Turn, happened: RequestFinished) -> None:
    wait = turn.waits.get(happened.step_id)
    if wait is None or wait.generation != happened.generation or wait.needs_op:
        return
    attempts = wait.attempt + 1
    if not happened.failed or not happened.is_retriable or attempts >= turn.max_attempts:
        turn.resolve(wait, happened.memo, attempts=attempts, failed=happened.failed)
        return
    generation, due = turn.next_generation(), turn.now + turn.policy.retry_delay(wait.attempt)
    turn.waits[wait.step_id] = msgspec.structs.replace(wait, generation=generation, attempt=attempts)
    turn.commands.append(MakeRequest(wait.step_id, wait.name, wait.op, generation, attempts, due, None))


# the run


def _cancel(turn: Turn, happened: CancelAsked) -> None:
    turn.end(RunStatus.CANCELLED, encode_error(ErrorData(name="FunctionCancelledError", message=happened.reason)))


def _on_recovery(turn: Turn, happened: Recovered) -> None:
    for wait in [wait for wait in turn.waits.values() if wait.op in REQUESTS]:
        turn.waits[wait.step_id] = msgspec.structs.replace(wait, needs_op=True)
        turn.discover_again = True
    for call in [call for call in turn.calls.values() if call.is_made(turn.now)]:
        del turn.calls[call.generation]
        turn.call(msgspec.structs.replace(call, due=min(call.due, turn.now)))
    if turn.discovery is not None:
        turn.discover_again = False


def _ignore(turn: Turn, happened: Input) -> None:
    """What comes too late, to a run that has ended, and whose sender need not know."""


def _refuse(turn: Turn, happened: Input) -> None:
    raise StaleCallError(f"the call is stale: its run has ended and is {turn.status.value.lower()}")


_Handler = Callable[[Turn, Any], None]

_LIVE: dict[type[Input], _Handler] = {
    Answered: _on_answer,
    AnsweredTogether: _on_answers,
    Checkpointed: _on_checkpoint,
    TimerFired: _on_timer,
    WaitResolved: _on_wait_resolved,
    SignalConflicted: _on_signal_conflict,
    RequestFinished: _on_request_finished,
    CancelAsked: _cancel,
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
    CancelAsked: _ignore,
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
"""For the turn that starts a run, in which nothing can fail."""
