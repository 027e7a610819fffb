"""Apps on each kind of engine, as its users have them."""

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from durably import Client, Embedded, Function, TemporalEngine
from durably.comm import CommHandler, CommRequest
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.testing import TestEngine

SETTINGS = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    unreached_backoff=lambda failures, jitter: dt.timedelta(milliseconds=20),
    close_grace=dt.timedelta(milliseconds=100),
)
MakeFunctions = Callable[[Client], Sequence[Function[Any]]]


@asynccontextmanager
async def embedded(path: Path, make: MakeFunctions, address: str | None) -> AsyncIterator[Client]:
    engine = Embedded(path / "engine.db", settings=SETTINGS)
    client = Client(app_id="desk", engine=engine, is_production=False)
    CommHandler(client=client, framework="test", functions=make(client))
    async with engine.running():
        yield client


@asynccontextmanager
async def over_http(path: Path, make: MakeFunctions, address: str | None) -> AsyncIterator[Client]:
    async with await serve_database(path / "engine.db", SETTINGS, port=0) as server:
        client = Client(
            app_id="desk", is_production=False, api_base_url=server.origin, event_api_base_url=server.origin
        )
        async with serving(client, make(client)) as url:
            async with ClientSession() as session, session.put(url) as response:
                assert response.status == 200, await response.text()
            yield client


@asynccontextmanager
async def serving(client: Client, functions: Sequence[Function[Any]], port: int = 0) -> AsyncIterator[str]:
    """Serve functions over HTTP, at the URL."""
    handler = CommHandler(client=client, framework="test", functions=functions)

    async def handle(request: web.Request) -> web.StreamResponse:
        comm_request = CommRequest(
            body=await request.read(),
            headers=dict(request.headers),
            query_params=dict(request.query),
            raw_request=request,
            request_url=str(request.url),
        )
        response = await handler.handle(request.method, comm_request)
        return web.Response(status=response.status_code, body=response.body, headers=response.headers)

    application = web.Application()
    application.router.add_route("*", "/api/inngest", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/api/inngest"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def in_test(path: Path, make: MakeFunctions, address: str | None) -> AsyncIterator[Client]:
    client = Client(app_id="desk", is_production=False)
    async with TestEngine(client, make(client)):
        yield client


@asynccontextmanager
async def on_temporal(path: Path, make: MakeFunctions, address: str | None) -> AsyncIterator[Client]:
    assert address is not None
    engine = TemporalEngine(address)
    client = Client(app_id=f"desk-{path.name}", engine=engine, is_production=False)
    CommHandler(client=client, framework="test", functions=make(client))
    async with engine.running():
        yield client


ENGINES = {"embedded": embedded, "http": over_http, "test": in_test, "temporal": on_temporal}
