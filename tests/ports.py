"""Ports for programs that tests start, and connections between them that break."""

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Iterator

_FIRST, _LAST = 20_000, 32_000
"""Below the range from which systems take ports for outgoing connections and for port 0, so that no connection and no
other test takes the port before the program binds it."""

_choice = random.SystemRandom()
_WORKERS = 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
"""Processes that run tests side by side take different ports."""
_given: set[int] = set()


def free_port() -> int:
    """A free port of 127.0.0.1."""
    while True:
        port = _choice.randrange(_FIRST + _worker, _LAST, _WORKERS)
        if port in _given:
            continue
        if len(_given) > 500:
            _given.clear()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port


@contextlib.contextmanager
def listening_socket() -> Iterator[tuple[socket.socket, str]]:
    """A listening socket for a server that inherits it, and its origin."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


class Wire:
    """A TCP connection that can be cut, or that can swallow answers: connects to the port that ``target`` names."""

    def __init__(self, port: int) -> None:
        self.port, self.target, self.swallows = port, 0, False
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ends = {writer, far_writer}
            self._open |= ends
            try:
                tasks = [
                    asyncio.ensure_future(self._pump(reader, far_writer, is_answer=False)),
                    asyncio.ensure_future(self._pump(far_reader, writer, is_answer=True)),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
            finally:
                self._open -= ends
                far_writer.transport.abort()
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not (is_answer and self.swallows):
                    writer.write(data)
                    await writer.drain()
