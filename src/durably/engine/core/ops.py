"""What each op of an answer does to a run (spec §5.1.1, §5.3)."""

from collections.abc import Callable

import msgspec

from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op, Opcode

from .answers import ReportedOps
from .errors import OpInvalidError
from .inputs import AwaitEvent, AwaitSignal, Invoke, MakeRequest, Sleep
from .op_options import (
    read_event_wait,
    read_invoke,
    read_retry_after,
    read_signal_wait,
    read_sleep,
    step_name,
)
from .run_state import Call, RunStatus, Wait
from .transition import Transition, data_memo, error_memo


class Answering:
    """The answer that is being read: the call that it ends, and what it says for all of its ops.

    ``attempt`` is that at which the app ran the step being read. It starts anew after each step that was
    executed, so an error that follows one in the same answer is a first attempt's. ``gave_up`` is set where the
    function has gone on without the step that the call was for.
    """

    def __init__(self, transition: Transition, call: Call, answer: ReportedOps) -> None:
        self.transition = transition
        self.call = call
        self.answer = answer
        self.attempt = call.attempt
        self.gave_up = False

    def is_race(self, op: Op) -> bool:
        return self.answer.races or op.is_race or (self.call.race and op.id == self.call.step_id)

    def wait(self, op: Op, kind: Opcode) -> None:
        self.transition.wait(Wait(step_id=op.id, op=kind, name=step_name(op), race=self.is_race(op)))


def apply_op(answering: Answering, op: Op) -> None:
    """Raises ``OpInvalidError`` and ``RunOverflow``, either of which fails the run."""
    handler = _HANDLERS.get(op.op)
    if handler is None:
        raise OpInvalidError(
            f"step {step_name(op)!r} asks for {op.op!r}, which this engine does not know: the app's SDK offers "
            "something that this version of the engine does not have"
        )
    if not op.id and op.op not in _WITHOUT_STEP:
        raise OpInvalidError(f"an op {op.op!r} has no id")
    handler(answering, op)


def executed_memo(op: Op) -> tuple[bytes, bool]:
    """The memo of a step that an app has executed, and whether it is an error."""
    data = bytes(op.data) if isinstance(op.data, msgspec.Raw) else b"null"
    if len(data) <= MAX_STEP_OUTPUT_BYTES:
        return data_memo(data), False
    message = (
        f"step {step_name(op)!r} returned {len(data)} bytes; at most {MAX_STEP_OUTPUT_BYTES} are possible: return "
        "less, for instance a reference to where the data is stored"
    )
    return error_memo(ErrorData(name="StepOutputTooLargeError", message=message)), True


def _step_run(answering: Answering, op: Op) -> None:
    memo, failed = executed_memo(op)
    _write(answering, op, memo, failed)


def _step_error(answering: Answering, op: Op) -> None:
    transition, attempt = answering.transition, answering.attempt
    if answering.answer.no_retry or attempt + 1 >= transition.max_attempts:
        _step_failed(answering, op)
    else:
        retry_at = read_retry_after(op, transition.now) or answering.answer.retry_at
        transition.retry(answering.call, _error_of(op), attempt=attempt, retry_at=retry_at, name=step_name(op))


def _step_failed(answering: Answering, op: Op) -> None:
    _write(answering, op, error_memo(_error_of(op)), failed=True)


def _error_of(op: Op) -> ErrorData:
    return op.error or ErrorData(message="the step failed without saying why")


def _write(answering: Answering, op: Op, memo: bytes, failed: bool) -> None:
    attempts = answering.attempt + 1
    answering.transition.write(op.id, step_name(op), Opcode.STEP_RUN, memo, attempts=attempts, failed=failed)
    answering.transition.step_ended(answering.is_race(op))
    answering.attempt = 0


def _step_planned(answering: Answering, op: Op) -> None:
    transition = answering.transition
    if op.id == answering.call.step_id:
        # Planned instead of executed, by the very call that is to execute it: its attempt has come to nothing.
        return
    lost = transition.close_wait(op.id)
    attempt = lost.attempt if lost else 0
    transition.call(
        Call(
            generation=0,
            due=transition.now,
            step_id=op.id,
            name=step_name(op),
            attempt=attempt,
            race=answering.is_race(op),
            memos_seen=answering.call.memos_seen,
        )
    )


def _sleep(answering: Answering, op: Op) -> None:
    until = read_sleep(op, answering.transition.now)
    answering.wait(op, Opcode.SLEEP)
    answering.transition.commands.append(Sleep(op.id, step_name(op), until))


