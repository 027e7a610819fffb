"""Exchanges with apps over HTTP/1.1: every form of an answer, and connections that are kept or not."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from durably.engine.model.http_connections import (
    AnswerTooLargeError,
    ConnectionBrokenError,
    HttpAnswer,
    HttpConnections,
    NotConnectedError,
)

MAX_BYTES = 1000
OK = b"HTTP/1.1 200 OK\r\n"
FINE = OK + b"content-length: 4\r\n\r\nfine"
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on either event loop."""
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 20))


class Server:
    """Answers requests with the next bytes, and closes the connection at ``None``."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[int, bytes]] = []  # with the number of the connection
        self.was_called = asyncio.Event()
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append((number, head + await reader.readexactly(length)))
                self.was_called.set()
                writer.write(self.answers.pop(0) or b"")
                if self.answers and self.answers[0] is None:
                    del self.answers[0]
                    break
        except asyncio.IncompleteReadError:  # closed by the client
            pass
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[..., Coroutine[Any, Any, HttpAnswer]]]:
        """Yields a function that sends a request."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api?step=a%20b")
        connections = HttpConnections(connect_timeout=5)

        async def post(*, fresh: bool = False, **headers: str) -> HttpAnswer:
            return await connections.post(url, headers, b"{}", timeout=5, max_bytes=MAX_BYTES, fresh=fresh)

        async with server:
            yield post
            await connections.close()


ANSWERS: dict[str, tuple[bytes, bytes, bool]] = {
    "with a length": (FINE, b"fine", True),
    "chunked": (
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nfi\r\n2;a=b\r\nne\r\n0\r\nx-end: 1\r\n\r\n",
        b"fine",
        True,
    ),
    "until the end": (OK + b"\r\nfine", b"fine", False),
    "of HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nfine", b"fine", False),
    "the last one": (OK + b"connection: close\r\ncontent-length: 4\r\n\r\nfine", b"fine", False),
    "without content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "empty": (OK + b"content-length: 0\r\n\r\n", b"", True),
    "after an early hint": (b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + FINE, b"fine", True),
    "compressed": (
        OK
        + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(gzip.compress(b"fine"))
        + gzip.compress(b"fine"),
        b"fine",
        True,
    ),
    "of two answers": (FINE + FINE, b"fine", False),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_is_read(form: str, run: Run) -> None:
    """The connection is kept if the answer allows it."""
    answer, body, is_kept = ANSWERS[form]
    server = Server(answer, *([] if is_kept else [None]), FINE)

    async def check() -> None:
        async with server.running() as post:
            assert (await post(x_a="b")).body == body
            assert (await post()).body == b"fine"
        assert [number for number, _ in server.requests] == [1, 1 if is_kept else 2]
        assert server.requests[0][1].startswith(b"POST /api?step=a%20b HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\nx_a: b\r\n" in server.requests[0][1]

    run(check())


BROKEN: dict[str, tuple[bytes, type[Exception], str]] = {
    "nothing": (b"", ConnectionBrokenError, "closed the connection"),
    "half": (OK + b"content-length: 5\r\n\r\nfine", ConnectionBrokenError, "closed the connection"),
    "not HTTP": (b"SSH-2.0\r\n\r\n", ConnectionBrokenError, "HTTP"),
    "a large head": (OK + b"a: " + b"x" * 100_000, ConnectionBrokenError, "headers of the answer"),
    "many headers": (OK + b"a: b\r\n" * 50_000 + b"\r\n", ConnectionBrokenError, "headers of the answer"),
    "not gzip": (OK + b"content-encoding: gzip\r\n\r\nfine", ConnectionBrokenError, "not gzip"),
    "a switch": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        ConnectionBrokenError,
        "another protocol",
    ),
    "too much": (OK + b"content-length: 1001\r\n\r\n" + b"x" * 1001, AnswerTooLargeError, "1000"),
    "a bomb": (
        OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 100_000),
        AnswerTooLargeError,
        "1000",
    ),
}


@pytest.mark.parametrize("form", BROKEN)
def test_a_bad_answer_is_an_error(form: str, run: Run) -> None:
    answer, error, reason = BROKEN[form]
    server = Server(answer, None, FINE)

    async def check() -> None:
        async with server.running() as post:
            with pytest.raises(error, match=reason):
                await post()
            assert (await post()).body == b"fine"
        assert [number for number, _ in server.requests] == [1, 2]

    run(check())


def test_a_kept_connection_that_was_closed_is_named_so(run: Run) -> None:
    """A caller may then try again, as the app has probably not received the request."""
    server = Server(FINE, b"", None, FINE, FINE)

    async def check() -> None:
        async with server.running() as post:
            await post()
            with pytest.raises(ConnectionBrokenError) as broken:
                await post()
            assert (broken.value.was_kept, broken.value.has_begun) == (True, False)
            await post(fresh=True)
            await post(fresh=True)
        assert [number for number, _ in server.requests] == [1, 1, 2, 3]

    run(check())


def test_a_cancelled_request_leaves_no_connection(run: Run) -> None:
    server = Server(OK, FINE)

    async def check() -> None:
        async with server.running() as post:
            request = asyncio.create_task(post())
            await server.was_called.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert (await post()).body == b"fine"
        assert [number for number, _ in server.requests] == [1, 2]

    run(check())


def test_a_header_cannot_add_another(run: Run) -> None:
    async def check() -> None:
        async with Server().running() as post:
            with pytest.raises(ValueError, match="line break"):
                await post(a="b\r\nc: d")

    run(check())


def test_there_is_no_connection(run: Run) -> None:
    """The host refuses it, has no address, or does not agree on TLS."""

    async def check() -> None:
        async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            connections = HttpConnections(connect_timeout=5)
            for url in ("http://127.0.0.1:1/", "http://host.invalid/", f"https://127.0.0.1:{port}/"):
                with pytest.raises(NotConnectedError):
                    await connections.post(URL(url), {}, b"", timeout=5, max_bytes=MAX_BYTES)
            await connections.close()

    run(check())
