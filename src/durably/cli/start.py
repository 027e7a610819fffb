"""``durably start``, an engine for production with its log and the keys of its dashboard, and ``durably worker``."""

import asyncio
import contextlib
import datetime as dt
import importlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

import durably
from durably.client import Client
from durably.comm.handler import functions_of
from durably.embedded.handle import InProcessHandle
from durably.engine.api.dashboard.dashboard import DashboardKeys
from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.api.http.metrics import METRICS_PATH
from durably.engine.api.http.server import EngineServer
from durably.engine.api.http.syncs import AcceptedSync
from durably.engine.core.backoff import standard_backoff
from durably.engine.log.log import LEASE_SECONDS, CommitLog
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.engine_errors import DatabaseLostError, DatabaseReplacedError, EngineClosedError, EngineError
from durably.protocol.headers import ServerKind
from durably.protocol.limits import MAX_EVENT_BYTES
from durably.protocol.text import get_logger, is_name, redact_url
from durably.settings import (
    DASHBOARD_KEY,
    DASHBOARD_VIEWER_KEY,
    EVENT_KEY,
    SIGNING_KEY,
    Environment,
    warn_of_short_signing_keys,
)

from .app_server import AppImportError, import_app
from .options import (
    APP_URL,
    log_format_option,
    option_type,
    read_age,
    require_temporal,
    server_options,
    setting_option,
    signing_key_options,
)
from .run_text import log_update
from .service import first_failure, keep_synced, log_fields, open_tracing, run_until_stopped, write_log
from .text import CliError

_logger = get_logger("durably.start")
_ADVICE = "; `durably keys` makes one of each"