def _wait_for_event(answering: Answering, op: Op) -> None:
    options = read_event_wait(op, answering.transition.now)
    answering.wait(op, Opcode.WAIT_FOR_EVENT)
    answering.transition.commands.append(AwaitEvent(op.id, step_name(op), options))


def _wait_for_signal(answering: Answering, op: Op) -> None:
    options = read_signal_wait(op, answering.transition.now)
    answering.wait(op, Opcode.WAIT_FOR_SIGNAL)
    answering.transition.commands.append(AwaitSignal(op.id, step_name(op), options))


def _invoke(answering: Answering, op: Op) -> None:
    options = read_invoke(op, answering.transition.now)
    answering.wait(op, Opcode.INVOKE_FUNCTION)
    answering.transition.commands.append(Invoke(op.id, step_name(op), options))


def _request(answering: Answering, op: Op) -> None:
    transition, kind, name = answering.transition, Opcode(op.op), step_name(op)
    lost = transition.waits.get(op.id)
    attempt = lost.attempt if lost else 0
    generation = transition.next_generation()
    transition.wait(
        Wait(step_id=op.id, op=kind, name=name, race=answering.is_race(op), generation=generation, attempt=attempt)
    )
    transition.commands.append(MakeRequest(op.id, name, kind, generation, attempt, transition.now, op.opts or {}))


def _step_not_found(answering: Answering, op: Op) -> None:
    answering.gave_up = target_not_found(answering.transition, answering.call, answering.call.name or step_name(op))


def target_not_found(transition: Transition, call: Call, name: str) -> bool:
    """Whether the run goes on without the step that the call was for.

    If the function has seen more memos since it planned the step, it may have continued without the step, for example
    because another branch won a race or the step was cancelled. Otherwise it is not deterministic: its run fails.
    """
    if not call.is_discovery and transition.memos > call.memos_seen:
        transition.step_ended(call.race)
        return True
    message = (
        f"step {name!r} was planned, but the function did not reach it when called for it: a "
        "function must find the same steps each time it is called with the same memos"
    )
    transition.fail(ErrorData(name="StepNotFoundError", message=message))
    return False


def _run_complete(answering: Answering, op: Op) -> None:
    output = bytes(op.data) if isinstance(op.data, msgspec.Raw) else b"null"
    answering.transition.end(RunStatus.COMPLETED, output)


def _discovery_request(answering: Answering, op: Op) -> None:
    """Granted when the answer has been read: a failed step in it is called for again by its own discovery. An app
    that asks for this alone, and has finished no step since it was called, has done nothing with its attempt."""
    transition = answering.transition
    transition.discover_again = transition.discover_again or transition.memos > answering.call.memos_seen


_HANDLERS: dict[str, Callable[[Answering, Op], None]] = {
    Opcode.STEP: _step_run,
    Opcode.STEP_RUN: _step_run,
    Opcode.STEP_ERROR: _step_error,
    Opcode.STEP_FAILED: _step_failed,
    Opcode.STEP_PLANNED: _step_planned,
    Opcode.STEP_NOT_FOUND: _step_not_found,
    Opcode.SLEEP: _sleep,
    Opcode.WAIT_FOR_EVENT: _wait_for_event,
    Opcode.WAIT_FOR_SIGNAL: _wait_for_signal,
    Opcode.INVOKE_FUNCTION: _invoke,
    Opcode.AI_GATEWAY: _request,
    Opcode.GATEWAY: _request,
    Opcode.RUN_COMPLETE: _run_complete,
    Opcode.DISCOVERY_REQUEST: _discovery_request,
}

_WITHOUT_STEP = frozenset({Opcode.RUN_COMPLETE, Opcode.DISCOVERY_REQUEST})
"""Ops that concern the run, not a step of it."""

EXECUTED = frozenset({Opcode.STEP, Opcode.STEP_RUN})
"""Ops that report a step which the app has executed, and which needs no decision of the engine."""

REQUESTS = frozenset({Opcode.AI_GATEWAY, Opcode.GATEWAY})
"""Ops for which the engine makes a request of its own."""

ASKING = REQUESTS | {
    Opcode.STEP_PLANNED,
    Opcode.SLEEP,
    Opcode.WAIT_FOR_EVENT,
    Opcode.WAIT_FOR_SIGNAL,
    Opcode.INVOKE_FUNCTION,
}
"""Ops that ask the engine for something; several in one answer mean that the run has parallel branches."""

STARTING = EXECUTED | ASKING | {Opcode.WAIT_FOR_SIGNAL}
"""Ops that add a step to a run."""
