"""Commands of Temporal that Durably's, Flask's and Django's command lines share.

Each command is declared once with its options: ``durably temporal …`` and ``flask temporal …`` are these click
commands. Django's management commands take their options from them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

import click
import msgspec
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.errors import Error
from durably.protocol.text import printable
from durably.temporal.client.connect_failures import explain_refusal
from durably.temporal.client.connection import Temporal
from durably.temporal.client.interceptors import ActivityContext
from durably.temporal.namespace import declared_types, register, type_name
from durably.temporal.worker.process import run_worker_process
from durably.temporal.worker.workers import DEFAULT_GRACE, Workers

from .declarations import ScheduleDeclaration, with_interceptor
from .errors import SearchAttributeError, TemporalSettingsError

_PATIENCE = timedelta(seconds=10)

Load = Callable[..., Temporal]
PrintLine = Callable[[str], object]

JSON_OPTION = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document.")
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


def make_command(
    name: str,
    run: Callable[..., None],
    options: Sequence[click.Option],
    help: str,
    *,
    target: str | None = None,
) -> click.Command:
    """A command. With ``target``, its first argument has this metavar, and ``run`` gets it as ``target``."""
    arguments = [] if target is None else [click.Argument(["target"], metavar=target)]
    return click.Command(name, callback=run, params=[*arguments, *options], help=help)


def print_line(line: str) -> None:
    """Print a line, with control characters escaped."""
    click.echo(printable(line))


def make_worker_command(
    run: Callable[..., None], *, target: str | None = None, more: Sequence[click.Option] = ()
) -> click.Command:
    """The command ``worker``. ``run`` gets the options, including those of ``more``."""
    words = (
        f"Run the workers that {target or 'the app'} declares with add_worker().\n\n"
        "SIGTERM or Ctrl-C stops them: they accept no more tasks, activities may end, and are cancelled after "
        "--grace. A second signal ends the process immediately. If the server is unreachable, the workers wait for it."
    )
    return make_command("worker", run, [*WORKER_OPTIONS, *more], words, target=target)


def make_register_command(load: Load, *, target: str | None = None) -> click.Command:
    """The command ``register``. ``load`` returns the connection."""

    def run(*, as_json: bool, **given: str) -> None:
        run_register(load(**given), print_line, as_json=as_json)

    words = (
        f"Register the search attributes that {f'{target}, or MODULE:TEMPORAL,' if target else 'the app'} declares.\n\n"
        "If the server does not permit it, as Temporal Cloud does not, the error has the commands that do it."
    )
    return make_command("register", run, [JSON_OPTION], words, target=target)


def make_sync_schedules_command(load: Load, *, target: str | None = None) -> click.Command:
    """The command ``sync-schedules``. ``load`` returns the connection."""

    def run(*, as_json: bool, **given: str) -> None:
        run_sync_schedules(load(**given), print_line, as_json=as_json)

    words = (
        f"Create and update the schedules that {target or 'the app'} declares with add_schedule().\n\n"
        "A paused schedule stays paused."
    )
    return make_command("sync-schedules", run, [JSON_OPTION], words, target=target)


def run_register(temporal: Temporal, print_line: PrintLine, *, as_json: bool = False) -> None:
    """Register the declared search attributes.

    Raises ``TemporalUnreachableError``, and ``SearchAttributeError``, also for two types of one name and for a refusal
    of the server.
    """

    async def run() -> list[str]:
        return await register(await temporal.connect(), wanted, _PATIENCE) if wanted else []

    wanted = declared_types([*temporal.search_attributes, *temporal.owner_attributes])
    try:
        new = asyncio.run(run())
    except RPCError as error:
        raise SearchAttributeError(explain_refusal(error.message, temporal.settings)) from error
    rows = [
        {"name": name, "type": type_name(indexed), "state": "registered" if name in new else "exists"}
        for name, indexed in wanted.items()
    ]
    if as_json:
        print_line(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        print_line("{name} ({type}): {state}".format(**row))
    if not rows:
        print_line("no search attributes are declared; temporal.add_search_attributes(…) declares some")


def run_sync_schedules(temporal: Temporal, print_line: PrintLine, *, as_json: bool = False) -> None:
    """Write the declared schedules to the server.

    Raises ``TemporalSettingsError``, also for a refusal of the server, and ``TemporalUnreachableError``.
    """

    async def run() -> None:
        found = []
        async for id, outcome in sync_schedules(temporal):
            found.append({"id": id, "outcome": outcome})
            if not as_json:
                print_line(f"{id}: {outcome}")
        if as_json:
            print_line(msgspec.json.encode(found).decode())
        elif not found:
            print_line("no schedules are declared; temporal.add_schedule(…) declares one")

    try:
        asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, temporal.settings)) from error


async def sync_schedules(temporal: Temporal) -> AsyncIterator[tuple[str, Literal["created", "updated"]]]:
    """Create and update the server's schedules as they are declared. A paused schedule stays paused.

    Yields the id and the outcome of each. Raises ``TemporalSettingsError`` for a duplicate id, a missing task queue,
    and a declaration that the server refuses; ``TemporalUnreachableError``; ``RPCError``.
    """
    ids = [declared.id for declared in temporal.schedules]
    if duplicates := {id for id in ids if ids.count(id) > 1}:
        raise TemporalSettingsError(f'the schedule "{min(duplicates)}" is declared twice')
    schedules = {declared.id: _make_schedule(temporal, declared) for declared in temporal.schedules}
    client = await temporal.client()
    for id, schedule in schedules.items():

        def replace(known: ScheduleUpdateInput, schedule: Schedule = schedule) -> ScheduleUpdate:
            schedule.state = known.description.schedule.state
            return ScheduleUpdate(schedule)

        try:
            try:
                await client.create_schedule(id, schedule)
                yield id, "created"
            except ScheduleAlreadyRunningError:
                await client.get_schedule_handle(id).update(replace)
                yield id, "updated"
        except RPCError as error:
            if error.status is not RPCStatusCode.INVALID_ARGUMENT:
                raise
            raise TemporalSettingsError(f'the server refuses the schedule "{id}": {error.message}') from error


def _make_schedule(temporal: Temporal, declared: ScheduleDeclaration) -> Schedule:
    workflow: Any = declared.workflow
    return Schedule(
        action=ScheduleActionStartWorkflow(
            workflow, args=declared.args, id=declared.id, task_queue=declared.task_queue or temporal.task_queue
        ),
        spec=declared.spec,
        policy=declared.policy,
    )


class _Group(click.Group):
    """Shows errors of Durably without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            raise click.ClickException(str(error)) from error


def make_group(
    temporal: Temporal,
    *,
    context: Callable[[], AbstractContextManager[Any]],
    run_with_reloader: Callable[[Callable[[], None]], None],
) -> click.Group:
    """A group ``temporal`` with all commands, for Flask's command line.

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

    return _Group(
        "temporal",
        help="Temporal: run workers, register search attributes, sync schedules.",
        commands=[
            make_worker_command(run),
            make_register_command(lambda: temporal),
            make_sync_schedules_command(lambda: temporal),
        ],
    )
