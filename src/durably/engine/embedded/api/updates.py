"""Changes of runs, as a stream: ``GET /v1/updates``."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from durably.engine.embedded.views import RunUpdate

from .state import engine_of

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
