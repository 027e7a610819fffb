"""HTTP/1.1 connections to apps: an exchange is one write and one future.

A call is the engine's most frequent work, and a general HTTP client needs four times as much CPU time for it.
Redirects, cookies, proxies and streamed bodies are left out, because calls have none. httptools reads the answers.
"""

import asyncio
import re
import socket
import ssl
import zlib
from base64 import b64encode
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import aiohappyeyeballs
import httptools
import msgspec
from yarl import URL

_IDLE_SECONDS = 1.5
"""Seconds to keep an idle connection.

Servers keep theirs longer (gunicorn 2 s, uvicorn and Node 5 s), so a call rarely uses a connection that its server is
closing.
"""
_RESOLVED_SECONDS = 10.0
"""Seconds for which the addresses of a host are kept."""
_NEXT_ADDRESS_SECONDS = 0.25
"""Seconds until the next address of a host is tried too (RFC 8305)."""
_MAX_HEAD_BYTES = 64 * 1024
"""Bytes of the headers of an answer, and of their trailers."""
_QUICK_BYTES = 1024 * 1024
"""Bytes of the largest compressed answer that is decompressed on the event loop."""
_LARGE_HEAD = f"the headers of the answer have more than {_MAX_HEAD_BYTES} bytes"
_NO_BODY = (204, 304)
_GZIP = zlib.MAX_WBITS | 16
"""zlib's ``wbits`` for the format of gzip."""
_LINE_BREAK = re.compile(r"[\r\n\0]")

_LIVENESS = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPALIVE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 60_000),
)
"""Socket options, if the platform has them.

They detect the loss of a host within a minute, while a call times out after hours. TCP probes the connection after 30 s
of silence, then every 10 s, three times. Data without an acknowledgement fails after 60 s. (macOS calls
``TCP_KEEPIDLE`` ``TCP_KEEPALIVE``.)
"""


class HttpAnswer(msgspec.Struct, frozen=True, gc=False):
    """An answer. ``headers`` has lower-case names, and ``body`` is decompressed."""

    status: int
    headers: dict[str, str]
    body: bytes


class NotConnectedError(Exception):
    """There is no connection, so the request was not sent."""


class ConnectionBrokenError(Exception):
    """The connection broke before the answer was complete, or the answer is not HTTP.

    ``was_kept``: an earlier request has used the connection. ``has_begun``: the head of the answer has arrived.
    """

    def __init__(self, reason: str, *, was_kept: bool, has_begun: bool) -> None:
        super().__init__(reason)
        self.was_kept, self.has_begun = was_kept, has_begun


class AnswerTooLargeError(Exception):
    """The answer's body is larger than allowed. Its text is the limit."""


class _Refused(Exception):
    """The reason why an answer is not read further."""


class HttpConnections:
    """Connections of one event loop, kept between requests. ``connect_timeout`` is in seconds."""

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._idle: dict[tuple[str, str, int], deque[tuple[float, _Connection]]] = {}
        self._resolved: dict[tuple[str, int], tuple[float, asyncio.Task[Any]]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def post(
        self, url: URL, headers: Mapping[str, str], body: bytes, *, timeout: float, max_bytes: int, fresh: bool = False
    ) -> HttpAnswer:
        """Send a request and return the answer, with a body of at most ``max_bytes``.

        ``fresh`` uses a new connection. ``timeout`` is the number of seconds for all of it. Raises
        ``NotConnectedError``, ``ConnectionBrokenError``, ``AnswerTooLargeError``, ``TimeoutError``, and ``ValueError``
        for a header that HTTP does not allow.
        """
        target = _target_of(url)
        head = [target.head]
        for name, value in headers.items():
            if _LINE_BREAK.search(value):
                raise ValueError(f"the header {name} has a line break")
            head.append(f"{name}: {value}\r\n")
        head.append(f"content-length: {len(body)}\r\n\r\n")
        request = "".join(head).encode() + body
        async with asyncio.timeout(timeout):
            connection = (None if fresh else self._take(target.place)) or await self._connect(target)
            try:
                answer = await connection.exchange(request, max_bytes)
            finally:
                if connection.is_reusable():
                    self._keep(target.place, connection)
                else:
                    connection.abort()
            return await _decompress(answer, max_bytes)

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for _, resolving in self._resolved.values():
            resolving.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # The transports close in the next iteration.

    def _take(self, place: tuple[str, str, int]) -> "_Connection | None":
        """The connection that was used last, as it is the least likely to be closed by its server."""
        idle, oldest = self._idle.get(place), self._loop.time() - _IDLE_SECONDS
        while idle:
            since, connection = idle.pop()
            if since > oldest and connection.is_reusable():
                return connection
            connection.abort()
        return None

    def _keep(self, place: tuple[str, str, int], connection: "_Connection") -> None:
        self._idle.setdefault(place, deque()).append((self._loop.time(), connection))
        if self._sweep is None:
            self._sweep = self._loop.call_later(_IDLE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        oldest, self._sweep = self._loop.time() - _IDLE_SECONDS, None
        for place, idle in list(self._idle.items()):
            while idle and idle[0][0] <= oldest:
                idle.popleft()[1].abort()
            if not idle:
                del self._idle[place]
        if self._idle:
            self._sweep = self._loop.call_later(_IDLE_SECONDS, self._close_idle)

    async def _connect(self, target: "_Target") -> "_Connection":
        """Raises ``NotConnectedError``."""
        scheme, host, port = target.place
        try:
            async with asyncio.timeout(self._connect_timeout):
                opened = await aiohappyeyeballs.start_connection(
                    await self._resolve(host, port),
                    happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
                    socket_factory=open_socket,
                )
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self._open, self._loop),
                    sock=opened,
                    ssl=_tls() if scheme == "https" else None,
                    server_hostname=host if scheme == "https" else None,
                )
                return connection
        except TimeoutError:
            raise NotConnectedError(f"no connection within {self._connect_timeout:g} s") from None
        except (OSError, ssl.CertificateError) as error:
            raise NotConnectedError(str(error)) from error

    async def _resolve(self, host: str, port: int) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        """The addresses of a host. Connections that are opened at once share a query."""
        now = self._loop.time()
        until, resolving = self._resolved.get((host, port), (0.0, None))
        if resolving is None or now > until or (resolving.done() and resolving.exception() is not None):
            query = self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            resolving = self._loop.create_task(query)
            self._resolved[host, port] = now + _RESOLVED_SECONDS, resolving
        addresses: Sequence[aiohappyeyeballs.AddrInfoType] = await asyncio.shield(resolving)
        return addresses


