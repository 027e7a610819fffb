"""Real servers on this machine, and a client of them that may reach them."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from durably.engine.model.requests import OutboundClient

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Records what it is asked, and answers as the test says."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answer: Answer = self._echo
        self.url = ""

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"method": request.method, "path": request.path_qs})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.answer(request)

    def respond(self, **response: Any) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(**response)

        self.answer = answer


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1") -> AsyncIterator[Server]:
    server = Server()
    runner = web.ServerRunner(web.Server(server.handle, access_log=None, handler_cancellation=True), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    server.url = f"http://{host}:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundClient]:
    outbound = OutboundClient(allow_private_addresses=True, timeout=20)
    yield outbound
    await outbound.close()


@pytest.fixture(name="serving")
def _serving() -> Callable[..., contextlib.AbstractAsyncContextManager[Server]]:
    """Starts further servers, on other addresses."""
    return serving
