"""The commands of Durably for a framework's own command line, if that is made with click: Flask's.

Knows no framework: what an activity needs around it, and how source is watched, is given.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import click

from durably.errors import Error
from durably.temporal.replay.command import ReplayTarget, make_replay_command

from .check_command import CheckTarget, declared_types, make_check_command
from .connection import Temporal
from .declarations import with_interceptor
from .deployment_command import make_deployment_group
from .register_command import run_register
from .schedule_command import run_sync_schedules
from .surroundings import Surroundings
from .worker_process import run_worker_process
from .workers import Workers


def make_commands(
    temporal: Temporal,
    *,
    surroundings: Callable[[], AbstractContextManager[Any]],
    run_with_reloader: Callable[[Callable[[], None]], None],
) -> click.Group:
    """A group ``temporal``. Activities run within ``surroundings()``."""

    @click.group("temporal", cls=_Group)
    def group() -> None:
        """Temporal: run workers, find stuck workflows, replay histories, sync schedules."""

    @group.command()
    @click.option("--task-queue", "task_queues", multiple=True, metavar="NAME", help="Only this one. May be repeated.")
    @click.option(
        "--grace", default=30.0, show_default=True, metavar="SECONDS", help="How long activities may take to end."
    )
    @click.option("--health", metavar="HOST:PORT", help="Serve /live and /ready here.")
    @click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics to Prometheus here.")
    @click.option("--reload", is_flag=True, help="Restart when source changes.")
    def worker(
        task_queues: tuple[str, ...], grace: float, health: str | None, metrics: str | None, reload: bool
    ) -> None:
        """Run the workers that the app declares with add_worker(), until SIGTERM or Ctrl-C."""

        def run() -> None:
            declarations = with_interceptor(temporal.workers, Surroundings(surroundings))
            workers = Workers(temporal, declarations, task_queues=task_queues, grace=timedelta(seconds=grace))
            run_worker_process(temporal, workers, say=click.echo, health=health, metrics=metrics)

        if reload:
            run_with_reloader(run)
        else:
            run()

    @group.command()
    @click.option("--check", is_flag=True, help="Register nothing; the exit code is 1 if something is missing.")
    def register(check: bool) -> None:
        """Register the search attributes that the app declares."""
        if not run_register(temporal, say=click.echo, check=check):
            raise click.exceptions.Exit(1)

    @group.command("sync-schedules")
    @click.option("--app", metavar="NAME", help="Whose schedules these are.  [default: the task queue's name]")
    @click.option("--prune", is_flag=True, help="Delete this app's schedules that are declared no longer.")
    @click.option("--dry-run", is_flag=True, help="Only say what would be done.")
    def sync_schedules(app: str | None, prune: bool, dry_run: bool) -> None:
        """Make the server's schedules those that the app declares with add_schedule()."""
        run_sync_schedules(temporal, say=click.echo, app=app, prune=prune, dry_run=dry_run)

    group.add_command(make_check_command(lambda: CheckTarget(temporal, declared_types(temporal.workers))))
    group.add_command(make_deployment_group(lambda: temporal))
    group.add_command(make_replay_command(lambda: ReplayTarget(temporal, temporal.workers)))
    return group


class _Group(click.Group):
    """Durably's own errors without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            raise click.ClickException(str(error)) from error
