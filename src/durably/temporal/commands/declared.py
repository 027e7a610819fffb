"""The commands ``register`` and ``sync-schedules``.

They write search attributes and schedules that the app declares to the server.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta

import click
import msgspec
from temporalio.client import Client
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

from . import json_option, print_line, with_target

_PATIENCE = timedelta(seconds=10)

Load = Callable[..., Temporal]
PrintLine = Callable[[str], object]

REGISTER_OPTIONS = (
    click.Option(["--check"], is_flag=True, help="Register nothing; the exit code is 1 if something is missing."),
    json_option("Print JSON: an array of the search attributes, each with its state."),
)
SYNC_OPTIONS = (
    click.Option(["--app"], metavar="NAME", help="The app of these schedules.  [default: the task queue's name]"),
    click.Option(["--prune"], is_flag=True, help="Delete schedules of this app that are no longer declared."),
    click.Option(["--dry-run"], is_flag=True, help="Change nothing: print the changes."),
    json_option("Print JSON: an array of the schedules, each with its outcome."),
)


def make_register_command(load: Load, *, target: str | None = None) -> click.Command:
    """The command ``register``.

    ``load`` returns the connection. If ``target`` is given, the command takes an argument with this metavar, and
    ``load`` gets it as ``target``.
    """

    def run(*, check: bool, as_json: bool, **given: str) -> None:
        if not run_register(load(**given), print_line, check=check, as_json=as_json):
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

    def run(*, app: str | None, prune: bool, dry_run: bool, as_json: bool, **given: str) -> None:
        run_sync_schedules(load(**given), print_line, app=app, prune=prune, dry_run=dry_run, as_json=as_json)

    words = (
        f"Create and update the schedules that {target or 'the app'} declares with add_schedule().\n\n"
        "An unchanged schedule is not written, and a paused schedule stays paused."
    )
    return with_target(click.Command("sync-schedules", callback=run, params=list(SYNC_OPTIONS), help=words), target)


class AttributeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A declared search attribute, and its state on the server.

    ``state`` is the state in words. ``known_type`` is the server's type, if it differs.
    ``remedy`` is the command that registers a missing one.
    """

    name: str
    type: str
    state: str
    known_type: str | None = None
    remedy: str | None = None

    @property
    def is_registered(self) -> bool:
        return self.state in ("exists", "registered")

    def __str__(self) -> str:
        remedy = f": {self.remedy}" if self.remedy else ""
        return f"{self.name} ({self.type}): {self.state}{remedy}"


def run_register(temporal: Temporal, print_line: PrintLine, *, check: bool, as_json: bool = False) -> bool:
    """Register the declared search attributes, or only check them.

    Returns whether all are registered. Raises ``TemporalUnreachableError``, and ``SearchAttributeError``, also for two
    types of one name and for a refusal of the server.
    """
    try:
        reports = asyncio.run(_register(temporal, check))
    except RPCError as error:
        raise SearchAttributeError(explain_refusal(error.message, temporal.settings)) from error
    if as_json:
        print_line(msgspec.json.encode(reports).decode())
    elif not reports:
        print_line("no search attributes are declared; temporal.add_search_attributes(…) declares some")
    else:
        for report in reports:
            print_line(str(report))
    return all(report.is_registered for report in reports)


async def _register(temporal: Temporal, check: bool) -> list[AttributeReport]:
    wanted = declared_types([*temporal.search_attributes, *temporal.owner_attributes])
    if not wanted:
        return []
    client = await temporal.connect()
    if check:
        known = await known_attributes(client, _PATIENCE)
        return [_look_for(client, name, indexed, known) for name, indexed in wanted.items()]
    new = await register(client, wanted, _PATIENCE)
    return [
        AttributeReport(name, type_name(indexed), "registered" if name in new else "exists")
        for name, indexed in wanted.items()
    ]


def _look_for(client: Client, name: str, indexed: IndexedType, known: Mapping[str, IndexedType]) -> AttributeReport:
    kind = type_name(indexed)
    if name not in known:
        remedy = f"run this command without --check, or {commands(client, name, indexed)}"
        return AttributeReport(name, kind, "missing", remedy=remedy)
    if known[name] == indexed:
        return AttributeReport(name, kind, "exists")
    other = type_name(known[name])
    return AttributeReport(name, kind, f"the server has it as {other}", known_type=other, remedy="use another name")


def run_sync_schedules(
    temporal: Temporal, print_line: PrintLine, *, app: str | None, prune: bool, dry_run: bool, as_json: bool = False
) -> None:
    """Sync the declared schedules, and report the outcome of each.

    Raises ``TemporalSettingsError``, also for a refusal of the server, and ``TemporalUnreachableError``.
    """

    async def run() -> None:
        found = []
        async for id, outcome in sync_schedules(temporal, app=app, prune=prune, dry_run=dry_run):
            found.append({"id": id, "outcome": str(outcome), "is_dry_run": dry_run})
            if not as_json:
                print_line(f"{id}: {outcome}{' (dry run)' if dry_run else ''}")
        if as_json:
            print_line(msgspec.json.encode(found).decode())
        elif not found:
            print_line("no schedules are declared; temporal.add_schedule(…) declares one")
        elif dry_run:
            print_line("nothing was changed, and the server has not checked the declarations")

    try:
        asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, temporal.settings)) from error
