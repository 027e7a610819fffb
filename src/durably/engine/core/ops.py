"""Ops of an answer: the effect of each on a run, and the options that it reads.

``_HANDLERS`` is the table of ops. The source is the spec, §5.1.1 and §5.3.
"""

import datetime as dt
from collections.abc import Callable

import msgspec

from durably.protocol.durations import DurationInvalidError, parse_timestamp
from durably.protocol.engine_errors import OpInvalidError
from durably.protocol.errors import ErrorData
from durably.protocol.events import merge_sessions
from durably.protocol.opcodes import FUNCTION_END_ID, RETRY_AFTER_OPT, Op, Opcode
from durably.protocol.questions import MAX_QUESTION_BYTES, QuestionInfo

from .backoff import read_retry_after
from .calls import ReportedOps
from .expressions import ExpressionInvalidError, compile_expression
from .inputs import AbortDeferred, AwaitEvent, AwaitSignal, Defer, Invoke, MakeRequest, RefuseDeferred, Sleep
from .run_state import Call, Deferred, RunStatus, Wait
from .transition import Transition, data_memo, encode_error, error_memo


def step_name(op: Op) -> str:
    """The step's id as the user wrote it, with the number of its repetition.

    If the app sends neither, it is the op's name or its id.
    """
    if op.userland:
        return f"{op.userland.id}:{op.userland.index}" if op.userland.index else op.userland.id
    return op.display_name or op.name or op.id


class AnsweredCall:
    """An answer while its ops are applied, and the call that it ends.

    ``attempt`` is the app's attempt at the step of the next op. It is 0 after each executed step, so that an error
    after it in the same answer belongs to a first attempt. ``gave_up``: the function has continued without the step
    that the call was for.
    """

    def __init__(self, transition: Transition, call: Call, report: ReportedOps) -> None:
        self.transition = transition
        self.call = call
        self.report = report
        self.attempt = call.attempt
        self.gave_up = False

    def is_race(self, op: Op) -> bool:
        return self.report.races or op.is_race or (self.call.race and op.id == self.call.step_id)


def apply_op(answered: AnsweredCall, op: Op) -> None:
    """Apply one op. Raises ``OpInvalidError`` and ``RunOverflow``. Both fail the run."""
    handler = _HANDLERS.get(op.op)
    if handler is None:
        raise OpInvalidError(
            f"step {step_name(op)!r} asks for {op.op!r}, which this engine does not know: the app's SDK offers "
            "something that this version of the engine does not have"
        )
    if not op.id and op.op not in _WITHOUT_STEP:
        raise OpInvalidError(f"an op {op.op!r} has no id")
    handler(answered, op)


def executed_memo(op: Op, max_bytes: int) -> tuple[bytes, bool]:
    """The memo of a step that an app has executed, and whether it is an error."""
    data = bytes(op.data) if isinstance(op.data, msgspec.Raw) else b"null"
    if len(data) <= max_bytes:
        return data_memo(data), False
    message = (
        f"step {step_name(op)!r} returned {len(data)} bytes; at most {max_bytes} are allowed: return "
        "less, for instance a reference to where the data is stored"
    )
    return error_memo(ErrorData(name="StepOutputTooLargeError", message=message)), True


def _step_run(answered: AnsweredCall, op: Op) -> None:
    memo, failed = executed_memo(op, answered.transition.policy.max_step_output_bytes)
    _write(answered, op, memo, failed)


def _step_error(answered: AnsweredCall, op: Op) -> None:
    transition, attempt = answered.transition, answered.attempt
    if _is_function_end(op):
        _function_error(answered, op, no_retry=answered.report.no_retry)
        return
    if answered.report.no_retry or attempt + 1 >= transition.max_attempts:
        _step_failed(answered, op)
    else:
        retry_at = read_retry_after(_text(op, RETRY_AFTER_OPT), transition.now) or answered.report.retry_at
        call = answered.call
        if call.is_discovery and op.parallel_mode:
            # The call has executed several steps together. Each has attempts of its own.
            transition.disable_immediate = True
            call = msgspec.structs.replace(call, step_id=op.id, race=answered.is_race(op))
        transition.retry(call, _error_of(op), attempt=attempt, retry_at=retry_at, name=step_name(op), executed=op)


