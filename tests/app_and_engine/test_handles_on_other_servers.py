"""Handles on another server of the protocol, with the answers of Inngest's dev server, and on one that lacks all."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from durably import Client
from durably.errors import NotSupportedError, RunCancelledError, RunFailedError, TransportError

from ..handle_stories import Functions
from .conftest import listening

RUN_ID, EVENT_ID = "01J0000000ABCDEFGHJKMNPQRS", "01J0000000ABCDEFGHJKMNPQRT"


class OtherServer:
    """``pkg/api`` of github.com/inngest/inngest, as far as handles use it."""

    def __init__(self) -> None:
        self.status, self.output = "Running", b"null"
        self.looks = 0

    def run(self) -> dict[str, object]:
        return {
            "run_id": RUN_ID,
            "run_started_at": "2026-01-01T00:00:00Z",
            "function_id": "5c1c6d0e-6f1f-4f6a-9c3e-2f6b8a9d7e10",
            "function_version": 1,
            "environment_id": "00000000-0000-4000-b000-000000000000",
            "event_id": EVENT_ID,
            "status": self.status,
            "ended_at": None,
            "output": json.loads(self.output),
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        match request.method, request.path.removeprefix("/").split("/"):
            case "POST", ["invoke", _]:
                return web.json_response({"id": EVENT_ID, "status": 200})
            case "GET", ["v1", "runs", run_id]:
                if run_id != RUN_ID:
                    return web.json_response({"error": "Unable to load function run", "status": 500}, status=500)
                self.looks += 1
                if self.looks == 2 and self.status == "Running":
                    self.status, self.output = "Completed", b"[1, 2]"
                return web.json_response({"data": self.run(), "metadata": {"fetched_at": "2026-01-01T00:00:00Z"}})
            case "GET", ["v1", "events", _, "runs"]:
                return web.json_response({"data": [self.run()], "metadata": {"fetched_at": "2026-01-01T00:00:00Z"}})
            case "DELETE", ["v1", "runs", _]:
                self.status = "Cancelled"
                return web.Response()
            case "POST", ["v1", "signals"]:
                if (await request.json())["signal"] == "a":
                    return web.json_response({"data": {"run_id": RUN_ID}, "metadata": {}})
                return web.json_response({"error": "No signal found", "status": 404}, status=404)
        return web.Response(status=404, text="404 page not found")


@pytest.fixture
async def server() -> AsyncIterator[tuple[OtherServer, Functions]]:
    other = OtherServer()
    async with listening(other.handle) as origin:
        yield other, Functions(Client(app_id="shop", is_production=False, engine=origin))


async def test_handles_use_what_another_server_has(server: tuple[OtherServer, Functions]) -> None:
    other, shop = server
    handle = await shop.add.start({"n": 2})
    assert handle.id == EVENT_ID
    assert (await handle.status()).status == "Running"
    assert handle.id == RUN_ID
    assert await handle.result(timeout="60s") == {1, 2}
    assert await asyncio.to_thread(shop.client.run(RUN_ID, shop.add).result_sync) == {1, 2}
    assert await handle.signal("a")
    assert not await handle.signal("b")
    other.status, other.output = "Failed", b'{"name": "ValueError", "message": "no card"}'
    with pytest.raises(RunFailedError, match="no card"):
        await handle.result()
    assert await handle.cancel()
    with pytest.raises(RunCancelledError):
        await handle.result()


async def test_what_another_server_lacks_is_named(server: tuple[OtherServer, Functions]) -> None:
    _, shop = server
    with pytest.raises(NotSupportedError, match="does not deduplicate starts"):
        await shop.add.start({"n": 2}, id="order-42")
    with pytest.raises(NotSupportedError, match="rerun"):
        await shop.client.run(RUN_ID).rerun()
    with pytest.raises(NotSupportedError, match="list runs"):
        await shop.client.runs()


async def test_an_engine_that_does_not_answer() -> None:
    shop = Functions(Client(app_id="shop", is_production=False, engine="http://127.0.0.1:9"))
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
        await shop.add.start({"n": 2}, id="order-42")
    with pytest.raises(TimeoutError):
        await shop.client.run(RUN_ID).result(timeout="100ms")
