"""A checkpoint: steps that a call has finished, handed over while it goes on (spec §10.3.1)."""

import msgspec

from .opcodes import Op


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


_decoder = msgspec.json.Decoder(CheckpointRequest)


def decode_checkpoint(body: bytes) -> CheckpointRequest:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault."""
    return _decoder.decode(body)
