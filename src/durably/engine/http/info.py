"""The engine's state for supervisors and SDKs, and updates of runs as a stream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import msgspec
from aiohttp import web

from durably.engine.core.errors import EngineError
from durably.engine.views import RunUpdate

from .functions import without_credentials
from .responses import error_response, json_response
from .state import engine_of

READY_SECONDS = 5.0


async def get_health(request: web.Request) -> web.Response:
    """``GET /health``: the process answers. A supervisor restarts one that does not."""
    return json_response({"status": 200, "message": "OK"})


async def get_readiness(request: web.Request) -> web.Response:
    """``GET /ready``: the engine takes events and calls apps; 503 with the reason if it does not.

    The writer's thread checks that the database still belongs to this engine.
    """
    try:
        async with asyncio.timeout(READY_SECONDS):
            await engine_of(request).verify()
    except TimeoutError:
        return error_response(503, f"the database has not answered within {READY_SECONDS:.0f} s")
    except EngineError as error:
        return error_response(503, error.message)
    return json_response({"status": 200, "message": "OK"})


async def get_dev_info(request: web.Request) -> web.Response:
    """``GET /dev``, in dev mode only: its existence tells official SDKs that a dev engine listens here."""
    engine = engine_of(request)
    functions = [
        without_credentials(fn) for app in await engine.list_apps() for fn in await engine.list_functions(app.id) or ()
    ]
    return json_response(
        {
            "version": version("durably"),
            "authed": False,
            "functions": functions,
            "handlers": [],
            "isSingleNodeService": True,
            "isMissingSigningKey": False,
            "isMissingEventKeys": False,
            "features": {},
        }
    )


_KEEP_ALIVE_SECONDS = 15.0
"""Seconds of silence before an empty line is written. It shows the client that the engine is alive, and shows the
engine if the client has gone."""


async def stream_updates(request: web.Request) -> web.StreamResponse:
    """``GET /v1/updates[?function_id=…]``: a ``RunUpdate`` a line, from now on, until the engine stops."""
    response = web.StreamResponse(headers={"content-type": "application/x-ndjson", "cache-control": "no-store"})
    with engine_of(request).watch() as updates, contextlib.suppress(ConnectionResetError):  # The client has gone.
        await response.prepare(request)
        await _write_updates(response, updates, request.query.get("function_id"))
        await response.write_eof()
    return response


async def _write_updates(
    response: web.StreamResponse, updates: AsyncIterator[RunUpdate], function_id: str | None
) -> None:
    await response.write(b"\n")
    while True:
        try:
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                update = await anext(updates)
        except TimeoutError:
            await response.write(b"\n")
        except StopAsyncIteration:
            return
        else:
            if function_id in (None, "", update.function_id):
                await response.write(msgspec.json.encode(update) + b"\n")
