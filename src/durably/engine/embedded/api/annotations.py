"""Metadata and users' spans from official SDKs: accepted so that the SDKs continue, and stored for display."""

import base64
import contextlib

import msgspec
from aiohttp import web

from durably.engine.embedded.views import TracesView
from durably.protocol.api import MetadataBody, TracesBody

from .bodies import decode_json, read_body
from .responses import ApiError, data_response, json_response
from .state import engine_of

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
