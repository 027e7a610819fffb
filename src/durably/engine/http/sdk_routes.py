"""Routes for SDKs: signals, checkpoints, metadata and traces, and unsupported ones."""

import base64
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from durably.engine.views import TracesView
from durably.protocol.api import MetadataBody, SignalBody, TracesBody
from durably.protocol.call import CheckpointRequest
from durably.protocol.text import get_logger

from .bodies import decode_json, read_body, read_json
from .responses import ApiError, data_response, json_response
from .state import engine_of


class SignalRequest(msgspec.Struct):
    signal: str
    data: Any = None


_signal_decoder = msgspec.json.Decoder(SignalRequest)


async def send_signal(request: web.Request) -> web.Response:
    """``POST /v1/signals``; 404 where no run waits for the signal."""
    signal = await read_json(request, _signal_decoder)
    if not signal.signal:
        raise ApiError(400, "signal must not be empty")
    run_id = await engine_of(request).signal(signal.signal, signal.data)
    if run_id is None:
        raise ApiError(404, f"no run waits for the signal {signal.signal!r}")
    return data_response(SignalBody(run_id=run_id))


_checkpoint_decoder = msgspec.json.Decoder(CheckpointRequest)


async def checkpoint_call(request: web.Request) -> web.Response:
    """``POST /v1/checkpoint/{run_id}/async``: 409 tells the call to stop, 413 to hand its steps over otherwise."""
    run_id = request.match_info["run_id"]
    await engine_of(request).checkpoint(run_id, await read_json(request, _checkpoint_decoder))
    return data_response({"run_id": run_id})


_JSON = "application/json"


async def add_metadata(request: web.Request) -> web.Response:
    """``POST /v1/runs/{run_id}/metadata``: ``{target, metadata: [{kind, op, values}]}``. ``kept`` is false if the
    run has too much."""
    body = await read_body(request)
    decode_json(body, msgspec.json.Decoder(dict[str, msgspec.Raw]).decode)
    kept = await engine_of(request).add_run_metadata(request.match_info["run_id"], body)
    return data_response({"kept": kept})


async def list_metadata(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}/metadata``."""
    run_id = request.match_info["run_id"]
    found = await engine_of(request).run_metadata(run_id)
    if found is None:
        raise ApiError(404, f"no run has the id {run_id!r}")
    return data_response([MetadataBody(received_at=one.received_at, body=one.body) for one in found])


async def add_traces(request: web.Request) -> web.Response:
    """``POST /v1/traces/userland``: spans in the form of OTLP over HTTP, JSON or Protocol Buffers."""
    await engine_of(request).add_traces(request.content_type, await read_body(request))
    if request.content_type == _JSON:
        return json_response({})
    return web.Response(body=b"", content_type=request.content_type)


async def list_traces(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}/traces``: the exports that name the run."""
    found = await engine_of(request).run_traces(request.match_info["run_id"])
    return data_response([_traces_body(one) for one in found])


def _traces_body(view: TracesView) -> TracesBody:
    body: msgspec.Raw | str = base64.b64encode(view.body).decode()
    if view.content_type == _JSON:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            body = msgspec.json.decode(view.body, type=msgspec.Raw)
    return TracesBody(received_at=view.received_at, content_type=view.content_type, body=body)


_LOG_AGAIN_SECONDS = 600.0

_logger = get_logger("durably.engine.api")

_ENDPOINTS = "durable endpoints: make the endpoint send an event, and do the work in a function"
UNSUPPORTED = {
    "/v0/connect/{path:.*}": "Connect: serve the app's functions over HTTP instead of calling connect()",
    "/v1/realtime/{path:.*}": "realtime (publish, subscribe, streams): send messages to browsers by means of your own",
    "/v1/checkpoint": _ENDPOINTS,
    "/v1/checkpoint/{run_id}/steps": _ENDPOINTS,
    "/v1/http/{path:.*}": _ENDPOINTS,
    "/v2/{path:.*}": "the second version of the platform's API, sandboxes among it",
}
"""Routes, and their features."""


def routes() -> list[web.RouteDef]:
    last_said: dict[str, float] = {}
    return [web.route("*", path, _refusing(feature, last_said)) for path, feature in UNSUPPORTED.items()]


def _refusing(feature: str, last_said: dict[str, float]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        message = f"this engine does not support {feature}"
        now = time.monotonic()
        if now - last_said.get(feature, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            last_said[feature] = now
            _logger.error("an app (%s) needs what is not there: %s", _sdk_of(request), message)
        raise ApiError(501, message, code="not_supported")

    return refuse


def _sdk_of(request: web.Request) -> str:
    sdk = request.headers.get("x-inngest-sdk") or request.headers.get("user-agent") or "unknown SDK"
    return ascii(sdk[:80])
