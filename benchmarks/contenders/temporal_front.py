"""Ports before Temporal's server, one for each contender, which pass bytes on and count connections.

The server itself has no TLS; those of the contenders that are to speak it meet it here. The answer to any question is
how many connections each contender has opened so far.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.temporal.tls import Authority

from benchmarks.children import Answerer, serve

TLS_AUTHORITY = "authority.pem"
"""The file in the front's directory with which its certificate is checked."""


class _End(asyncio.Protocol):
    """One side of a connection; writes to the other what it reads, once there is another."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._other: _End | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def join(self, other: "_End") -> None:
        self._other = other
        assert other.transport is not None
        other.transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            assert self._other.transport is not None
            self._other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.close()


class _Near(_End):
    """The contender's side: each is a connection that was opened."""

    def __init__(self, port: int, count: "partial[None]") -> None:
        super().__init__()
        self._port, self._count = port, count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._count()
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        _, far = await asyncio.get_running_loop().create_connection(_End, "127.0.0.1", self._port)
        far.join(self)
        self.join(far)


@asynccontextmanager
async def open_front(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[dict[str, str], Answerer]]:
    """Arguments: the server's address, and the contenders' names, with ``+tls`` at the end of those that speak it."""
    address, *names = arguments
    port = int(address.rpartition(":")[2])
    loop, opened, tls = asyncio.get_running_loop(), Counter[str](), _tls(directory)
    addresses = {}
    async with AsyncExitStack() as stack:
        for name in names:
            make = partial(_Near, port, partial(_count, opened, name))
            server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls if name.endswith("+tls") else None)
            await stack.enter_async_context(server)
            addresses[name] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def answer(question: dict[str, Any]) -> dict[str, int]:
            return {name: opened[name] for name in names}

        yield addresses, answer


def _count(opened: Counter[str], name: str) -> None:
    opened[name] += 1


def _tls(directory: Path) -> ssl.SSLContext:
    authority = Authority()
    certificate = authority.issue("localhost")
    (directory / TLS_AUTHORITY).write_bytes(authority.pem)
    (directory / "front.pem").write_bytes(certificate.key + certificate.cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "front.pem")
    context.set_alpn_protocols(["h2"])
    return context


if __name__ == "__main__":
    serve(open_front)
