"""An embedded engine that is served over HTTP."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Unpack

from durably.engine.api.http.server import EngineServer, ServerOptions
from durably.engine.log.log import CommitLog
from durably.engine.log.standby import follow
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import DatabaseLostError, DatabaseUnavailableError, EngineError
from durably.protocol.text import describe_os_error, get_logger

from .engine import SqliteEngine
from .files import DatabaseLock, find_file
from .writer import read_log_state

_RETRY_SECONDS = 0.2

_logger = get_logger("durably.engine")


class DatabaseUnusableError(EngineError):
    """The operating system prevents a database at this path."""


async def serve_database(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    *,
    log: CommitLog | None = None,
    **options: Unpack[ServerOptions],
) -> EngineServer:
    """Open the engine on the database at ``path``, and serve it: see ``EngineServer.open``.

    With a commit log, this is a standby as long as another process leads. Also raises ``DatabaseUnusableError``, and
    the errors of ``follow``.
    """

    async def open_database() -> SqliteEngine:
        try:
            if log is None:
                return await SqliteEngine.open(path, settings)
            complaint = ""
            while True:
                file = find_file(Path(path))
                with DatabaseLock(file):
                    await follow(log, file, settings.durability)
                try:
                    return await SqliteEngine.open(path, settings, log=log)
                except DatabaseLostError:
                    continue  # Another standby was faster.
                except DatabaseUnavailableError as error:
                    if error.message != complaint:
                        _logger.warning("this standby could not take over; it tries again: %s", error.message)
                    complaint = error.message
                    await asyncio.sleep(_RETRY_SECONDS)
        except OSError as error:
            raise DatabaseUnusableError(f"cannot use the database {path}: {describe_os_error(error)}") from error

    if log is not None:
        options["standby"] = partial(read_log_state, log)
    return await EngineServer.open(open_database, settings, **options)