def _step_failed(answered: AnsweredCall, op: Op) -> None:
    if _is_function_end(op):
        _function_error(answered, op, no_retry=True)
        return
    _write(answered, op, error_memo(_error_of(op)), failed=True)


def _is_function_end(op: Op) -> bool:
    """Whether the op reports the end of the function. A step of that id has a name."""
    return op.id == FUNCTION_END_ID and op.userland is None and not op.display_name


def _function_error(answered: AnsweredCall, op: Op, *, no_retry: bool) -> None:
    """The function raised. Apps report this as an op if others are in the same answer, such as defers."""
    error = _error_of(op)
    answered.transition.fail_attempt(
        answered.call, error, no_retry=no_retry, retry_at=answered.report.retry_at, written=encode_error(error)
    )


def _error_of(op: Op) -> ErrorData:
    return op.error or ErrorData(message="the step failed without a reason")


def _write(answered: AnsweredCall, op: Op, memo: bytes, failed: bool) -> None:
    attempts = answered.attempt + 1
    answered.transition.write(
        op.id, step_name(op), Opcode.STEP_RUN, memo, attempts=attempts, failed=failed, executed=op
    )
    answered.transition.step_ended(answered.is_race(op))
    answered.attempt = 0


def _step_planned(answered: AnsweredCall, op: Op) -> None:
    transition = answered.transition
    if op.id == answered.call.step_id:
        # The app planned the step instead of executing it, so the attempt has no result.
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
            race=answered.is_race(op),
            memos_seen=answered.call.memos_seen,
        )
    )


def _wait(answered: AnsweredCall, op: Op) -> None:
    kind, transition = Opcode(op.op), answered.transition
    command = _READ_WAIT[kind](op, transition)
    transition.wait(Wait(step_id=op.id, op=kind, name=step_name(op), race=answered.is_race(op)))
    transition.commands.append(command)


def _request(answered: AnsweredCall, op: Op) -> None:
    transition, kind, name = answered.transition, Opcode(op.op), step_name(op)
    lost = transition.waits.get(op.id)
    attempt = lost.attempt if lost else 0
    generation = transition.next_generation()
    transition.wait(
        Wait(step_id=op.id, op=kind, name=name, race=answered.is_race(op), generation=generation, attempt=attempt)
    )
    transition.commands.append(MakeRequest(op.id, name, kind, generation, attempt, transition.now, op.opts or {}))


def _step_not_found(answered: AnsweredCall, op: Op) -> None:
    message = (
        f"step {answered.call.name or step_name(op)!r} was planned, but the function did not reach it when called for "
        "it: a function must find the same steps each time it is called with the same memos"
    )
    error = ErrorData(name="StepNotFoundError", message=message)
    answered.gave_up = target_not_found(answered.transition, answered.call, error)


def target_not_found(transition: Transition, call: Call, error: ErrorData) -> bool:
    """Whether the run continues without the step that the call was for.

    If the step was in a race, and the function has seen more memos since it planned the step, another branch may have
    won. Otherwise the function is not deterministic: its run fails with ``error``.
    """
    if call.race and transition.memos > call.memos_seen:
        transition.step_ended(call.race)
        return True
    transition.fail(error)
    return False


def _run_complete(answered: AnsweredCall, op: Op) -> None:
    output = bytes(op.data) if isinstance(op.data, msgspec.Raw) else b"null"
    answered.transition.end(RunStatus.COMPLETED, output)


def _discovery_request(answered: AnsweredCall, op: Op) -> None:
    """Request discovery after the answer.

    A failed step in the answer is retried by a discovery of its own. If the app has finished no step since the call,
    the request alone uses up an attempt.
    """
    transition = answered.transition
    transition.discover_again = transition.discover_again or transition.memos > answered.call.memos_seen


# deferred functions


LAZY = frozenset({Opcode.DEFER_ADD, Opcode.DEFER_ABORT})
"""Ops that accompany other ops, or come alone, and have no effect before the run's end."""


def note_deferred(transition: Transition, op: Op) -> bool:
    """Record deferred functions. Returns whether anything has changed.

    Apps may repeat these ops.
    """
    try:
        return _add_deferred(transition, op) if op.op == Opcode.DEFER_ADD else _abort_deferred(transition, op)
    except OpInvalidError as error:
        transition.commands.append(RefuseDeferred(step_name(op), str(error)))
        return False


