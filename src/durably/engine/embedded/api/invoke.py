"""Starting a run of one function directly, without an event that triggers it."""

from typing import Any

import msgspec
from aiohttp import web

from durably.protocol.api import InvokeBody

from .bodies import read_json
from .responses import json_response
from .state import engine_of


class InvokeRequest(msgspec.Struct):
    """The event that the function gets, less its name."""

    data: dict[str, Any] | None = None
    user: Any = None
    v: str | None = None


_decoder = msgspec.json.Decoder(InvokeRequest)


async def invoke_function(request: web.Request) -> web.Response:
    """``POST /invoke/{function_id}``. Answers once the run is stored, not when it ends."""
    body = await read_json(request, _decoder)
    receipt = await engine_of(request).invoke(
        request.match_info["function_id"], data=body.data or {}, user=body.user, v=body.v
    )
    return json_response(InvokeBody(id=receipt.event_id, run_id=receipt.run_id))
