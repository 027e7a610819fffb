"""Connections to the HTTP API: their number, time limits, and the file limit."""

import asyncio
import contextlib
import socket
import ssl
import sys
from typing import cast

import msgspec
from aiohttp import web

from .acceptor import Acceptor
from .requests import SERVER_LOGGER

_SURE_SECONDS = 1.0
"""Seconds for a new connection's first request, before the connection may be closed for others."""
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of connections.

    ``max_connections`` is at most half of the file descriptors that the process may have open.

    The other limits are seconds: ``head_timeout`` from the connection, or the first byte of a further request, to the
    end of the head; ``keep_alive`` between two requests; ``write_timeout`` while the client reads no byte of an answer.
    """

    max_connections: int = 1000
    head_timeout: float = 10.0
    keep_alive: float = 75.0
    write_timeout: float = 60.0

    def effective_max(self) -> int:
        """The maximum number of connections in this process."""
        return min(self.max_connections, max(_descriptor_limit() // 2, 1))


def _descriptor_limit() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class Connections:
    """Serves a listening socket.

    The application has it at ``CONNECTIONS`` before it is started.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._max = limits.effective_max()
        self._open: dict[asyncio.BaseProtocol, _Connection] = {}
        self.waiting: dict[_Connection, None] = {}
        """Connections without a request under way, the longest idle first."""
        self.may_have_room = asyncio.Event()
        self._acceptor: Acceptor | None = None
        self._checking: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket, server: web.Server, tls: ssl.SSLContext | None = None) -> None:
        """Start accepting, with TLS on request.

        Logs a line if the operating system allows fewer connections than configured.
        """
        if self._max < self.limits.max_connections:
            SERVER_LOGGER.info(
                "at most %d connections at a time, half of the files that the process may have open (ulimit -n)",
                self._max,
            )
        self._acceptor = Acceptor(
            listener,
            lambda: _Connection(self, server()),
            name="the engine",
            logger=SERVER_LOGGER,
            has_room=lambda begun: len(self._open) + begun < self._max,
            make_room=self._make_room,
            may_have_room=self.may_have_room,
            tls=tls,
            handshake_timeout=self.limits.head_timeout,
        )
        self._checking = asyncio.get_running_loop().create_task(self._check_all())

    async def close(self) -> None:
        """Stop accepting. Open connections stay."""
        if self._acceptor is not None:
            await self._acceptor.close()
        if self._checking is not None:
            self._checking.cancel()

    def begin_request(self, request: web.Request) -> "_Connection | None":
        """The connection of a request, which now has a request under way.

        ``None`` if the client has disconnected.
        """
        connection = self._open.get(request.protocol)
        if connection is not None:
            self.waiting.pop(connection, None)
        return connection

    # for connections

    def opened(self, connection: "_Connection") -> None:
        self._open[connection.inner] = connection
        self.waiting[connection] = None

    def closed(self, connection: "_Connection") -> None:
        self._open.pop(connection.inner, None)
        self.waiting.pop(connection, None)
        self.may_have_room.set()

    def _make_room(self) -> None:
        """Close the connection that has been idle longest.

        New connections get time for their first request.
        """
        now = asyncio.get_running_loop().time()
        for connection in self.waiting:
            if connection.is_dispensable(now):
                del self.waiting[connection]
                connection.end()
                return

    async def _check_all(self) -> None:
        limits = self.limits
        shortest = min(limits.head_timeout, limits.keep_alive, limits.write_timeout)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            now = loop.time()
            for connection in list(self.waiting):
                connection.check(now)


class _Connection(asyncio.Protocol):
    """A client's connection. Forwards everything to ``inner``, aiohttp's protocol."""

    __slots__ = ("_answered", "_connections", "_deadline", "_head_began", "_now", "_transport", "_unsent", "inner")

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self._connections = connections
        self._now = asyncio.get_running_loop().time
        self._deadline = self._now() + connections.limits.head_timeout
        self._head_began = False
        self._answered = False
        self._unsent = 0
        self._transport: asyncio.Transport | None = None

    # requests

    def end_request(self) -> None:
        """The answer is complete; aiohttp sends it next."""
        self._head_began, self._answered = False, True
        self._deadline = self._now() + self._connections.limits.keep_alive
        self._unsent = sys.maxsize
        if self._transport is not None:
            self._connections.waiting[self] = None
            self._connections.may_have_room.set()

    def is_dispensable(self, now: float) -> bool:
        """Whether the connection may be closed for others.

        True if it is idle, or its first request takes too long.
        """
        if self._answered and not self._head_began:
            return self._transport is not None and self._transport.get_write_buffer_size() == 0
        head_timeout = self._connections.limits.head_timeout
        return now > self._deadline - head_timeout + min(_SURE_SECONDS, head_timeout / 4)

    def check(self, now: float) -> None:
        """Close the connection if it exceeded its limit.

        While the client reads an answer, it has unlimited time.
        """
        if now < self._deadline or self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self._deadline = now + self._connections.limits.write_timeout
            return
        self.end()

    def end(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # the client does not read its answer
            return
        if self._head_began:
            with contextlib.suppress(OSError):
                self._transport.write(_TOO_SLOW)
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.opened(self)
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.closed(self)
        self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._head_began:
            self._head_began = True
            self._deadline = min(self._deadline, self._now() + self._connections.limits.head_timeout)
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self._unsent = sys.maxsize  # the client reads its answer
        self.inner.resume_writing()


CONNECTIONS = web.AppKey("connections", Connections)
