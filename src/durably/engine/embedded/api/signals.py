"""Signals: waking the one run that waits for a name."""

from typing import Any

import msgspec
from aiohttp import web

from durably.protocol.api import SignalBody

from .bodies import read_json
from .responses import ApiError, data_response
from .state import engine_of


class SignalRequest(msgspec.Struct):
    signal: str
    data: Any = None


_decoder = msgspec.json.Decoder(SignalRequest)


async def send_signal(request: web.Request) -> web.Response:
    """``POST /v1/signals``; 404 where no run waits for the signal."""
    signal = await read_json(request, _decoder)
    if not signal.signal:
        raise ApiError(400, "signal must not be empty")
    run_id = await engine_of(request).signal(signal.signal, signal.data)
    if run_id is None:
        raise ApiError(404, f"no run waits for the signal {signal.signal!r}")
    return data_response(SignalBody(run_id=run_id))
