"""The number of functions that an event passes in the engine, from its request over HTTP to the end of its run."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from durably.engine.http.server import EngineServer
from durably.engine.settings import Durability, EngineSettings

from ..paths import CallPath, Tracer, usual_path
from ..waiting import async_eventually

ROUNDS = 9
MAX_FUNCTIONS = 108
MAX_MODULES = 41
"""Lower them when the path gets shorter: the aim is 100 functions in 22 modules. Counting takes eight functions."""


class BareApp:
    """An app without an SDK: its function returns at once."""

    def __init__(self) -> None:
        self.origin = ""

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        return web.json_response("done", headers={"x-inngest-sdk": "bare:v1", "x-inngest-req-version": "1"})

    def sync(self) -> dict[str, object]:
        url = f"{self.origin}/?fnId=bare-f&stepId=step"
        step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": url}, "retries": {"attempts": 0}}
        function = {"id": "bare-f", "name": "f", "triggers": [{"event": "go"}], "steps": {"step": step}}
        return {"url": self.origin, "appName": "bare", "functions": [function]}


@pytest.fixture
async def app() -> AsyncIterator[BareApp]:
    app, served = BareApp(), web.Application()
    served.router.add_route("*", "/", app.answer)
    runner = web.AppRunner(served, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    app.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield app
    await runner.cleanup()


async def test_an_event_to_a_completed_run_passes_few_functions(app: BareApp, tmp_path: Path) -> None:
    path = await _usual_path(app, tmp_path / "engine.db")
    assert len(path.calls) <= MAX_FUNCTIONS, str(path)
    assert len(path.modules) <= MAX_MODULES, str(path)


async def _usual_path(app: BareApp, database: Path) -> CallPath:
    paths: list[CallPath] = []
    async with AsyncExitStack() as stack:
        tracer = stack.enter_context(Tracer())
        settings = EngineSettings(durability=Durability.OFF)
        server = await stack.enter_async_context(await EngineServer.open(database, settings, port=0))
        http = await stack.enter_async_context(aiohttp.ClientSession(server.origin))
        async with http.post("/fn/register", json=app.sync()) as response:
            assert response.status == 200, await response.text()
        for _ in range(ROUNDS):
            tracer.start()
            async with http.post("/e/key", data=json.dumps({"name": "go"})) as response:
                assert response.status == 200
                (event_id,) = (await response.json())["ids"]
            await _until_completed(database, event_id)
            paths.append(tracer.stop())
    return usual_path(paths)


async def _until_completed(database: Path, event_id: str) -> None:
    """Read the database: a request to the engine would be recorded too."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = "SELECT 1 FROM runs JOIN events ON events.key = event_key WHERE events.id = ? AND status = 'Completed'"
        await async_eventually(lambda: connection.execute(query, (event_id,)).fetchone(), "the run has completed")