def _add_deferred(transition: Transition, op: Op) -> bool:
    policy = transition.policy
    if not op.id:
        raise OpInvalidError(f"an op {op.op!r} has no id")
    if op.id in transition.defers:
        return False
    if len(transition.defers) >= policy.max_deferred:
        raise OpInvalidError(f"a run may defer {policy.max_deferred} functions, and has done so")
    try:
        command = _read_defer(op)
        size = sum(deferred.size for deferred in transition.defers.values()) + len(command.data)
        if size > policy.max_deferred_bytes:
            most = policy.max_deferred_bytes
            raise OpInvalidError(f"all its deferred data has {size} bytes; at most {most} are allowed")
    except OpInvalidError:
        # Mark it accepted, so that the app does not send it again.
        transition.defers[op.id] = Deferred(step_id=op.id, is_abortable=False)
        raise
    transition.defers[op.id] = Deferred(step_id=op.id, size=len(command.data))
    transition.commands.append(command)
    return True


def _abort_deferred(transition: Transition, op: Op) -> bool:
    target = _text(op, "target_hashed_id")
    if not target:
        raise OpInvalidError("the abort op has no target step")
    before = transition.defers.get(target)
    if before is None or not before.is_abortable:
        return False
    transition.defers[target] = msgspec.structs.replace(before, is_abortable=False, size=0)
    transition.commands.append(AbortDeferred(target))
    return True


# options of ops


def _read_sleep(op: Op, transition: Transition) -> Sleep:
    """Read a sleep. The Python SDK sends its end in ``name``, others in ``opts.duration``."""
    return Sleep(op.id, step_name(op), _until(op, _text(op, "duration") or op.name or "0s", transition))


def _read_event_wait(op: Op, transition: Transition) -> AwaitEvent:
    """Read a wait for an event.

    An empty timeout means now: the wait ends at once, without an event.
    """
    event = _text(op, "event") or op.name or ""
    if not event:
        raise OpInvalidError(f"step {step_name(op)!r} waits for an event but names none")
    if len(event) > (longest := transition.policy.max_event_name_length):
        raise OpInvalidError(
            f"step {step_name(op)!r} waits for an event whose name has {len(event)} characters; "
            f"at most {longest} are allowed"
        )
    expression = _text(op, "if") or None
    if expression:
        try:
            missing_field = compile_expression(expression).missing_field
        except ExpressionInvalidError as error:
            raise OpInvalidError(
                f"step {step_name(op)!r} waits for an event with an expression that is not valid: {error}"
            ) from error
        if missing_field:
            raise OpInvalidError(
                f"step {step_name(op)!r} waits for an event with the expression `{expression}`, which {missing_field}"
            )
    timeout = _text(op, "timeout")
    until = _until(op, timeout, transition) if timeout else transition.now
    return AwaitEvent(op.id, step_name(op), event, expression, until)


def _read_signal_wait(op: Op, transition: Transition) -> AwaitSignal:
    signal = _text(op, "signal")
    if not signal:
        raise OpInvalidError(f"step {step_name(op)!r} waits for a signal but names none")
    conflict = _text(op, "conflict") or "fail"
    if conflict not in ("fail", "replace"):
        raise OpInvalidError(f"step {step_name(op)!r} has the conflict mode {conflict!r}; use 'fail' or 'replace'")
    until, question = _long_timeout(op, transition), _read_question(op)
    return AwaitSignal(op.id, step_name(op), signal, conflict == "replace", until, question)


def _read_question(op: Op) -> QuestionInfo | None:
    given = (op.opts or {}).get("question")
    if given is None:
        return None
    try:
        question = msgspec.convert(given, QuestionInfo)
    except msgspec.ValidationError as error:
        raise OpInvalidError(f"step {step_name(op)!r} has a question that cannot be read: {error}") from None
    if (size := len(msgspec.json.encode(question))) > MAX_QUESTION_BYTES:
        raise OpInvalidError(
            f"step {step_name(op)!r} has a question of {size} bytes; at most {MAX_QUESTION_BYTES} are allowed"
        )
    return question


