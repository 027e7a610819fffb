"""``durably start``: an engine for production, with its log, its syncs and the keys of its dashboard."""

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from durably.engine.api.dashboard.dashboard import DashboardKeys
from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.api.http.metrics import METRICS_PATH
from durably.engine.api.http.server import EngineServer
from durably.engine.api.http.syncs import AcceptedSync
from durably.engine.core.backoff import standard_backoff
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.engine_errors import DatabaseReplacedError, EngineClosedError, EngineError
from durably.protocol.headers import ServerKind
from durably.protocol.text import get_logger, is_name, redact_url
from durably.settings import EVENT_KEY, SIGNING_KEY, Environment, warn_of_short_signing_keys

from .child_process import keep_synced
from .event_loop import first_failure, run_until_stopped
from .log import LogFormat, log_fields, log_update, write_log
from .options import (
    dashboard_options,
    open_tracing,
    read_address,
    read_age,
    read_names,
    read_web_address,
    require_temporal,
    server_options,
    setting_option,
    signing_key_options,
)
from .text import CliError

_logger = get_logger("durably.start")
_ADVICE = "; `durably keys` makes one of each"


@click.command()
@server_options(poll_interval=60, allow_private_addresses=False, log_format="json")
@click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File that keeps the engine's state. This or --temporal is required.",
)
@click.option(
    "--temporal",
    "temporal_address",
    metavar="HOST:PORT",
    help="Temporal server that keeps the engine's state, in place of --db. Namespace, TLS, API key and encryption come "
    "from environment variables whose names begin with TEMPORAL.",
)
@signing_key_options
@setting_option(
    "--event-key",
    "event_keys",
    setting=EVENT_KEY,
    read=str.split,
    multiple=True,
    metavar="KEY",
    help="A key that senders of events must have. May be repeated; in the environment, separated by spaces.",
)
@click.option(
    "--unsigned-answers-of",
    "unsigned_apps",
    multiple=True,
    callback=read_names,
    metavar="APP",
    help="Accept unsigned answers of the app with this id, if its SDK does not sign. May be repeated.",
)
@dashboard_options
@click.option(
    "--metrics-address",
    callback=read_address,
    envvar="DURABLY_METRICS_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Serve the metrics for Prometheus, /metrics, without a key at this address too, like 127.0.0.1:9464. Every "
    "client that can connect to it can read them.",
)
@click.option(
    "--dashboard-url",
    callback=read_web_address,
    envvar="DURABLY_DASHBOARD_URL",
    show_envvar=True,
    metavar="URL",
    help="The dashboard's address as people reach it. Its path is a prefix that a proxy removes.",
)
@click.option(
    "--retention",
    callback=read_age,
    metavar="AGE",
    help="Purge finished runs, and events that no run needs, at this age, like 30d or 12h.  [default: keep them]",
)
def start(
    urls: tuple[str, ...],
    host: str,
    port: int,
    database: Path | None,
    temporal_address: str | None,
    signing_key: str | None,
    signing_key_fallback: str | None,
    event_keys: tuple[str, ...],
    poll_interval: float,
    max_connections: int,
    allow_private_addresses: bool,
    max_steps: int,
    max_depth: int,
    unsigned_apps: tuple[str, ...],
    metrics_address: tuple[str, int] | None,
    dashboard_url: str | None,
    retention: dt.timedelta | None,
    otel: bool,
    log_format: str,
    dashboard_key: str | None,
    dashboard_viewer_key: str | None,
) -> None:
    """Run an engine for production.

    The engine is one process with its state in the file --db, or one of several on the Temporal server --temporal.
    Calls to apps and their answers are signed with the signing key, which the API requires too. Events need an event
    key. `durably keys` makes both. Apps are synced by `durably sync URL`, a part of their deployment, or every minute
    if -u names them. The log is on stderr, one JSON object a line.
    """
    if (database is None) == (temporal_address is None):
        raise click.UsageError("give one of --db PATH and --temporal HOST:PORT, where the engine's state is kept")
    if database is not None:
        database = _check_database(database)
    else:
        require_temporal()
        from .temporal_client import refuse_options

        refuse_options(click.get_current_context())
    if not signing_key:
        raise CliError(f"no signing key: set {SIGNING_KEY.name}, the same as the apps'{_ADVICE}")
    if not event_keys or not any(key.strip() for key in event_keys):
        raise CliError(f"no event key: set {EVENT_KEY.name}, the same as the senders'{_ADVICE}")
    if not all(map(is_name, event_keys)):
        raise CliError(
            f"an event key is blank, or has characters that are not printable: anybody could send events with it. "
            f"Correct {EVENT_KEY.name} or --event-key{_ADVICE}"
        )
    keys = (signing_key, signing_key_fallback, *event_keys)
    dashboard_keys = read_dashboard_keys(dashboard_key, dashboard_viewer_key, dashboard_url, keys)
    write_log(LogFormat(log_format))
    warn_of_short_signing_keys((signing_key, signing_key_fallback), get_logger("durably.start"))
    limits = ConnectionLimits(max_connections=max_connections)
    with open_tracing(otel) as tracing:
        settings = EngineSettings(
            server_kind=ServerKind.CLOUD,
            signing_key=signing_key,
            signing_key_fallback=signing_key_fallback,
            unsigned_apps=frozenset(unsigned_apps),
            backoff=standard_backoff,
            allow_private_addresses=allow_private_addresses,
            max_steps=max_steps,
            max_depth=max_depth,
            retention=retention,
            tracing=tracing,
        )
        open_server: OpenServer
        if database is not None:
            open_server, store = partial(serve_database, database, settings), {"database": str(database)}
        else:
            assert temporal_address is not None
            from .temporal_client import server_on_temporal

            open_server, store = server_on_temporal(temporal_address, settings)
        run_until_stopped(
            serve(
                open_server,
                store,
                is_new=database is not None and not database.exists(),
                event_keys=event_keys,
                host=host,
                port=port,
                metrics_address=metrics_address,
                limits=limits,
                urls=urls,
                poll_interval=poll_interval,
                dashboard_keys=dashboard_keys,
            )
        )


def _check_database(database: Path) -> Path:
    """The absolute path. Raises ``CliError``."""
    if str(database) == ":memory:":
        raise CliError("--db :memory: would lose all runs at the end: give a file, or use `durably dev --db :memory:`")
    database = database.absolute()
    if not database.resolve().parent.is_dir():
        raise CliError(
            f"--db {database}: there is no directory {database.resolve().parent}: create it, or correct the path"
        )
    return database


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
    dashboard_keys: DashboardKeys | None,
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
        dashboard_keys=dashboard_keys,
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
                if dashboard_keys is not None:
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


def notify_supervisor(state: str) -> None:
    """Notify systemd, if it runs this with ``Type=notify`` (``man sd_notify``)."""
    path = Environment().notify_socket
    if path is None:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)


# the keys of the dashboard


def read_dashboard_keys(
    key: str | None, viewer_key: str | None, url: str | None, other_keys: Collection[str | None]
) -> DashboardKeys | None:
    """The keys of the dashboard, ``None`` if it is off.

    ``other_keys`` are those of the engine. The path of ``url`` is a prefix that a proxy removes. Raises ``CliError``.
    """
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
        mount = "" if url is None else urlsplit(url).path.rstrip("/")
        return None if key is None else DashboardKeys(key, viewer_key, mount)
    except EngineError as error:
        raise CliError(error.message) from None
