"""The server of ``durably start``: an engine and its API."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from durably.cli.output.log_lines import log_fields, log_update
from durably.cli.processes.apps import keep_synced
from durably.engine.core.errors import DatabaseReplacedError, EngineClosedError
from durably.engine.dashboard.sign_in import SignIn
from durably.engine.http.connections import ConnectionLimits
from durably.engine.http.metrics import METRICS_PATH
from durably.engine.http.server import EngineServer
from durably.engine.http.syncs import AcceptedSync
from durably.protocol.text import get_logger, redact_url
from durably.settings import Environment

from .event_loop import first_failure

_logger = get_logger("durably.start")


OpenServer = Callable[..., Awaitable[EngineServer]]
"""Opens the server with the arguments of ``ServerOptions``."""


async def serve(
    open_server: OpenServer,
    store: dict[str, str],
    *,
    is_new: bool,
    event_keys: Sequence[str],
    host: str,
    port: int,
    metrics_address: tuple[str, int] | None,
    limits: ConnectionLimits,
    urls: Sequence[str],
    poll_interval: float,
    sign_in: SignIn | None,
) -> None:
    """Serve until cancelled. Raises the errors of ``open_server``.

    ``store`` names where the engine's state is, for the log. ``is_new``: a database is created.
    """
    log = SyncLog()
    server = await open_server(
        event_keys=event_keys,
        host=host,
        port=port,
        metrics_address=metrics_address,
        limits=limits,
        on_sync=log.note,
        sign_in=sign_in,
    )
    try:
        with first_failure():
            async with server, asyncio.TaskGroup() as tasks:
                if is_new:
                    log_fields(_logger, "new database created", database=store["database"])
                started: dict[str, Any] = {"origin": server.origin, **store}
                if server.metrics_origin is not None:
                    started["metrics"] = f"{server.metrics_origin}{METRICS_PATH}"
                log_fields(_logger, "engine started", **started)
                if sign_in is not None:
                    log_fields(_logger, "dashboard served", url=f"{server.origin}/")
                notify_supervisor("READY=1")
                for url in urls:
                    tasks.create_task(_keep_synced(url, server, poll_interval))
                tasks.create_task(_log_runs(server))
                await asyncio.Event().wait()  # Until it is cancelled, which a task's failure does, too.
    finally:
        notify_supervisor("STOPPING=1")
        _logger.info("engine stopped")


async def _log_runs(server: EngineServer) -> None:
    with server.engine.watch_process() as updates:
        async for update in updates:
            log_update(update)
    if isinstance(server.engine.stop_error, DatabaseReplacedError):
        # A restarted engine would create an empty database instead. A person must decide that.
        _logger.critical("the engine answers 503 until it is stopped: put its database back, then start it again")
        await asyncio.Event().wait()
    raise EngineClosedError("the engine stopped by itself; the log says why")


async def _keep_synced(url: str, server: EngineServer, interval: float) -> None:
    await keep_synced(url, server.discovery, interval=interval, say=_logger.info, warn=_logger.warning)


class SyncLog:
    """Logs the first sync of each app, and later ones that change something.

    Apps of ``-u`` sync every minute.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, sync: AcceptedSync) -> None:
        result = sync.result
        has_moved = result.previous_url is not None
        is_new_version = result.version != result.previous_version
        if result.modified or is_new_version or has_moved or result.app_id not in self._seen:
            self._seen.add(result.app_id)
            changes: dict[str, Any] = {"added": result.added, "changed": result.changed, "removed": result.removed}
            if result.previous_url is not None:
                changes["previous_url"] = redact_url(result.previous_url)
            log_fields(
                _logger,
                "app synced",
                app_id=result.app_id,
                url=redact_url(sync.request.url),
                version=result.version,
                functions=len(sync.request.functions),
                modified=result.modified,
                **{name: ids for name, ids in changes.items() if ids},
            )
        if sync.conflict is not None and sync.is_news:
            _logger.error("%s", sync.conflict)


def notify_supervisor(state: str) -> None:
    """Notify systemd, if it runs this with ``Type=notify`` (``man sd_notify``)."""
    path = Environment().notify_socket
    if path is None:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)
