"""Calls, checkpoints, lines of logs, and the decoding of JSON.

An engine advances a run with a call (spec §4.4). Spec §10.3.1 defines checkpoints. Apps in development send the lines
of ``ctx.logger`` to their engine.

Every error in received JSON raises a ``msgspec.DecodeError``. msgspec raises other exceptions for two kinds of errors,
and does not check strings inside ``msgspec.Raw``.
"""

import datetime as dt
import uuid
from array import array
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from .events import Event
from .limits import MAX_NESTING
from .opcodes import Op

T = TypeVar("T")


class TooDeepError(msgspec.DecodeError):
    """The JSON is nested more deeply than ``MAX_NESTING``, or than Python can decode.

    A retry does not help.
    """

    def __init__(self) -> None:
        super().__init__(f"JSON is nested too deeply: at most {MAX_NESTING} levels are allowed")


class NotUtf8Error(msgspec.DecodeError):
    """The JSON is not encoded in UTF-8."""

    def __init__(self) -> None:
        super().__init__("JSON is malformed: it is not encoded in UTF-8")


_NO_SIGNS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
"""One level down or, as a signed byte, up, by the sign."""

_BODY_NESTING = MAX_NESTING + 10
"""Levels of the objects in which bodies contain events and outputs."""


def check_nesting(body: bytes, most: int = _BODY_NESTING) -> None:
    """Raises ``TooDeepError`` for JSON with more than ``most`` levels.

    The check takes at most half the time of decoding, and almost none if there are few brackets.
    """
    if body.count(b"[") + body.count(b"{") <= most:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Adjacent quotes enclose a string without brackets, or separate two strings. Their removal keeps the outside
    # outside.
    signs = body.translate(None, _NO_SIGNS).replace(b'""', b"")
    if b'"' in signs:
        signs = b"".join(signs.split(b'"')[::2])
    if max(accumulate(array("b", signs.translate(_STEPS))), default=0) > most:
        raise TooDeepError


def decode(decoder: msgspec.json.Decoder[T], body: bytes, max_nesting: int = _BODY_NESTING) -> T:
    """Decode a JSON body.

    Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``, which state the error's position, or
    ``TooDeepError``.
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


_FUNCTION_IDS = uuid.UUID("dc064439-1e31-4590-a2c9-5e6dba6c2b6d")
"""The namespace of ``function_uuid``. It must never change, because apps may store the ids."""


@lru_cache(maxsize=4096)
def function_uuid(function_id: str) -> str:
    """The ``fn_id`` of a call and of its checkpoints: always the same for the function ``<app>-<fn_id>``.

    The protocol requires a UUID; the official Go SDK refuses other ids.
    """
    return str(uuid.uuid5(_FUNCTION_IDS, function_id))


class Stack(msgspec.Struct, kw_only=True, gc=False):
    """The order of a run's finished steps.

    ``stack`` lists their hashed ids in the order in which they finished (spec §5.4).
    """

    stack: list[str] | None = None
    current: int = 0


class CallContext(msgspec.Struct, kw_only=True, gc=False):
    """The context of a call.

    ``fn_id`` is a UUID. ``function_slug`` is an addition to the protocol: the id that the query has as ``fnId``. The
    signature covers the body only, so it binds the call to its function.

    ``also`` is an addition to the protocol: planned steps that the app may execute together with the call's own step,
    and whose ops it reports too. A step that this call omits gets a later call of its own.

    ``parallel_steps`` is an addition too: the number of new steps that the app may execute in this call if it finds
    several at once. Otherwise it plans them, and the engine calls for each.
    """

    run_id: str
    attempt: int = 0
    max_attempts: int | None = None
    fn_id: str = ""
    function_slug: str | None = None
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
    parallel_steps: int = 0


class DeferredState(msgspec.Struct, gc=False):
    """What the engine knows of a function that the run has deferred."""

    abortable: bool = True


class CallRequest(msgspec.Struct, kw_only=True, gc=False):
    """The body of a call.

    ``steps`` maps hashed step ids to memos. They stay encoded until the app's step takes them. ``event`` and ``events``
    are absent if ``use_api`` says that the app must fetch them. ``defers`` has the functions that the run has deferred,
    by hashed id.
    """

    ctx: CallContext
    event: Event | None = None
    events: list[Event] | None = None
    steps: dict[str, msgspec.Raw] | None = None
    defers: dict[str, DeferredState] | None = None
    use_api: bool = False
    version: Any = None


_CALL_NESTING = 2 * MAX_NESTING
"""Nesting: a call contains events and memos, and an event about a run's end contains the run's event."""
decode_call = partial(decode, msgspec.json.Decoder(CallRequest), max_nesting=_CALL_NESTING)
"""Decode a call. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the error's position."""
decode_steps = partial(decode, msgspec.json.Decoder(dict[str, msgspec.Raw]), max_nesting=_CALL_NESTING)
"""Decode the answer to ``GET /v0/runs/{run}/actions``. Raises like ``decode_call``."""
decode_events = partial(decode, msgspec.json.Decoder(list[Event]), max_nesting=_CALL_NESTING)
"""Decode the answer to ``GET /v0/runs/{run}/batch``. Raises like ``decode_call``."""


class CheckpointRequest(msgspec.Struct, kw_only=True, gc=False):
    """``POST {api}/v1/checkpoint/{run}/async``.

    The ids are those of the call's context.
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
"""Decode a checkpoint. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the error's position."""


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
