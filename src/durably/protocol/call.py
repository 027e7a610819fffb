"""Calls, checkpoints, and the decoding of JSON.

An engine advances a run with a call (spec §4.4). Spec §10.3.1 defines checkpoints.

Every fault of received JSON raises a ``msgspec.DecodeError``. msgspec itself raises other exceptions for two faults,
and does not check text inside ``msgspec.Raw``.
"""

from functools import partial
from typing import Any, TypeVar

import msgspec

from .events import Event
from .opcodes import Op

T = TypeVar("T")


class TooDeepError(msgspec.DecodeError):
    """The JSON is nested more deeply than Python can decode.

    Sending it again does not help.
    """

    def __init__(self) -> None:
        super().__init__("JSON is nested too deeply")


class NotUtf8Error(msgspec.DecodeError):
    """The JSON is not encoded in UTF-8."""

    def __init__(self) -> None:
        super().__init__("JSON is malformed: it is not encoded in UTF-8")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a JSON body.

    Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault, or ``TooDeepError``.
    """
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


decode_call = partial(decode, msgspec.json.Decoder(CallRequest))
"""Decode a call. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""
decode_steps = partial(decode, msgspec.json.Decoder(dict[str, msgspec.Raw]))
"""Decode the answer to ``GET /v0/runs/{run}/actions``. Raises like ``decode_call``."""
decode_events = partial(decode, msgspec.json.Decoder(list[Event]))
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
