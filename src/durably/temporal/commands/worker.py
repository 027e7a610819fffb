"""The command ``worker``, which runs the declared workers.

This module also has the group of all commands, for Flask's command line.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import click

from durably.temporal.client.connection import Temporal
from durably.temporal.client.interceptors import ActivityContext
from durably.temporal.declarations import with_interceptor
from durably.temporal.worker.process import run_worker_process
from durably.temporal.worker.workers import DEFAULT_GRACE, Workers

from . import Group, print_line, with_target
from .check import check_target, make_check_command
from .declared import make_register_command, make_sync_schedules_command
from .deployment import make_deployment_group
from .replay import make_replay_command, replay_target

WORKER_OPTIONS = (
    click.Option(
        ["--task-queue", "task_queues"],
        multiple=True,
        metavar="NAME",
        help="Run only this task queue. May be repeated.",
    ),
    click.Option(
        ["--grace"],
        default=DEFAULT_GRACE.total_seconds(),
        show_default=True,
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="Time for running activities when the worker is stopped.",
    ),
    click.Option(["--health"], metavar="HOST:PORT", help="Address for /live and /ready."),
    click.Option(["--metrics"], metavar="HOST:PORT", help="Address for /metrics, for Prometheus."),
    click.Option(["--reload"], is_flag=True, help="Restart when Python source below the working directory changes."),
)


def make_worker_command(
    run: Callable[..., None], *, target: str | None = None, more: Sequence[click.Option] = ()
) -> click.Command:
    """The command ``worker``.

    ``run`` gets the options, including those of ``more``. If ``target`` is given, the command takes an argument with
    this metavar, and ``run`` gets it as ``target``.
    """
    words = (
        f"Run the workers that {target or 'the app'} declares with add_worker().\n\n"
        "SIGTERM or Ctrl-C stops them: they accept no more tasks, activities may end, and are cancelled after "
        "--grace. A second signal ends the process immediately. If the server is unreachable, the workers wait for it."
    )
    command = click.Command("worker", callback=run, params=[*WORKER_OPTIONS, *more], help=words)
    return with_target(command, target)


def make_group(
    temporal: Temporal,
    *,
    context: Callable[[], AbstractContextManager[Any]],
    run_with_reloader: Callable[[Callable[[], None]], None],
) -> click.Group:
    """A group ``temporal`` with all commands.

    Activities run in ``context()``, the context of the app.
    """

    def run(task_queues: tuple[str, ...], grace: float, health: str | None, metrics: str | None, reload: bool) -> None:
        def work() -> None:
            declarations = with_interceptor(temporal.workers, ActivityContext(context))
            workers = Workers(temporal, declarations, task_queues=task_queues, grace=timedelta(seconds=grace))
            run_worker_process(temporal, workers, print_line=print_line, health=health, metrics=metrics)

        if reload:
            run_with_reloader(work)
        else:
            work()

    words = "Temporal: run workers, find stuck workflows, replay histories, sync schedules."
    return Group(
        "temporal",
        help=words,
        commands=[
            make_worker_command(run),
            make_register_command(lambda: temporal),
            make_sync_schedules_command(lambda: temporal),
            make_check_command(lambda: check_target(temporal)),
            make_deployment_group(lambda: temporal),
            make_replay_command(lambda: replay_target(temporal)),
        ],
    )
