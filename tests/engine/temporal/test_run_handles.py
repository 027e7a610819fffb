"""Handles of runs on Temporal: the stories of the engine on SQLite, in process and over HTTP."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientSession

from durably import Client, TemporalEngine
from durably.comm import CommHandler
from durably.engine.model.settings import EngineSettings

from ...app_and_engine.conftest import App, Gate, listening
from ...conformance.temporal_engine import open_engine
from ...handle_stories import (
    Functions,
    start_in_threads,
    tell,
    tell_of_defers,
    tell_of_endpoints,
    tell_of_endpoints_sync,
    tell_sync,
)
from ...temporal.dev_server import DevServer

_numbers = itertools.count()


def app_id() -> str:
    """A new one, because tests share a server."""
    return f"handles-{os.getpid()}-{next(_numbers)}"


async def in_process(stack: AsyncExitStack, address: str) -> Functions:
    engine = TemporalEngine(address, settings=EngineSettings())
    shop = Functions(Client(app_id=app_id(), engine=engine, is_production=False))
    CommHandler(client=shop.client, framework="test", functions=shop.served)
    await stack.enter_async_context(engine.running())
    return shop


async def over_http(stack: AsyncExitStack, address: str) -> Functions:
    server = await stack.enter_async_context(await open_engine(address))
    shop = Functions(Client(app_id=app_id(), is_production=False, engine=server.origin))
    app = App(shop.client, server, Gate(server.origin, await stack.enter_async_context(ClientSession())))
    app.url = f"{await stack.enter_async_context(listening(app.handle))}/api/inngest"
    app.serve(*shop.served)
    async with ClientSession() as session, session.put(app.url) as answer:
        assert answer.status == 200, await answer.text()
    return shop


@pytest.fixture(params=[in_process, over_http], ids=lambda make: make.__name__)
async def shop(request: pytest.FixtureRequest, server: DevServer) -> AsyncIterator[Functions]:
    async with AsyncExitStack() as stack:
        yield await request.param(stack, server.address)


async def test_async_code_holds_its_runs(shop: Functions) -> None:
    await tell(shop)


async def test_deferred_functions_run_after_the_run_and_inherit_its_sessions(shop: Functions) -> None:
    await tell_of_defers(shop)


async def test_endpoints_answer_with_results_or_links(shop: Functions) -> None:
    await tell_of_endpoints(shop)
    await asyncio.to_thread(tell_of_endpoints_sync, shop)


async def test_sync_code_holds_its_runs(shop: Functions) -> None:
    await asyncio.to_thread(tell_sync, shop)
    await asyncio.to_thread(start_in_threads, shop)


async def test_a_handle_finds_the_run_that_a_debounce_holds_back(shop: Functions) -> None:
    handle = await shop.last.start({"n": 2}, id="last")
    held = handle.id
    assert (await handle.status()).status == "Scheduled"
    assert (await shop.last.start({"n": 3}, id="last")).id == held
    assert await handle.result() == 2
    assert handle.id != held
