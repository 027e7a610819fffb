"""Handles of runs on the engines on SQLite: one story for each engine."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession
from msgspec.structs import replace

from durably import Client, Embedded
from durably.comm import CommHandler
from durably.engine.api.http.server import EngineServer
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind
from durably.testing import TestEngine

from ..handle_stories import (
    Functions,
    start_in_threads,
    tell,
    tell_of_defers,
    tell_of_endpoints,
    tell_of_endpoints_sync,
    tell_of_held_runs,
    tell_sync,
)
from .conftest import App, Gate, listening

KEY, NEW_KEY, EVENT_KEY = f"signkey-prod-{'1a' * 32}", f"signkey-prod-{'2b' * 32}", "an-event-key"
SETTINGS = EngineSettings(backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20), close_grace=dt.timedelta(0))


def embedded(path: Path) -> Functions:
    client = Client(app_id="shop", engine=Embedded(path, settings=SETTINGS), is_production=False)
    shop = Functions(client)
    CommHandler(client=client, framework="test", functions=shop.served)
    return shop


async def leader(stack: AsyncExitStack, path: Path, patch: pytest.MonkeyPatch) -> Functions:
    shop = embedded(path)
    await stack.enter_async_context(shop.client.engine.running())  # type: ignore[union-attr]
    return shop


async def follower(stack: AsyncExitStack, path: Path, patch: pytest.MonkeyPatch) -> Functions:
    await leader(stack, path, patch)
    return await leader(stack, path, patch)


async def over_http(stack: AsyncExitStack, path: Path, patch: pytest.MonkeyPatch) -> Functions:
    server = await stack.enter_async_context(await serve_database(path, SETTINGS, port=0))
    return await serve(stack, server, Client(app_id="shop", is_production=False, engine=server.origin))


async def with_keys(stack: AsyncExitStack, path: Path, patch: pytest.MonkeyPatch) -> Functions:
    """The app has a new key already, the engine only the old one."""
    settings = replace(SETTINGS, server_kind=ServerKind.CLOUD, signing_key=KEY, allow_private_addresses=True)
    server = await stack.enter_async_context(await serve_database(path, settings, port=0, event_keys=[EVENT_KEY]))
    patch.setenv("DURABLY_SIGNING_KEY_FALLBACK", KEY)
    client = Client(app_id="shop", engine=server.origin, signing_key=NEW_KEY, event_key=EVENT_KEY)
    return await serve(stack, server, client)


async def serve(stack: AsyncExitStack, server: EngineServer, client: Client) -> Functions:
    shop = Functions(client)
    app = App(client, server, Gate(server.origin, await stack.enter_async_context(ClientSession())))
    app.url = f"{await stack.enter_async_context(listening(app.handle))}/api/inngest"
    app.handler = CommHandler(
        client=client, framework="test", functions=shop.served, serve_origin=app.url.removesuffix("/api/inngest")
    )
    async with ClientSession() as session, session.put(app.url) as answer:
        assert answer.status == 200, await answer.text()
    return shop


ENGINES = [leader, follower, over_http, with_keys]


@pytest.fixture(params=ENGINES, ids=lambda make: make.__name__)
async def shop(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Functions]:
    async with AsyncExitStack() as stack:
        yield await request.param(stack, tmp_path / "durably.db", monkeypatch)


async def test_async_code_holds_its_runs(shop: Functions) -> None:
    await tell(shop)


async def test_sync_code_holds_its_runs(shop: Functions) -> None:
    await asyncio.to_thread(tell_sync, shop)
    await asyncio.to_thread(start_in_threads, shop)


async def test_a_handle_finds_the_run_that_flow_control_holds_back(shop: Functions) -> None:
    await tell_of_held_runs(shop)


async def test_deferred_functions_run_after_the_run_and_inherit_its_sessions(shop: Functions) -> None:
    await tell_of_defers(shop)


async def test_endpoints_answer_with_results_or_links(shop: Functions) -> None:
    await tell_of_endpoints(shop)
    await asyncio.to_thread(tell_of_endpoints_sync, shop)


@pytest.mark.parametrize("story", [tell, tell_of_defers, tell_of_endpoints, tell_of_held_runs])
async def test_async_code_holds_its_runs_in_a_test(story: Callable[[Functions], object]) -> None:
    shop = Functions(Client(app_id="shop", is_production=False))
    async with TestEngine(shop.client, shop.served):
        await story(shop)  # type: ignore[misc]


def test_sync_code_holds_its_runs_in_a_test() -> None:
    shop = Functions(Client(app_id="shop", is_production=False))
    with TestEngine(shop.client, shop.served).sync():
        tell_sync(shop)
        tell_of_endpoints_sync(shop)