class _Connection(asyncio.Protocol):
    """A connection, which has at most one request under way. ``open_connections`` has it while it is open."""

    def __init__(self, open_connections: "set[_Connection]", loop: asyncio.AbstractEventLoop) -> None:
        self._open, self._loop = open_connections, loop
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._is_kept = False
        self._may_be_kept = False

    async def exchange(self, request: bytes, max_bytes: int) -> HttpAnswer:
        self._may_be_kept = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._bytes_before_body = self._header_bytes = self._body_bytes = 0
        self._max_bytes = max_bytes
        self._has_head = self._ends_with_connection = False
        self._answer = self._loop.create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def is_reusable(self) -> bool:
        return self._may_be_kept and self._answer is None and not self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    # asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have another base
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # Nothing was requested.
            self._may_be_kept = False
            self._transport.abort()
            return
        if not self._has_head:
            self._bytes_before_body += len(data)
        try:
            self._parser.feed_data(data)
            if not self._has_head and self._bytes_before_body > _MAX_HEAD_BYTES:
                raise _Refused(_LARGE_HEAD)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Refused) as error:
            reason = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            self._fail(reason or error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._may_be_kept = False
        if self._answer is not None and not self._answer.done():
            if self._has_head and self._ends_with_connection and exc is None:
                self._complete()
            else:
                self._fail(exc or ConnectionResetError("the app closed the connection"))

    # httptools's protocol

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            raise _Refused("the app sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAX_HEAD_BYTES:
            raise _Refused(_LARGE_HEAD)
        self._headers[name.decode("latin-1").lower()] = value.decode(errors="surrogateescape")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            raise _Refused("the app switched to another protocol")
        if status < 200:
            return
        self._has_head = True
        headers = self._headers
        is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._ends_with_connection = not (is_chunked or "content-length" in headers or status in _NO_BODY)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_bytes:
            raise AnswerTooLargeError(self._max_bytes)
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._may_be_kept = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()
            self._complete()
        else:  # an interim answer, such as 103 (Early Hints)
            self._headers = {}

    def _complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._is_kept = True
            self._answer.set_result(HttpAnswer(self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _fail(self, error: BaseException) -> None:
        self._may_be_kept = False
        self._transport.abort()
        if self._answer is not None and not self._answer.done():
            if not isinstance(error, AnswerTooLargeError):
                reason = str(error) or type(error).__name__
                error = ConnectionBrokenError(reason, was_kept=self._is_kept, has_begun=self._has_head)
            self._answer.set_exception(error)


def open_socket(address: aiohappyeyeballs.AddrInfoType) -> socket.socket:
    """A socket for an address of ``getaddrinfo``.

    It detects the loss of the other host.
    """
    opened = socket.socket(*address[:3])
    opened.setblocking(False)
    for name, level, value in _LIVENESS:
        if hasattr(socket, name):
            opened.setsockopt(level, getattr(socket, name), value)
    return opened


class _Target(msgspec.Struct, frozen=True, gc=False):
    """The destination of requests to a URL, and the beginning of their heads."""

    place: tuple[str, str, int]
    head: str


@lru_cache(1024)
def _target_of(url: URL) -> _Target:
    assert url.raw_host is not None
    assert url.port is not None
    head = f"POST {url.raw_path_qs} HTTP/1.1\r\nhost: {url.host_port_subcomponent}\r\n"
    if url.user is not None or url.password is not None:
        credentials = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
        head += f"authorization: Basic {credentials}\r\n"
    return _Target((url.scheme, url.raw_host, url.port), f"{head}accept-encoding: gzip\r\n")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _decompress(answer: HttpAnswer, max_bytes: int) -> HttpAnswer:
    """The answer without gzip. Raises ``AnswerTooLargeError``, and ``ConnectionBrokenError`` for a damaged body."""
    if answer.headers.get("content-encoding", "").strip().lower() != "gzip" or not answer.body:
        return answer
    if len(answer.body) > _QUICK_BYTES:
        body = await asyncio.to_thread(_unzip, answer.body, max_bytes)
    else:
        body = _unzip(answer.body, max_bytes)
    return HttpAnswer(answer.status, answer.headers, body)


def _unzip(body: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        unzipped = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise ConnectionBrokenError(f"the answer is not gzip: {error}", was_kept=False, has_begun=True) from None
    if len(unzipped) > max_bytes:
        raise AnswerTooLargeError(max_bytes)
    if not unpacker.eof:
        raise ConnectionBrokenError("the answer's gzip is cut short", was_kept=False, has_begun=True)
    return unzipped
