"""``durably dev``: engine, app in a child process, and reports."""

import asyncio
import datetime as dt
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import click
import msgspec

from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.api.http.requests import LOOPBACK_HOSTS, check_allowed_host
from durably.engine.api.http.server import DEFAULT_HOST, EngineServer
from durably.engine.api.http.syncs import AcceptedSync
from durably.engine.api.local import LocalEngine
from durably.engine.model.runs import RunUpdate
from durably.engine.model.settings import Durability, EngineSettings, EngineTracing
from durably.engine.sqlite.server import serve_database
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.events import DEFAULT_PORT
from durably.protocol.headers import ServerKind
from durably.protocol.limits import MAX_DEPTH, MAX_DEV_EVENT_BYTES, MAX_STEPS

from .child_process import AppProcess, SourceChanges, free_port, restart_on_changes, state_directory
from .options import option_type, require_temporal, server_options
from .run_text import Activity, log_update
from .service import LogConsole, first_failure, keep_synced, open_tracing, run_until_stopped, write_log
from .text import Console


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@server_options(poll_interval=5, allow_private_addresses=True, log_format="text")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    type=option_type(check_allowed_host),
    envvar="DURABLY_ALLOWED_HOSTS",
    show_envvar=True,
    metavar="NAME",
    help="A host besides localhost by which clients and web pages may reach the engine, like host.docker.internal; "
    "* allows all. May be repeated; in the environment, separated by spaces.",
)
@click.option(
    "--app-port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of MODULE:APP; 0 takes a free one.",
)
@click.option("--app-path", metavar="PATH", help="Path of the functions of MODULE:APP, if it is not a usual one.")
@click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File that keeps the engine's state; :memory: keeps none.  [default: .durably/dev.db]",
)
@click.option(
    "--temporal",
    "temporal_address",
    metavar="HOST:PORT",
    help="Temporal server that keeps the engine's state, in place of --db. `temporal server start-dev` starts one. "
    "Namespace, TLS, API key and encryption come from environment variables whose names begin with TEMPORAL.",
)
@click.option("--no-reload", is_flag=True, help="Do not restart MODULE:APP when its source changes.")
def dev(otel: bool, no_reload: bool, **given: Any) -> None:
    """Run an engine for development, and MODULE:APP with it.

    MODULE:APP is an ASGI app (FastAPI, Django), a WSGI app (Flask, Django), a tornado.web.Application, a
    DigitalOcean main(event, context), a Lambda handler(event, context), or a Google main(request). It gets the engine's
    URL in DURABLY_DEV, is restarted when Python source below the working directory changes, and is synced. For an app
    that runs separately, give the URL of its endpoint with -u, like http://127.0.0.1:3000/api/inngest.

    Updates of runs are printed, on Temporal those of the runs that it executes. The state is kept between starts, so
    that runs continue.
    """
    options = DevOptions(**given, reload=not no_reload)
    if options.temporal_address is not None and options.database is not None:
        raise click.UsageError("give one of --db and --temporal, where the engine's state is kept")
    with open_tracing(otel) as tracing:

        async def serve() -> None:
            async with DevServer(options, tracing=tracing) as server:
                await server.run()

        run_until_stopped(serve())


IN_MEMORY = Path(":memory:")


class DevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of ``durably dev``.

    ``target`` is the ``module:app`` to serve. ``urls`` are separate apps, synced every ``poll_interval`` seconds. Port
    0 takes a free port. With ``temporal_address``, a ``host:port``, the state is on that Temporal server. Without
    ``database``, the state is in ``.durably/dev.db`` below the working directory; with ``Path(":memory:")``, in a
    temporary file. ``allowed_hosts`` are hosts besides those of this machine that the engine answers to. ``app_path``
    is the path of the app's endpoint, if it is not a usual one. With ``reload``, the app restarts when Python source
    below the working directory changes. ``log_format`` JSON writes all output as a log, to stderr.
    """

    target: str | None = None
    urls: tuple[str, ...] = ()
    poll_interval: float = 5.0
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    allowed_hosts: tuple[str, ...] = ()
    app_port: int = 8000
    app_path: str | None = None
    database: Path | None = None
    temporal_address: str | None = None
    reload: bool = False
    max_connections: int = 1000
    allow_private_addresses: bool = True
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    log_format: str = "text"


class DevServer:
    """An async context manager: the app has synced when it is entered.

    Entering raises ``AppFailedError`` or ``EngineError`` if the server cannot start.
    """

    def __init__(
        self, options: DevOptions, console: Console | None = None, tracing: EngineTracing | None = None
    ) -> None:
        self.options = options
        self._is_log = options.log_format == "json"
        self.console = console or (LogConsole() if self._is_log else Console())
        self._tracing = tracing
        self.app: AppProcess | None = None
        self._server: EngineServer | None = None
        self._updates: AsyncIterator[RunUpdate] | None = None
        self._changes = SourceChanges(Path.cwd())
        self._apps: set[str] = set()
        self._cleanup = AsyncExitStack()

    @property
    def engine(self) -> LocalEngine:
        return self.server.engine

    @property
    def server(self) -> EngineServer:
        assert self._server is not None, "the server has not been started"
        return self._server

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    async def run(self) -> None:
        """Report runs, sync apps and restart the app, until cancelled.

        Raises ``AppFailedError`` if the app ends and ``reload`` is off.
        """
        options, app, console = self.options, self.app, self.console
        with first_failure():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._report_runs())
                for url in options.urls:
                    syncs = keep_synced(
                        url,
                        self.server.discovery,
                        interval=options.poll_interval,
                        say=console.note,
                        warn=console.warn,
                    )
                    tasks.create_task(syncs)
                if app is not None and options.reload:
                    tasks.create_task(restart_on_changes(app, self._changes, console, lambda: self._report_up(app)))
                elif app is not None:
                    tasks.create_task(app.fail_at_end())

    async def _start(self) -> None:
        options = self.options
        if self._is_log:
            write_log(options.log_format)
        settings = EngineSettings(
            server_kind=ServerKind.DEV,
            durability=Durability.OFF if options.database == IN_MEMORY else Durability.FULL,
            allow_private_addresses=options.allow_private_addresses,
            max_steps=options.max_steps,
            max_depth=options.max_depth,
            close_grace=dt.timedelta(seconds=1),
            max_event_bytes=MAX_DEV_EVENT_BYTES,
            tracing=self._tracing,
        )
        open_server, where = self._make_engine(settings)
        self._server = await open_server(
            host=options.host,
            port=options.port,
            allowed_hosts=options.allowed_hosts,
            limits=ConnectionLimits(max_connections=options.max_connections),
            on_sync=self._report_sync,
        )
        self._cleanup.push_async_callback(self._server.close)
        self._updates = self._cleanup.enter_context(self.engine.watch_process())
        self.console.note(f"engine at {self.server.origin}, {where}")
        self.console.note(f"dashboard: {self.server.origin}/")
        if options.host not in LOOPBACK_HOSTS:
            self.console.warn(f"this engine needs no keys: every host that can reach {options.host} can use it")
        if options.target is not None:
            await self._start_app(options.target)
        elif not options.urls:
            self.console.note(
                f"start apps with DURABLY_DEV={self.server.origin} (other SDKs: INNGEST_DEV), or name them with -u"
            )

    def _make_engine(self, settings: EngineSettings) -> tuple[Callable[..., Awaitable[EngineServer]], str]:
        """A function that opens the server, and the place of the state in words."""
        options = self.options
        if options.temporal_address is not None:
            require_temporal()
            from .temporal_client import engine_on_temporal

            open_engine, place = engine_on_temporal(options.temporal_address, settings)
            where = f"state on the Temporal server at {place.address}, namespace {place.namespace}"
            return partial(EngineServer.open, open_engine, settings), where
        if options.database == IN_MEMORY:
            # The engine has several connections. An in-memory database of SQLite has only one.
            directory = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="durably-dev-"))
            return partial(serve_database, Path(directory) / "dev.db", settings), "state is lost when it ends"
        database = options.database or state_directory() / "dev.db"
        return partial(serve_database, database, settings), f"state in {database}"

    async def _start_app(self, target: str) -> None:
        options = self.options
        if options.reload:  # From before the app reads its source.
            self._changes.start()
            self._cleanup.push_async_callback(self._changes.stop)
        self.app = AppProcess(
            target,
            host=options.host,
            port=options.app_port or free_port(options.host),
            path=options.app_path,
            engine_origin=self.server.origin,
        )
        self._cleanup.push_async_callback(self.app.stop)
        await self.app.start()
        await self._report_up(self.app)

    async def _report_up(self, app: AppProcess) -> None:
        self.console.note(f"{app.target} is up at {await app.sync(self.server.discovery)}")

    async def _report_runs(self) -> None:
        activity = Activity()
        assert self._updates is not None, "run() is called while the server is up"
        async for update in self._updates:
            if self._is_log:
                log_update(update)
            else:
                self.console.say(activity.format(update))
        why = self.engine.stop_error
        raise EngineClosedError(
            f"the engine stopped by itself: {why.message}" if why else "the engine stopped by itself"
        )

    def _report_sync(self, sync: AcceptedSync) -> None:
        request = sync.request
        if sync.result.modified or request.app_id not in self._apps:
            self._apps.add(request.app_id)
            self.console.note(
                f"synced {request.app_id}: {', '.join(fn.id for fn in request.functions) or 'no functions'}"
            )
