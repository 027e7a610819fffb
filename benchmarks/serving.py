"""Durably functions being served, with an engine: in this process, or as a process of its own and over HTTP.

What is measured is written once, as functions of a client, and served either way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import fastapi

import durably
import durably.fast_api

from .children import Child
from .database import DATABASE, wait_settled
from .web import serve_app, sync_app

MakeFunctions = Callable[[durably.Client], Sequence[durably.Function[Any]]]
Settle = Callable[[], Awaitable[None]]
"""Returns once no run is moving."""


@asynccontextmanager
async def in_process(
    directory: Path, make_functions: MakeFunctions, *, log: str | None = None
) -> AsyncIterator[tuple[durably.Client, Settle]]:
    embedded = durably.Embedded(directory / DATABASE, log=log)
    client = durably.Client(app_id="benchmark", is_production=False, engine=embedded)
    durably.fast_api.serve(fastapi.FastAPI(), client, make_functions(client))
    async with embedded.running():
        yield client, lambda: wait_settled(directory)


@asynccontextmanager
async def over_http(
    directory: Path, make_functions: MakeFunctions, *, engine_in: str = "engine", dials: bool = False
) -> AsyncIterator[tuple[durably.Client, Settle]]:
    with Child("benchmarks.engine_process", directory / engine_in) as engine:
        serve_functions = connected if dials else served
        async with serve_functions(engine.ready["origin"], make_functions) as client:
            yield client, lambda: wait_settled(directory / engine_in)


@asynccontextmanager
async def connected(engine_origin: str, make_functions: MakeFunctions) -> AsyncIterator[durably.Client]:
    """An app with these functions, which dials an engine that is there."""
    client = _client(engine_origin)
    connection = durably.connect([(client, make_functions(client))])
    serving = asyncio.create_task(connection.start())
    async with aiohttp.ClientSession(engine_origin) as http:
        while (await http.get("/v1/apps/benchmark/functions")).status != 200:
            await asyncio.sleep(0.01)
    yield client
    await connection.close()
    await serving


@asynccontextmanager
async def served(engine_origin: str, make_functions: MakeFunctions) -> AsyncIterator[durably.Client]:
    """An app with these functions, synced with an engine that is there."""
    client = _client(engine_origin)
    app = fastapi.FastAPI()
    durably.fast_api.serve(app, client, make_functions(client))
    async with serve_app(app) as origin:
        await sync_app(origin)
        yield client


def _client(engine_origin: str) -> durably.Client:
    return durably.Client(
        app_id="benchmark", is_production=False, api_base_url=engine_origin, event_api_base_url=engine_origin
    )