@option_type
def _address(text: str) -> tuple[str, int]:
    """A host and a port, such as ``[::1]:9464``."""
    try:
        url = urlsplit(f"//{text}")
        if url.hostname and url.port is not None:
            return url.hostname, url.port
    except ValueError:
        pass
    raise ValueError(f"it must be a host and a port like 127.0.0.1:9464, not {text!r}")


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
    "--log",
    "log_url",
    envvar="DURABLY_LOG",
    show_envvar=True,
    metavar="URL",
    help="Commit log that survives this machine: postgresql://… or s3://bucket/prefix. Each commit of --db is appended "
    "to it before it is acknowledged. Other processes with the same log are standbys, each with a --db of its own.",
)
@click.option(
    "--lease",
    type=read_age,
    default=f"{LEASE_SECONDS:g}s",
    show_default=True,
    metavar="AGE",
    help="With --log: the time after which a standby replaces a leader that is not heard of.",
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
    help="A key that senders of events must have. May be repeated; in the environment, separated by spaces.",
)
@click.option(
    "--unsigned-answers-of",
    "unsigned_apps",
    multiple=True,
    metavar="APP",
    help="Accept unsigned answers of the app with this id, if its SDK does not sign. May be repeated.",
)
@click.option(
    "--dashboard-key",
    envvar=DASHBOARD_KEY,
    show_envvar=True,
    metavar="KEY",
    help="Serve the dashboard at /, for visitors who enter this key as their password. Without it there is none.",
)
@click.option(
    "--dashboard-viewer-key",
    envvar=DASHBOARD_VIEWER_KEY,
    show_envvar=True,
    metavar="KEY",
    help="Another key, for visitors who may see all and change nothing.",
)
@click.option(
    "--metrics-address",
    type=_address,
    envvar="DURABLY_METRICS_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Serve the metrics for Prometheus, /metrics, without a key at this address too, like 127.0.0.1:9464. Every "
    "client that can connect to it can read them.",
)
@click.option(
    "--dashboard-url",
    type=APP_URL,
    envvar="DURABLY_DASHBOARD_URL",
    show_envvar=True,
    metavar="URL",
    help="The dashboard's address as people reach it. Its path is a prefix that a proxy removes.",
)
@click.option(
    "--max-event-bytes",
    default=MAX_EVENT_BYTES,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="The largest size of an event, as JSON. On Temporal it is at most 1,000,000.",
)
@click.option(
    "--retention",
    type=read_age,
    metavar="AGE",
    help="Purge finished runs, and events that no run needs, at this age, like 30d or 12h.  [default: keep them]",
)
def start(otel: bool, **given: Any) -> None:
    """Run an engine for production.

    The engine is one process with its state in the file --db, or one of several on the Temporal server --temporal. With
    --log, other machines have standbys that take over.
    Calls to apps and their answers are signed with the signing key, which the API requires too. Events need an event
    key. `durably keys` makes both. Apps are synced by `durably sync URL`, a part of their deployment, or every minute
    if -u names them. The log is on stderr, one JSON object a line.
    """
    options = StartOptions(**given)
    if (options.database is None) == (options.temporal_address is None):
        raise click.UsageError("give one of --db PATH and --temporal HOST:PORT, where the engine's state is kept")
    if not options.signing_key:
        raise CliError(f"no signing key: set {SIGNING_KEY.name}, the same as the apps'{_ADVICE}")
    if not options.event_keys or not any(options.event_keys):
        raise CliError(f"no event key: set {EVENT_KEY.name}, the same as the senders'{_ADVICE}")
    if not all(map(is_name, options.event_keys)):
        raise CliError(
            f"an event key is blank, or has characters that are not printable: anybody could send events with it. "
            f"Correct {EVENT_KEY.name} or --event-key{_ADVICE}"
        )
    database = None if options.database is None else options.database.absolute()
    if database is not None and not database.resolve().parent.is_dir():
        raise CliError(f"--db {database}: there is no directory {database.resolve().parent}")
    if options.temporal_address is not None:
        if options.log_url is not None:
            raise CliError("--log cannot be used with --temporal, whose server survives machines itself")
        require_temporal()
        from durably.engine.temporal.support import UNUSED_SETTINGS

        if options.retention is not None:
            raise CliError(f"--retention cannot be used with --temporal: {UNUSED_SETTINGS['retention']}")
    dashboard_keys = read_dashboard_keys(options)
    write_log(options.log_format)
    warn_of_short_signing_keys((options.signing_key, options.signing_key_fallback), _logger)
    with open_tracing(otel) as tracing:
        settings = EngineSettings(
            server_kind=ServerKind.CLOUD,
            signing_key=options.signing_key,
            signing_key_fallback=options.signing_key_fallback,
            unsigned_apps=frozenset(options.unsigned_apps),
            backoff=standard_backoff,
            allow_private_addresses=options.allow_private_addresses,
            max_event_bytes=options.max_event_bytes,
            max_steps=options.max_steps,
            max_depth=options.max_depth,
            retention=options.retention,
            tracing=tracing,
        )
        open_server: OpenServer
        if database is not None:
            store = {"database": str(database)}
            log = None if options.log_url is None else CommitLog(options.log_url, lease=options.lease.total_seconds())
            if log is not None:
                store["log"] = log.store.name
            open_server = partial(serve_database, database, settings, log=log)
        else:
            from .temporal_client import engine_on_temporal

            open_engine, place = engine_on_temporal(str(options.temporal_address), settings)
            open_server = partial(EngineServer.open, open_engine, settings)
            store = {"temporal": place.address, "namespace": place.namespace}
            _logger.info(
                "the processes on this Temporal server share its runs: each logs and counts those that it executes, so "
                "collect the logs and metrics of all"
            )
        serving = serve if options.log_url is None else _serve_after_standby
        run_until_stopped(serving(options, open_server, store, dashboard_keys))


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of ``durably start``."""

    host: str
    port: int
    database: Path | None
    log_url: str | None
    lease: dt.timedelta
    temporal_address: str | None
    signing_key: str | None
    signing_key_fallback: str | None
    event_keys: tuple[str, ...]
    urls: tuple[str, ...]
    poll_interval: float
    max_connections: int
    allow_private_addresses: bool
    max_event_bytes: int
    max_steps: int
    max_depth: int
    unsigned_apps: tuple[str, ...]
    metrics_address: tuple[str, int] | None
    retention: dt.timedelta | None
    log_format: str
    dashboard_url: str | None
    dashboard_key: str | None
    dashboard_viewer_key: str | None


OpenServer = Callable[..., Awaitable[EngineServer]]
"""Opens the server with the arguments of ``ServerOptions``."""


async def _serve_after_standby(
    options: StartOptions, open_server: OpenServer, store: dict[str, str], dashboard_keys: DashboardKeys | None
) -> None:
    """``serve`` with a commit log: again a standby after the loss of the database."""
    notify_supervisor("READY=1")
    while True:
        with contextlib.suppress(DatabaseLostError):
            await serve(options, open_server, store, dashboard_keys)


async def serve(
    options: StartOptions, open_server: OpenServer, store: dict[str, str], dashboard_keys: DashboardKeys | None
) -> None:
    """Serve until cancelled. Raises the errors of ``open_server``.

    ``store`` names where the engine's state is, for the log.
    """
    is_new = options.database is not None and options.log_url is None and not options.database.exists()
    log = SyncLog()
    server = await open_server(
        event_keys=options.event_keys,
        host=options.host,
        port=options.port,
        metrics_address=options.metrics_address,
        limits=ConnectionLimits(max_connections=options.max_connections),
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
                for url in options.urls:
                    syncs = keep_synced(
                        url,
                        server.discovery,
                        interval=options.poll_interval,
                        say=_logger.info,
                        warn=_logger.warning,
                    )
                    tasks.create_task(syncs)
                tasks.create_task(_log_runs(server, is_replaceable=options.log_url is not None))
                await asyncio.Event().wait()  # Until it is cancelled, which a task's failure does, too.
    finally:
        notify_supervisor("STOPPING=1")
        _logger.info("engine stopped")


async def _log_runs(server: EngineServer, *, is_replaceable: bool) -> None:
    with server.engine.watch_process() as updates:
        async for update in updates:
            log_update(update)
    if is_replaceable and isinstance(server.engine.stop_error, DatabaseLostError):
        raise server.engine.stop_error
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


def read_dashboard_keys(options: StartOptions) -> DashboardKeys | None:
    """The keys of the dashboard, ``None`` if it is off. Raises ``CliError``."""
    key, viewer_key = options.dashboard_key, options.dashboard_viewer_key
    others = (options.signing_key, options.signing_key_fallback, *options.event_keys)
    for is_wrong, problem in (
        (
            viewer_key and not key,
            "--dashboard-viewer-key needs --dashboard-key, the key of people who may change something",
        ),
        (viewer_key and viewer_key == key, "--dashboard-viewer-key and --dashboard-key must differ"),
        (
            {key, viewer_key} & {*others} - {None},
            "the dashboard's key must not be another key of the engine, because people enter it in browsers: "
            "`durably keys --dashboard` makes one of its own",
        ),
    ):
        if is_wrong:
            raise CliError(problem)
    try:
        mount = urlsplit(options.dashboard_url or "").path.rstrip("/")
        return None if key is None else DashboardKeys(key, viewer_key, mount)
    except EngineError as error:
        raise CliError(error.message) from None


# -- workers

_worker_logger = get_logger("durably.worker")
_relay_logger = get_logger("durably.outbox")


@click.command()
@click.argument("target", metavar="MODULE:CLIENT")
@click.option(
    "--connect", is_flag=True, help="Dial the engine at the client's URL, and get calls over this connection."
)
@click.option("--max-calls", type=click.IntRange(1), help="The most calls at a time, with --connect.")
@log_format_option("text")
def worker(target: str, connect: bool, max_calls: int | None, log_format: str) -> None:
    """Run an app's functions in a process of its own.

    MODULE:CLIENT is the app's Client, whose engine is a TemporalEngine(…), an Embedded(…), or a URL like
    temporal://localhost:7233. The module must serve the functions, or import what does. Web processes that shall run
    none have TemporalEngine(workers=False). In a Django project, set DJANGO_SETTINGS_MODULE. SIGTERM ends it: calls
    have 5 seconds to end, and continue elsewhere then.

    With --connect, the engine is another program, such as `durably start`. The worker needs no URL. SIGTERM ends it
    when its calls have ended.
    """
    write_log(log_format)
    if connect:
        run_until_stopped(_work_connected(_load_client(target, "worker --connect"), max_calls))
        return
    if max_calls is not None:
        raise CliError("--max-calls needs --connect")
    engine = _load_engine(target)
    own = get_logger("durably")
    if own.handlers:  # Such as those of Django's LOGGING. Otherwise lines of Durably would appear twice.
        own.propagate = False

    async def work() -> None:
        try:
            await engine.start_worker()
            _worker_logger.info("process %d runs the functions %s", os.getpid(), ", ".join(engine.function_ids))
            await asyncio.Event().wait()
        finally:
            await engine.stop()
            _worker_logger.info("process %d has stopped", os.getpid())

    run_until_stopped(work())


async def _work_connected(client: Client, max_calls: int | None) -> None:
    functions = functions_of(client)
    if not functions:
        raise CliError(f"the module makes no functions of the app {client.app_id!r}, so there is nothing to run")
    connection = durably.connect([(client, functions)], max_worker_concurrency=max_calls)
    try:
        await connection.start()
    finally:
        await connection.close()
        _worker_logger.info("process %d has stopped", os.getpid())


def _load_client(target: str, command: str) -> Client:
    """The client MODULE:CLIENT, for a command. Raises ``CliError``."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        importlib.import_module("django").setup()
    try:
        found = import_app(target, ("client",))
    except AppImportError as error:
        hint = ""
        if "DJANGO_SETTINGS_MODULE" in str(error) and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            hint = f": call `DJANGO_SETTINGS_MODULE=myproject.settings durably {command} {target}`"
        raise CliError(f"{error}{hint}") from None
    if not isinstance(found, Client):
        raise CliError(f"{target} is an object of type {type(found).__qualname__}, not a durably.Client")
    return found


