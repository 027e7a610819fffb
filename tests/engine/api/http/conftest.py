"""An engine with its API on a free port, and apps served beside it, all in the test's event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI

import durably
import durably.fast_api
from durably.engine.api.http.server import EngineServer
from durably.engine.api.http.syncs import AcceptedSync
from durably.engine.model.runs import Run, RunStatus
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind

SIGNING_KEY = "signkey-test-0123456789abcdef0123456789abcdef"
FALLBACK_KEY = "signkey-test-fedcba9876543210fedcba9876543210"
EVENT_KEY = "event-key-of-tests"


class Harness:
    """``server`` and a session whose paths are relative to its origin."""

    def __init__(self, server: EngineServer, http: aiohttp.ClientSession, syncs: list[AcceptedSync]) -> None:
        self.server, self.http, self.syncs = server, http, syncs
        self.engine = server.engine

    async def json(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.http.request(method, path, **options) as response:
            return response.status, await response.json()

    async def send(self, name: str, data: dict[str, Any] | None = None) -> str:
        status, body = await self.json("POST", "/e/any", json={"name": name, "data": data or {}})
        assert status == 200, body
        return str(body["ids"][0])

    async def run_of(self, event_id: str) -> Run:
        [run] = await self.engine.event_runs(event_id)
        return run

    async def until(self, run_id: str, is_so: Callable[[Run], bool]) -> Run:
        """The run, once it is so: looked at again whenever something happens to a run."""
        with self.engine.watch() as updates:
            while True:
                run = await self.engine.get_run(run_id)
                assert run is not None
                if is_so(run):
                    return run
                await anext(updates)

    async def ended(self, run_id: str) -> Run:
        return await self.until(run_id, lambda run: run.status not in (RunStatus.SCHEDULED, RunStatus.RUNNING))


OpenServer = Callable[..., Awaitable[Harness]]
ServeFunctions = Callable[[durably.Client, Sequence[Any]], Awaitable[str]]


@pytest.fixture
async def open_server(tmp_path: Path) -> AsyncIterator[OpenServer]:
    async with AsyncExitStack() as stack:

        async def open_(settings: EngineSettings | None = None, event_keys: Sequence[str] = ()) -> Harness:
            syncs: list[AcceptedSync] = []
            server = await serve_database(
                tmp_path / "engine.db",
                settings or EngineSettings(durability=Durability.NORMAL),
                port=0,
                event_keys=event_keys,
                on_sync=syncs.append,
            )
            await stack.enter_async_context(server)
            http = await stack.enter_async_context(aiohttp.ClientSession(server.origin))
            return Harness(server, http, syncs)

        yield open_


@pytest.fixture
async def dev(open_server: OpenServer) -> Harness:
    return await open_server()


@pytest.fixture
async def cloud(open_server: OpenServer) -> Harness:
    settings = EngineSettings(
        server_kind=ServerKind.CLOUD,
        signing_key=SIGNING_KEY,
        signing_key_fallback=FALLBACK_KEY,
        durability=Durability.NORMAL,
    )
    return await open_server(settings, [EVENT_KEY, "another-event-key"])


def client_of(harness: Harness, **options: Any) -> durably.Client:
    """A client of an app that works with the harness's engine, in dev mode unless ``options`` say otherwise."""
    origin = harness.server.origin
    settings = {"is_production": False, "api_base_url": origin, "event_api_base_url": origin}
    return durably.Client(app_id="shop", **(settings | options))


@pytest.fixture
async def serve_functions() -> AsyncIterator[ServeFunctions]:
    """Serves functions with FastAPI on a free port; answers with their URL."""
    servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    async def serve(client: durably.Client, functions: Sequence[Any]) -> str:
        app = FastAPI()
        durably.fast_api.serve(app, client, list(functions))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        servers.append((server, asyncio.create_task(server.serve(sockets=[listener]))))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/api/inngest"

    yield serve
    for server, task in servers:
        server.should_exit = True
        await task
