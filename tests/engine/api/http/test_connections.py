"""Slow clients, too many clients, and no free descriptors: requests in time are answered."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from durably.engine.api.http import requests
from durably.engine.api.http.connections import CONNECTIONS, ConnectionLimits
from durably.engine.api.http.server import listen, serve_api

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE = 60


class Served:
    """An application with the engine's limits, and clients that send bytes as they please."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self.port, self._stack = port, stack
        self.may_answer = asyncio.Event()

    async def connect(self, *sent: bytes) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**26)
        self._stack.callback(writer.close)
        for data in sent:
            writer.write(data)
        return reader, writer

    async def let_head_timeout_pass(self) -> None:
        """Wait until the server has timed out a request whose head is not complete."""
        reader, _ = await self.connect(GET[:-4])
        assert await status_of(reader) == 408

    async def quick(self) -> Stream:
        """A connection on which a request was answered."""
        reader, writer = await self.connect(GET)
        assert await status_of(reader) == 200
        return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, after reading all of it."""
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        return int(head.split()[1])


async def trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send a byte now and then, until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        for byte in data * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)


Serve = Callable[[ConnectionLimits], Awaitable[Served]]


def _counted(handle: Handler) -> Handler:
    """The handler, between the begin and the end of its connection's request, as each endpoint of the API."""

    async def answer(request: web.Request) -> web.StreamResponse:
        connection = request.app[CONNECTIONS].begin_request(request)
        try:
            return await handle(request)
        finally:
            if connection is not None:
                connection.end_request()

    return answer


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def serve_(limits: ConnectionLimits) -> Served:
            listener = listen("127.0.0.1", 0)
            served = Served(listener.getsockname()[1], stack)

            async def quick(request: web.Request) -> web.Response:
                return web.Response(text="quick")

            async def slow(request: web.Request) -> web.Response:
                await served.may_answer.wait()
                return web.Response(body=bytes(2**25))

            async def echo(request: web.Request) -> web.Response:
                try:
                    return web.Response(body=await requests.read_body(request))
                except requests.ApiError as error:
                    return web.Response(status=error.status)

            api = web.Application()
            routes = [web.get("/quick", _counted(quick)), web.get("/slow", _counted(slow))]
            api.add_routes([*routes, web.post("/echo", _counted(echo))])
            runner, connections = await serve_api(api, listener, limits, shutdown_timeout=0.1)
            stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(connections.close)
            return served

        yield serve_


@pytest.mark.parametrize("requests_before", [0, 1])
async def test_a_head_that_trickles_is_given_up(serve: Serve, requests_before: int) -> None:
    served = await serve(ConnectionLimits(head_timeout=0.2))
    reader, writer = await (served.quick() if requests_before else served.connect())
    trickling = asyncio.create_task(trickle(writer, GET[:-4]))
    with contextlib.suppress(ConnectionResetError):  # of a byte that was sent after the end
        assert await status_of(reader) == 408
        assert await reader.read() == b""
    trickling.cancel()


async def test_too_slow_client_gets_408(serve: Serve) -> None:
    served = await serve(ConnectionLimits(head_timeout=0.2))
    reader, _ = await served.connect(GET[:-4])
    assert await status_of(reader) == 408
    assert await reader.read() == b""


async def test_an_idle_connection_is_closed_in_the_end(serve: Serve) -> None:
    served = await serve(ConnectionLimits(keep_alive=0.2))
    reader, _ = await served.quick()
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_a_body_that_trickles_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_GRACE_SECONDS", 0.2)
    served = await serve(ConnectionLimits())
    reader, writer = await served.connect(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n")
    trickling = asyncio.create_task(trickle(writer, b"x"))
    assert await status_of(reader) == 408
    trickling.cancel()


async def test_a_body_that_keeps_coming_may_take_long(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(requests, "_LEAST_BYTES_PER_SECOND", 1000)
    served = await serve(ConnectionLimits(head_timeout=0.2, keep_alive=0.2))
    reader, writer = await served.connect(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000\r\n\r\n")
    for _ in range(6):
        writer.write(b"x" * 1000)
        await asyncio.sleep(0.15)
    assert await status_of(reader) == 200


async def test_a_body_that_says_it_is_too_large_is_not_read(serve: Serve) -> None:
    served = await serve(ConnectionLimits())
    reader, _ = await served.connect(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"x"
    )
    assert await status_of(reader) == 413


async def test_an_answer_may_take_long_to_make_and_to_send(serve: Serve) -> None:
    limits = ConnectionLimits(head_timeout=0.1, keep_alive=0.1, write_timeout=1.0)
    served = await serve(limits)
    reader, _ = await served.connect(GET.replace(b"quick", b"slow"))
    await served.let_head_timeout_pass()
    served.may_answer.set()
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(16):  # Slower than all limits together, and steadily.
            assert await reader.readexactly(2**21) == bytes(2**21)
            await asyncio.sleep(0.1)


async def test_unread_answer_closes_the_connection(serve: Serve) -> None:
    served = await serve(ConnectionLimits(head_timeout=0.1, keep_alive=0.1, write_timeout=0.1, max_connections=1))
    served.may_answer.set()
    _, writer = await served.connect(GET.replace(b"quick", b"slow"))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await served.quick()


async def test_at_the_limit_slow_clients_make_room_in_time(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = await serve(ConnectionLimits(max_connections=3, head_timeout=0.3))
    slow = [await served.connect(b"GET /qui") for _ in range(10)]
    await asyncio.gather(*(served.quick() for _ in range(5)))
    assert slow
    lines = [record for record in caplog.records if "new connections wait" in record.getMessage()]
    assert len(lines) == 1


async def test_at_the_limit_idle_connections_make_room_at_once(serve: Serve) -> None:
    served = await serve(ConnectionLimits(max_connections=3, keep_alive=3600))
    idle = [await served.quick() for _ in range(10)]
    assert idle[0][0].at_eof() or await asyncio.wait_for(idle[0][0].read(), PATIENCE) == b""
    reader, writer = idle[-1]
    writer.write(GET)
    assert await status_of(reader) == 200


async def test_requests_under_way_are_not_given_up_for_others(serve: Serve) -> None:
    served = await serve(ConnectionLimits(max_connections=2, head_timeout=0.1))
    under_way = [await served.connect(GET.replace(b"quick", b"slow")) for _ in range(2)]
    waiting = asyncio.create_task(served.quick())
    await asyncio.sleep(0.4)
    assert not waiting.done()
    served.may_answer.set()
    await waiting
    for reader, _ in under_way:
        assert await status_of(reader) == 200


def test_the_limit_leaves_descriptors_for_the_rest() -> None:
    assert ConnectionLimits(max_connections=10).effective_max() == 10
    assert ConnectionLimits(max_connections=10**9).effective_max() < 10**9


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_descriptors_the_log_stays_short_and_clients_are_answered_later(tmp_path: Path, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("few_descriptors.py")), str(tmp_path / "engine.db"), loop],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 3, done.stderr[:2000]
    assert "cannot accept connections (Too many open files)" in lines[0]
