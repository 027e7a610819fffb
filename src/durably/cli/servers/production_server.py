"""The server of ``durably start``: an engine, its API, the dashboard's sign-in."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from durably.cli.output.log_lines import log_fields, log_update
from durably.cli.output.text import CliError
from durably.cli.processes.apps import keep_synced
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.messages import DashboardRequest, DashboardResponse
from durably.engine.api.dashboard.sign_in import (
    DashboardServer,
    KeySignIn,
    ProxySignIn,
    SignIn,
    check_header,
    check_key,
    read_network,
)
from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.api.http.metrics import METRICS_PATH
from durably.engine.api.http.server import EngineServer
from durably.engine.api.http.syncs import AcceptedSync
from durably.protocol.engine_errors import DatabaseReplacedError, EngineClosedError, EngineError
from durably.protocol.text import get_logger, redact_url
from durably.settings import DASHBOARD_KEY, Environment

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
                    syncing = keep_synced(
                        url, server.discovery, interval=poll_interval, say=_logger.info, warn=_logger.warning
                    )
                    tasks.create_task(syncing)
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


# the sign-in of the dashboard


class _BehindPrefix:
    """A dashboard whose proxy removes the beginning of its paths. Its links have it."""

    def __init__(self, server: DashboardServer, prefix: str) -> None:
        self._server, self._prefix = server, prefix

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        return await self._server.handle(replace(request, mount=self._prefix))


def read_sign_in(
    key: str | None,
    header: str | None,
    proxies: Collection[str],
    *,
    viewer_key: str | None = None,
    url: str | None = None,
    other_keys: Collection[str | None],
) -> SignIn | None:
    """The sign-in of the dashboard, ``None`` if it is off.

    ``other_keys`` are those of the engine. The path of ``url`` is a prefix that a proxy removes. Raises ``CliError``.
    """
    if key is not None and header is not None:
        raise CliError(f"--dashboard-key ({DASHBOARD_KEY}) and --dashboard-proxy-header exclude each other")
    if proxies and header is None and key is None:
        raise CliError(
            "--dashboard-proxy needs --dashboard-proxy-header, the header that the proxy sets, or --dashboard-key"
        )
    if viewer_key is not None and key is None:
        raise CliError("--dashboard-viewer-key needs --dashboard-key, the key of people who may change something")
    if viewer_key is not None and viewer_key == key:
        raise CliError("--dashboard-viewer-key and --dashboard-key must differ")
    if any(given is not None and given in other_keys for given in (key, viewer_key)):
        raise CliError(
            "the dashboard's key must not be another key of the engine, because people enter it in browsers: "
            "`durably keys --dashboard` makes one of its own"
        )
    try:
        for given in (key, viewer_key):
            if given is not None:
                check_key(given)
        if header is not None:
            check_header(header)
        networks = [read_network(text) for text in proxies]
    except EngineError as error:
        raise CliError(error.message) from None

    prefix = "" if url is None else urlsplit(url).path.rstrip("/")

    def sign_in(dashboard: Dashboard) -> DashboardServer:
        if key is None:
            server: DashboardServer = ProxySignIn(dashboard, header or "", networks)
        else:
            server = KeySignIn(dashboard, key, viewer_key=viewer_key, proxies=networks)
        return _BehindPrefix(server, prefix) if prefix else server

    return None if key is None and header is None else sign_in
