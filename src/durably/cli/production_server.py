"""What ``durably start`` runs: an engine, its API, and a log for machines."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from durably.engine.embedded.api.connections import ConnectionLimits
from durably.engine.embedded.api.server import EngineServer
from durably.engine.embedded.api.state import AcceptedSync
from durably.engine.embedded.settings import EngineSettings
from durably.engine.errors import DatabaseReplacedError, EngineClosedError

from .log_lines import log_fields, log_update
from .running import first_failure
from .syncing import keep_synced

_logger = logging.getLogger("durably.start")


async def serve(
    database: Path,
    settings: EngineSettings,
    *,
    event_keys: Sequence[str],
    host: str,
    port: int,
    limits: ConnectionLimits,
    urls: Sequence[str],
    poll_interval: float,
) -> None:
    """Until cancelled. Raises what ``EngineServer.open`` raises."""
    server = await EngineServer.open(
        database, settings, event_keys=event_keys, host=host, port=port, limits=limits, on_sync=_log_sync
    )
    try:
        with first_failure():
            async with server, asyncio.TaskGroup() as tasks:
                log_fields(_logger, "engine started", origin=server.origin, database=str(database))
                for url in urls:
                    tasks.create_task(_keep_synced(url, server, poll_interval))
                tasks.create_task(_log_runs(server))
    finally:
        _logger.info("engine stopped")


async def _log_runs(server: EngineServer) -> None:
    with server.engine.watch() as updates:
        async for update in updates:
            log_update(update)
    if isinstance(server.engine.stop_error, DatabaseReplacedError):
        # Started again, an engine would make an empty database where the other one was: that is for a person to decide.
        _logger.critical("the engine answers 503 until it is stopped: put its database back, then start it again")
        await asyncio.Event().wait()
    raise EngineClosedError("the engine stopped by itself; the log says why")


async def _keep_synced(url: str, server: EngineServer, interval: float) -> None:
    await keep_synced(url, server.discovery, interval=interval, say=_logger.info, warn=_logger.warning)


def _log_sync(sync: AcceptedSync) -> None:
    request = sync.request
    log_fields(_logger, "app synced", app_id=request.app_id, functions=len(request.functions), modified=sync.modified)