def _load_engine(target: str) -> InProcessHandle[Any]:
    """The handle of the client's engine. Raises ``CliError``."""
    engine = _load_client(target, "worker").engine
    if not isinstance(engine, InProcessHandle):
        raise CliError(
            f"the engine of {target} is not in the app's own processes, so it needs no worker: it calls the app over "
            "HTTP"
        )
    if not engine.function_ids:
        raise CliError(f"{target} serves no functions: name a client in the module that calls serve(…)")
    return engine


# -- relays


@click.command()
@click.argument("target", metavar="MODULE:CLIENT")
@log_format_option("text")
def relay(target: str, log_format: str) -> None:
    """Send the events that an app writes in the transactions of its database.

    MODULE:CLIENT is the app's Client, whose engine is elsewhere, such as `durably start`. An app with the engine in its
    own processes needs no relay. The databases are those of Django, with DJANGO_SETTINGS_MODULE, and those given to
    durably.sqlalchemy.relay(client, …). Several relays may run: one works at a time. SIGTERM ends it.
    """
    write_log(log_format)
    client = _load_client(target, "relay")
    if client.in_process is not None:
        raise CliError(
            f"the engine of {target} is in the app's own processes, which send the events: no relay is needed"
        )
    if not client.relays:
        raise CliError(
            f"{target} has no database with events: in a Django project, set DJANGO_SETTINGS_MODULE and put "
            '"durably.django" into INSTALLED_APPS; otherwise call durably.sqlalchemy.relay(client, …) in its module'
        )

    async def work() -> None:
        for each in client.relays:
            each.start(lambda: True)
        _relay_logger.info("the relay of the app %s runs", client.app_id)
        try:
            await asyncio.Event().wait()
        finally:
            for each in client.relays:
                await asyncio.to_thread(each.stop)
            _relay_logger.info("the relay of the app %s has stopped", client.app_id)

    run_until_stopped(work())
