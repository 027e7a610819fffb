"""Reading the options of an op, and refusing those that cannot be carried out."""

import datetime as dt
from typing import Any

import msgspec

from durably.protocol.durations import DurationInvalidError, parse_moment, parse_retry_after
from durably.protocol.limits import DEFAULT_LONG_TIMEOUT, MAX_EVENT_NAME_LENGTH, MAX_WAIT
from durably.protocol.opcodes import RETRY_AFTER_OPT, Op

from .backoff import clip_retry_after
from .errors import OpInvalidError
from .expressions import ExpressionInvalidError, compile_expression


class EventWaitOptions(msgspec.Struct, frozen=True):
    event: str
    expression: str | None
    until: int


class SignalWaitOptions(msgspec.Struct, frozen=True):
    signal: str
    replaces: bool
    until: int


class InvokeOptions(msgspec.Struct, frozen=True):
    """``payload`` is an event without a name: ``data``, and perhaps ``user``, ``v``, ``id``, ``ts``."""

    function_id: str
    payload: dict[str, Any]
    until: int


class DeferOptions(msgspec.Struct, frozen=True):
    """``data`` is the data of the event that starts the function, a JSON object."""

    function_id: str
    data: bytes


def step_name(op: Op) -> str:
    """The step's id as the user wrote it, with the number of its repetition, as far as the app tells."""
    if op.userland:
        return f"{op.userland.id}:{op.userland.index}" if op.userland.index else op.userland.id
    return op.display_name or op.name or op.id


def read_sleep(op: Op, now: int) -> int:
    """When the sleep ends. The Python SDK sends the time in ``name``, others in ``opts.duration``."""
    text = _text(op, "duration") or op.name or "0s"
    return _until(op, text, now)


def read_retry_after(op: Op, now: int) -> int | None:
    """When a step that failed wants to be tried again, if it says so itself."""
    text = _text(op, RETRY_AFTER_OPT)
    moment = dt.datetime.fromtimestamp(now / 1000, dt.UTC)
    wanted = parse_retry_after(text, moment) if text else None
    return None if wanted is None else round(clip_retry_after(wanted, moment).timestamp() * 1000)


def read_event_wait(op: Op, now: int) -> EventWaitOptions:
    """An empty timeout means now: the wait ends at once, without an event."""
    event = _text(op, "event") or op.name or ""
    if not event:
        raise OpInvalidError(f"step {step_name(op)!r} waits for an event but names none")
    if len(event) > MAX_EVENT_NAME_LENGTH:
        raise OpInvalidError(
            f"step {step_name(op)!r} waits for an event whose name has {len(event)} characters; "
            f"at most {MAX_EVENT_NAME_LENGTH} are possible"
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
    return EventWaitOptions(event=event, expression=expression, until=_until(op, timeout, now) if timeout else now)


def read_signal_wait(op: Op, now: int) -> SignalWaitOptions:
    signal = _text(op, "signal")
    if not signal:
        raise OpInvalidError(f"step {step_name(op)!r} waits for a signal but names none")
    conflict = _text(op, "conflict") or "fail"
    if conflict not in ("fail", "replace"):
        raise OpInvalidError(f"step {step_name(op)!r} has the conflict mode {conflict!r}; use 'fail' or 'replace'")
    return SignalWaitOptions(signal=signal, replaces=conflict == "replace", until=_long_timeout(op, now))


def read_invoke(op: Op, now: int) -> InvokeOptions:
    function_id = _text(op, "function_id")
    if not function_id:
        raise OpInvalidError(f"step {step_name(op)!r} invokes a function but names none")
    payload = (op.opts or {}).get("payload") or {}
    if not isinstance(payload, dict):
        raise OpInvalidError(f"step {step_name(op)!r} invokes {function_id!r} with a payload that is no object")
    data = payload.get("data")
    if data is not None and not isinstance(data, dict):
        raise OpInvalidError(f"step {step_name(op)!r} invokes {function_id!r} with data that is no object")
    return InvokeOptions(function_id=function_id, payload=payload, until=_long_timeout(op, now))


def read_defer(op: Op) -> DeferOptions:
    function_id = _text(op, "fn_slug")
    if not function_id:
        raise OpInvalidError("it names no function")
    data = (op.opts or {}).get("input") or {}
    if not isinstance(data, dict):
        raise OpInvalidError("its data is not an object")
    return DeferOptions(function_id=function_id, data=msgspec.json.encode(data))


def read_defer_abort(op: Op) -> str:
    """The hashed id of what was deferred."""
    target = _text(op, "target_hashed_id")
    if not target:
        raise OpInvalidError("it does not say what is to be aborted")
    return target


def _long_timeout(op: Op, now: int) -> int:
    timeout = _text(op, "timeout")
    return _until(op, timeout, now) if timeout else now + DEFAULT_LONG_TIMEOUT // dt.timedelta(milliseconds=1)


def _until(op: Op, text: str, now: int) -> int:
    moment = dt.datetime.fromtimestamp(now / 1000, dt.UTC)
    try:
        until = parse_moment(text, moment)
    except DurationInvalidError as error:
        raise OpInvalidError(f"step {step_name(op)!r}: {error}") from error
    if until - moment > MAX_WAIT:
        raise OpInvalidError(f"step {step_name(op)!r} is to last {text!r}; at most {MAX_WAIT.days} days are possible")
    # Rounded up: a wait must not end a fraction of a millisecond early.
    return max(now, now + -(-(until - moment) // dt.timedelta(milliseconds=1)))


def _text(op: Op, option: str) -> str:
    value = (op.opts or {}).get(option)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OpInvalidError(f"step {step_name(op)!r} has {option!r} as {type(value).__name__}; it must be text")
    return value.strip()
