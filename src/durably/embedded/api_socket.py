"""The engine's HTTP API on a socket for the user alone, beside the one at which processes meet.

It is for the command line (``durably runs list --db …``). No keys are asked for: whoever can open the socket can
read the database.
"""

from pathlib import Path

from aiohttp import web

from durably.engine.embedded import EmbeddedEngine
from durably.engine.embedded.api.application import create_api
from durably.engine.embedded.api.auth import ApiKeys
from durably.engine.embedded.api.connections import ConnectionLimits, Connections
from durably.engine.embedded.api.server import serve_api
from durably.protocol.headers import ServerKind

from . import sockets

_SHUTDOWN_SECONDS = 0.5


class ApiSocket:
    """Open with ``await ApiSocket.open(engine, path)``."""

    def __init__(self, runner: web.AppRunner, connections: Connections, path: Path) -> None:
        self._runner = runner
        self._connections = connections
        self._path = path

    @classmethod
    async def open(cls, engine: EmbeddedEngine, path: Path) -> "ApiSocket":
        api = create_api(engine, ApiKeys(server_kind=ServerKind.DEV))
        runner, connections = await serve_api(
            api, sockets.listen(path), ConnectionLimits(), shutdown_timeout=_SHUTDOWN_SECONDS
        )
        return cls(runner, connections, path)

    async def close(self) -> None:
        await self._connections.close()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)
