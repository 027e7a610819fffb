"""A call, with which an engine advances a run (spec §4.4), and a checkpoint (spec §10.3.1)."""

from typing import Any

import msgspec

from .decoding import decode
from .events import Event
from .opcodes import Op


class Stack(msgspec.Struct, kw_only=True, gc=False):
    """``stack`` lists the hashed ids of finished steps in the order in which they finished (spec §5.4)."""

    stack: list[str] | None = None
    current: int = 0


class CallContext(msgspec.Struct, kw_only=True, gc=False):
    """``also`` is an addition of ours: planned steps that the app may execute along with the one that it is called for,
    reporting their ops too. Each has a call of its own, which is made later if this one leaves it out."""

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
    """``steps`` maps hashed step ids to memos, left undecoded: the app decodes each when its step takes it.

    ``event`` and ``events`` are absent if ``use_api`` says that the app must fetch them.
    """

    ctx: CallContext
    event: Event | None = None
    events: list[Event] | None = None
    steps: dict[str, msgspec.Raw] | None = None
    use_api: bool = False
    version: Any = None


_decoder = msgspec.json.Decoder(CallRequest)
_steps_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_events_decoder = msgspec.json.Decoder(list[Event])


def decode_call(body: bytes) -> CallRequest:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""
    return decode(_decoder, body)


def decode_steps(body: bytes) -> dict[str, msgspec.Raw]:
    """The answer to ``GET /v0/runs/{run}/actions``. Raises like ``decode_call``."""
    return decode(_steps_decoder, body)


def decode_events(body: bytes) -> list[Event]:
    """The answer to ``GET /v0/runs/{run}/batch``. Raises like ``decode_call``."""
    return decode(_events_decoder, body)


class CheckpointRequest(msgspec.Struct, kw_only=True, gc=False):
    """``POST {api}/v1/checkpoint/{run}/async``. The ids are those that the call carried in its context."""

    run_id: str = ""
    fn_id: str | None = None
    qi_id: str | None = None
    request_id: str | None = None
    generation_id: int | None = None
    request_started_at: int | None = None
    ts: int | None = None
    steps: list[Op] = []


_checkpoint_decoder = msgspec.json.Decoder(CheckpointRequest)


def decode_checkpoint(body: bytes) -> CheckpointRequest:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""
    return _checkpoint_decoder.decode(body)