def _read_invoke(op: Op, transition: Transition) -> Invoke:
    function_id = _text(op, "function_id")
    if not function_id:
        raise OpInvalidError(f"step {step_name(op)!r} invokes a function but names none")
    payload = (op.opts or {}).get("payload") or {}
    if not isinstance(payload, dict):
        raise OpInvalidError(f"step {step_name(op)!r} invokes {function_id!r} with a payload that is not an object")
    data = payload.get("data")
    if data is not None and not isinstance(data, dict):
        raise OpInvalidError(f"step {step_name(op)!r} invokes {function_id!r} with data that is not an object")
    return Invoke(op.id, step_name(op), function_id, payload, until=_long_timeout(op, transition))


def _read_defer(op: Op) -> Defer:
    function_id = _text(op, "fn_slug")
    if not function_id:
        raise OpInvalidError("it names no function")
    data = (op.opts or {}).get("input") or {}
    if not isinstance(data, dict):
        raise OpInvalidError("its data is not an object")
    try:
        sessions = merge_sessions((op.opts or {}).get("meta"))
    except ValueError as error:
        raise OpInvalidError(str(error)) from error
    return Defer(op.id, function_id, msgspec.json.encode(data), sessions)


def _long_timeout(op: Op, transition: Transition) -> int:
    timeout = _text(op, "timeout")
    if timeout:
        return _until(op, timeout, transition)
    return transition.now + transition.policy.default_timeout // dt.timedelta(milliseconds=1)


def _until(op: Op, text: str, transition: Transition) -> int:
    at = dt.datetime.fromtimestamp(transition.now / 1000, dt.UTC)
    try:
        until = parse_timestamp(text, at)
    except DurationInvalidError as error:
        raise OpInvalidError(f"step {step_name(op)!r}: {error}") from error
    if until - at > (longest := transition.policy.max_wait):
        raise OpInvalidError(f"step {step_name(op)!r} is to last {text!r}; at most {longest.days} days are allowed")
    # Rounded up: a wait must not end a fraction of a millisecond early.
    return max(transition.now, transition.now + -(-(until - at) // dt.timedelta(milliseconds=1)))


def _text(op: Op, option: str) -> str:
    value = (op.opts or {}).get(option)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OpInvalidError(f"step {step_name(op)!r} has {option!r} as {type(value).__name__}; it must be a string")
    return value.strip()


# the table of ops

_READ_WAIT: dict[Opcode, Callable[[Op, Transition], Sleep | AwaitEvent | AwaitSignal | Invoke]] = {
    Opcode.SLEEP: _read_sleep,
    Opcode.WAIT_FOR_EVENT: _read_event_wait,
    Opcode.WAIT_FOR_SIGNAL: _read_signal_wait,
    Opcode.INVOKE_FUNCTION: _read_invoke,
}

_HANDLERS: dict[str, Callable[[AnsweredCall, Op], None]] = {
    Opcode.STEP: _step_run,
    Opcode.STEP_RUN: _step_run,
    Opcode.STEP_ERROR: _step_error,
    Opcode.STEP_FAILED: _step_failed,
    Opcode.STEP_PLANNED: _step_planned,
    Opcode.STEP_NOT_FOUND: _step_not_found,
    Opcode.SLEEP: _wait,
    Opcode.WAIT_FOR_EVENT: _wait,
    Opcode.WAIT_FOR_SIGNAL: _wait,
    Opcode.INVOKE_FUNCTION: _wait,
    Opcode.AI_GATEWAY: _request,
    Opcode.GATEWAY: _request,
    Opcode.RUN_COMPLETE: _run_complete,
    Opcode.DISCOVERY_REQUEST: _discovery_request,
}

_WITHOUT_STEP = frozenset({Opcode.RUN_COMPLETE, Opcode.DISCOVERY_REQUEST})
"""Ops that concern the run, not a step of it."""

EXECUTED = frozenset({Opcode.STEP, Opcode.STEP_RUN})
"""Ops that report a step which the app has executed, without a decision of the engine."""

REQUESTS = frozenset({Opcode.AI_GATEWAY, Opcode.GATEWAY})
"""Ops for which the engine itself makes a request."""

ASKING = REQUESTS | {Opcode.STEP_PLANNED, *_READ_WAIT}
"""Ops that request something from the engine. Several in one answer mean that the run has parallel branches."""

STARTING = EXECUTED | ASKING
"""Ops that add a step to a run."""
