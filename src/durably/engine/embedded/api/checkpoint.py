"""Checkpoints: steps that a running call has finished, stored while it goes on (spec §10.3)."""

import msgspec
from aiohttp import web

from durably.protocol.checkpoint import CheckpointRequest

from .bodies import read_json
from .responses import data_response
from .state import engine_of

_decoder = msgspec.json.Decoder(CheckpointRequest)


async def checkpoint_call(request: web.Request) -> web.Response:
    """``POST /v1/checkpoint/{run_id}/async``: 409 tells the call to stop, 413 to hand its steps over otherwise."""
    run_id = request.match_info["run_id"]
    await engine_of(request).checkpoint(run_id, await read_json(request, _decoder))
    return data_response({"run_id": run_id})
