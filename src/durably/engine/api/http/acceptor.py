"""Acceptance of a listener's connections, without a server: a leader listens before it has one."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from durably.engine.model.subscriptions import SparseLog

_RETRY_SECONDS = 0.25
"""Delay before the next ``accept`` if no connection has ended."""


class Acceptor:
    """Accepts the connections of a listener.

    - ``make_protocol``: Makes the protocols that serve the connections of ``listener``.
    - ``has_room``: Returns whether one more connection may be served, given the number of those without a protocol
      yet. Otherwise the next connection waits, and further ones wait in the operating system's queue.
    - ``make_room``: Ends an idle connection.
    - ``may_have_room``: Set it when another connection may be served.
    - ``name``: The listener's name in log lines.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        name: str,
        logger: logging.Logger,
        has_room: Callable[[int], bool] = lambda begun: True,
        make_room: Callable[[], None] = lambda: None,
        may_have_room: asyncio.Event | None = None,
        tls: ssl.SSLContext | None = None,
        handshake_timeout: float = 10.0,
    ) -> None:
        listener.setblocking(False)
        self._listener, self._make_protocol, self._name = listener, make_protocol, name
        self._has_room, self._make_room = has_room, make_room
        self._tls, self._handshake_timeout = tls, handshake_timeout
        self._log = SparseLog(logger)
        self._may_have_room = may_have_room or asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def fileno(self) -> int:
        """The descriptor of the listening socket, -1 after it is closed."""
        return self._listener.fileno()

    async def close(self) -> None:
        """Stop accepting. Accepted connections stay open."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, *self._serving, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # EMFILE, ENFILE, ENOBUFS, ENOMEM; or a client that has already disconnected
                self._log.log(
                    logging.ERROR, "%s cannot accept connections (%s): clients wait", self._name, error.strerror
                )
                self._make_room()
                await self._wait()
                continue
            try:
                await self._until_room()
            except BaseException:
                connection.close()
                raise
            serving = loop.create_task(self._serve(connection))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

    async def _until_room(self) -> None:
        while not self._has_room(len(self._serving)):
            self._log.log(logging.WARNING, "%s has reached max_connections: new connections wait", self._name)
            self._make_room()
            await self._wait()

    async def _wait(self) -> None:
        self._may_have_room.clear()
        try:
            async with asyncio.timeout(_RETRY_SECONDS):
                await self._may_have_room.wait()
        except TimeoutError:
            return

    async def _serve(self, connection: socket.socket) -> None:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._handshake_timeout,
            )
        except OSError:  # the client has disconnected, or is not trusted
            connection.close()
