"""Calls, checkpoints, lines of logs, and the decoding of JSON.

An engine advances a run with a call (spec §4.4). Spec §10.3.1 defines checkpoints. Apps in development hand the lines
of ``ctx.logger`` to their engine.

Every fault of received JSON raises a ``msgspec.DecodeError``. msgspec itself raises other exceptions for two faults,
and does not check text inside ``msgspec.Raw``.
"""

import datetime as dt
from array import array
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from .events import Event
from .limits import MAX_NESTING
from .opcodes import Op

T = TypeVar("T")


class TooDeepError(msgspec.DecodeError):
    """The JSON is nested more deeply than ``MAX_NESTING``, or than Python can decode.

    Sending it again does not help.
    """

    def __init__(self) -> None:
        super().__init__(f"JSON is nested too deeply: at most {MAX_NESTING} levels are possible")


class NotUtf8Error(msgspec.DecodeError):
    """The JSON is not encoded in UTF-8."""

    def __init__(self) -> None:
        super().__init__("JSON is malformed: it is not encoded in UTF-8")


_NO_SIGNS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
"""One level down or, as a signed byte, up, by the sign."""

_BODY_NESTING = MAX_NESTING + 10
"""Bodies have events and outputs in objects of their own."""


def check_nesting(body: bytes, most: int = _BODY_NESTING) -> None:
    """Raises ``TooDeepError`` if JSON is nested more deeply than ``most`` levels.

    The check takes half the time of decoding at most, and next to none if there are few brackets.
    """
    if body.count(b"[") + body.count(b"{") <= most:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Quotes next to each other are those of a string without brackets, or of two strings: what is outside stays
    # outside.
    signs = body.translate(None, _NO_SIGNS).replace(b'""', b"")
    if b'"' in signs:
        signs = b"".join(signs.split(b'"')[::2])
    if any(level > most for level in accumulate(array("b", signs.translate(_STEPS)))):
        raise TooDeepError


def decode(decoder: msgspec.json.Decoder[T], body: bytes, max_nesting: int = _BODY_NESTING) -> T:
    """Decode a JSON body.

    Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault, or ``TooDeepError``.
    """
    check_nesting(body, max_nesting)
    try:
        decoded = decoder.decode(body)
        if not body.isascii():
            body.decode()
        return decoded
    except UnicodeDecodeError:
        raise NotUtf8Error from None
    except RecursionError:
        raise TooDeepError from None


class Stack(msgspec.Struct, kw_only=True, gc=False):
    """The order of a run's finished steps.

    ``stack`` lists their hashed ids in the order in which they finished (spec §5.4).
    """

    stack: list[str] | None = None
    current: int = 0


class CallContext(msgspec.Struct, kw_only=True, gc=False):
    """The context of a call.

    ``also`` is an addition to the protocol: planned steps that the app may execute with the step that it is called for,
    and whose ops it reports too. Each has a call of its own, which is made later if this call leaves it out.
    """

    run_id: str
    attempt: int = 0
    max_attempts: int | None = None
    fn_id: str = ""
    step_id: str = ""
    env: str = ""
    disable_immediate_execution: bool = False
    use_api: bool = False
    qi_id: str | None = None
    request_id: str | None = None
    generation_id: int | None = None
    job_id: str | None = None
    stack: Stack | None = None
    also: list[str] | None = None


class CallRequest(msgspec.Struct, kw_only=True, gc=False):
    """The body of a call.

    ``steps`` maps hashed step ids to memos, left undecoded: the app decodes each when its step takes it.

    ``event`` and ``events`` are absent if ``use_api`` says that the app must fetch them.
    """

    ctx: CallContext
    event: Event | None = None
    events: list[Event] | None = None
    steps: dict[str, msgspec.Raw] | None = None
    use_api: bool = False
    version: Any = None


_CALL_NESTING = 2 * MAX_NESTING
"""A call has events and memos in objects of its own, and an event about a run's end has the run's event."""
decode_call = partial(decode, msgspec.json.Decoder(CallRequest), max_nesting=_CALL_NESTING)
"""Decode a call. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""
decode_steps = partial(decode, msgspec.json.Decoder(dict[str, msgspec.Raw]), max_nesting=_CALL_NESTING)
"""Decode the answer to ``GET /v0/runs/{run}/actions``. Raises like ``decode_call``."""
decode_events = partial(decode, msgspec.json.Decoder(list[Event]), max_nesting=_CALL_NESTING)
"""Decode the answer to ``GET /v0/runs/{run}/batch``. Raises like ``decode_call``."""


class CheckpointRequest(msgspec.Struct, kw_only=True, gc=False):
    """``POST {api}/v1/checkpoint/{run}/async``.

    The ids are those that the call carried in its context.
    """

    run_id: str = ""
    fn_id: str | None = None
    qi_id: str | None = None
    request_id: str | None = None
    generation_id: int | None = None
    request_started_at: int | None = None
    ts: int | None = None
    steps: list[Op] = []


decode_checkpoint = msgspec.json.Decoder(CheckpointRequest).decode
"""Decode a checkpoint. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``ctx.logger``.

    ``level`` is a level's name, such as ``"INFO"``. ``step`` is the step's id as the user wrote it, if its handler
    logged. ``attempt`` counts from 0.
    """

    at: dt.datetime
    level: str
    message: str
    step: str | None = None
    attempt: int | None = None
