"""The commands ``register`` and ``sync-schedules``.

They write search attributes and schedules that the app declares to the server.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta

import click
from temporalio.service import RPCError

from durably.temporal.client.connect_failures import explain_refusal
from durably.temporal.client.connection import Temporal
from durably.temporal.errors import SearchAttributeError, TemporalSettingsError
from durably.temporal.namespace.schedules import sync_schedules
from durably.temporal.namespace.search_attributes import (
    IndexedType,
    commands,
    declared_types,
    known_attributes,
    register,
    type_name,
)

from . import print_line, with_target

_PATIENCE = timedelta(seconds=10)

Load = Callable[..., Temporal]
PrintLine = Callable[[str], object]

REGISTER_OPTIONS = (
    click.Option(["--check"], is_flag=True, help="Register nothing; the exit code is 1 if something is missing."),
)
SYNC_OPTIONS = (
    click.Option(["--app"], metavar="NAME", help="The app of these schedules.  [default: the task queue's name]"),
    click.Option(["--prune"], is_flag=True, help="Delete schedules of this app that are no longer declared."),
    click.Option(["--dry-run"], is_flag=True, help="Change nothing: print the changes."),
)


def make_register_command(load: Load, *, target: str | None = None) -> click.Command:
    """The command ``register``.

    ``load`` returns the connection. If ``target`` is given, the command takes an argument with this metavar, and
    ``load`` gets it as ``target``.
    """

    def run(*, check: bool, **given: str) -> None:
        if not run_register(load(**given), print_line, check=check):
            raise click.exceptions.Exit(1)

    words = (
        f"Register the search attributes that {f'{target}, or MODULE:TEMPORAL,' if target else 'the app'} declares.\n\n"
        "Temporal Cloud registers them with tcld or its web UI only: --check prints the commands."
    )
    return with_target(click.Command("register", callback=run, params=list(REGISTER_OPTIONS), help=words), target)


def make_sync_schedules_command(load: Load, *, target: str | None = None) -> click.Command:
    """The command ``sync-schedules``.

    ``load`` returns the connection. If ``target`` is given, the command takes an argument with this metavar, and
    ``load`` gets it as ``target``.
    """

    def run(*, app: str | None, prune: bool, dry_run: bool, **given: str) -> None:
        run_sync_schedules(load(**given), print_line, app=app, prune=prune, dry_run=dry_run)

    words = (
        f"Create and update the schedules that {target or 'the app'} declares with add_schedule().\n\n"
        "An unchanged schedule is not written, and a paused schedule stays paused."
    )
    return with_target(click.Command("sync-schedules", callback=run, params=list(SYNC_OPTIONS), help=words), target)


def run_register(temporal: Temporal, print_line: PrintLine, *, check: bool) -> bool:
    """Register the declared search attributes, or only check them.

    Returns whether all are registered. Raises ``TemporalUnreachableError``, and ``SearchAttributeError``, also for two
    types of one name and for a refusal of the server.
    """
    try:
        return asyncio.run(_register(temporal, print_line, check))
    except RPCError as error:
        raise SearchAttributeError(explain_refusal(error.message, temporal.settings)) from error


async def _register(temporal: Temporal, print_line: PrintLine, check: bool) -> bool:
    wanted = declared_types([*temporal.search_attributes, *temporal.owner_attributes])
    if not wanted:
        print_line("no search attributes are declared; temporal.add_search_attributes(…) declares some")
        return True
    client = await temporal.connect()
    if check:
        known = await known_attributes(client, _PATIENCE)
        for name, indexed in wanted.items():
            own = f": run this command without --check, or {commands(client, name, indexed)}"
            print_line(_state(name, indexed, known) + ("" if name in known else own))
        return all(known.get(name) == indexed for name, indexed in wanted.items())
    new = await register(client, wanted, _PATIENCE)
    for name, indexed in wanted.items():
        print_line(f"{name} ({type_name(indexed)}): {'registered' if name in new else 'exists'}")
    return True


def _state(name: str, indexed: IndexedType, known: Mapping[str, IndexedType]) -> str:
    if name not in known:
        return f"{name} ({type_name(indexed)}): missing"
    if known[name] == indexed:
        return f"{name} ({type_name(indexed)}): exists"
    return f"{name} ({type_name(indexed)}): the server has it as {type_name(known[name])}: use another name"


def run_sync_schedules(
    temporal: Temporal, print_line: PrintLine, *, app: str | None, prune: bool, dry_run: bool
) -> None:
    """Sync the declared schedules, and report the outcome of each.

    Raises ``TemporalSettingsError``, also for a refusal of the server, and ``TemporalUnreachableError``.
    """

    async def run() -> None:
        found = False
        async for id, outcome in sync_schedules(temporal, app=app, prune=prune, dry_run=dry_run):
            found = True
            print_line(f"{id}: {outcome}{' (dry run)' if dry_run else ''}")
        if not found:
            print_line("no schedules are declared; temporal.add_schedule(…) declares one")
        elif dry_run:
            print_line("nothing was changed, and the server has not checked the declarations")

    try:
        asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, temporal.settings)) from error
