"""An embedded engine that is served over HTTP."""

import os
from typing import Unpack

from durably.engine.api.http.server import EngineServer, ServerOptions
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import EngineError
from durably.protocol.text import describe_os_error

from .engine import SqliteEngine


class DatabaseUnusableError(EngineError):
    """The operating system prevents a database at this path."""


async def serve_database(
    path: str | os.PathLike[str], settings: EngineSettings, **options: Unpack[ServerOptions]
) -> EngineServer:
    """Open the engine on the database at ``path``, and serve it: see ``EngineServer.open``.

    Also raises ``DatabaseUnusableError``.
    """

    async def open_database() -> SqliteEngine:
        try:
            return await SqliteEngine.open(path, settings)
        except OSError as error:
            raise DatabaseUnusableError(f"cannot use the database {path}: {describe_os_error(error)}") from error

    return await EngineServer.open(open_database, settings, **options)
