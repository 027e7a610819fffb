"""``replay`` as a click command, which ``durably temporal``, Flask's and Django's command lines have in common.

The exit code is 0 if all histories fit the code, 1 if one does not, and 2 if that could not be found out.
"""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from durably.errors import Error
from durably.protocol.durations import parse_duration, parse_rfc3339
from durably.protocol.text import printable, printable_json
from durably.temporal.command_line import CouldNotRunError, with_target
from durably.temporal.connection import Temporal
from durably.temporal.declarations import WorkerDeclaration

from .histories import (
    DEFAULT_LIMIT,
    STATES,
    HistoryQuery,
    State,
    StoredHistory,
    fetch_histories,
    read_histories,
    save_history,
)
from .replayer import HistoryReplayer, TypeReport, replay_all

ADVICE = (
    "Running workflows of this kind would stop after a deployment: guard the change with workflow.patched(), or let "
    "them end on the version that began them (worker versioning)."
)


@dataclass(frozen=True)
class ReplayTarget:
    """What is replayed against: ``declarations`` are those of the workers and of workflows that a gateway exposes."""

    temporal: Temporal
    declarations: Sequence[WorkerDeclaration]


class Since(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``7d`` or an RFC 3339 date; a moment in UTC."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        if (moment := parse_rfc3339(value)) is not None:
            return moment
        try:
            return dt.datetime.now(dt.UTC) - parse_duration(value)
        except Error as error:
            self.fail(f"{value!r} is neither a duration, such as 7d, nor a date, such as 2026-01-31", param, ctx)
            raise AssertionError from error


def make_replay_command(load: Callable[..., ReplayTarget], *, target: str | None = None) -> click.Command:
    """``load`` gives what is replayed; it gets the argument ``target`` if there is one, shown as that text."""

    @click.command("replay", help=run_replay_command.__doc__)
    @click.option("--from", "directory", type=click.Path(path_type=Path), metavar="DIR", help="Read histories here.")
    @click.option("--save", type=click.Path(path_type=Path), metavar="DIR", help="Write fetched histories here.")
    @click.option("--type", "types", multiple=True, metavar="NAME", help="Only this workflow type. May be repeated.")
    @click.option(
        "--limit",
        default=DEFAULT_LIMIT,
        show_default=True,
        type=click.IntRange(1),
        metavar="N",
        help="Most recent histories that are fetched of each type: so many running and so many closed ones.",
    )
    @click.option("--status", type=click.Choice([*STATES, "all"]), default="all", show_default=True)
    @click.option("--query", metavar="QUERY", help="A list filter of Temporal that workflows must match too.")
    @click.option("--since", type=Since(), metavar="WHEN", help="Started since then: 7d, 12h, or 2026-01-31.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    def command(**options: Any) -> None:
        run_replay_command(load, **options)

    return with_target(command, target)


def run_replay_command(
    load: Callable[..., ReplayTarget],
    *,
    directory: Path | None,
    save: Path | None,
    types: Sequence[str],
    limit: int,
    status: str,
    query: str | None,
    since: dt.datetime | None,
    as_json: bool,
    **target: str,
) -> None:
    """Replay histories of workflows against the code, and name the events that the code does not produce.

    Fetches recent histories of each workflow type from the server, or reads stored ones with --from. The exit code is 1
    if a history does not fit the code, and 2 if histories could not be replayed.
    """
    if directory is not None and (save or query or since or status != "all"):
        raise click.UsageError("--from reads stored histories: leave out --save, --query, --since and --status")
    states: list[State] = [each for each in STATES if status in (each, "all")]
    asked = HistoryQuery(limit=limit, query=query, since=since, states=states)
    try:
        loaded = load(**target)
        reports = asyncio.run(_replay(loaded, directory, save, types, asked))
    except Error as error:
        raise CouldNotRunError(error.message) from error
    click.echo(printable_json(_as_json(reports)) if as_json else "\n".join(map(printable, describe_reports(reports))))
    if any(report.failures for report in reports):
        raise click.exceptions.Exit(1)


async def _replay(
    target: ReplayTarget, directory: Path | None, save: Path | None, types: Sequence[str], query: HistoryQuery
) -> list[TypeReport]:
    replayer = HistoryReplayer(target.temporal, target.declarations)
    if unknown := [each for each in types if each not in replayer.workflow_types]:
        known = ", ".join(replayer.workflow_types)
        raise click.UsageError(f"the app has no workflow {printable(unknown[0])}; it has {printable(known)}")
    chosen = types or replayer.workflow_types
    if directory is not None:
        stored = (each for each in read_histories(directory) if not types or each.workflow_type in types)
        return await replay_all(replayer, stored, reported=types)
    return await replay_all(replayer, _fetch(target.temporal, chosen, query, save), reported=chosen)


async def _fetch(
    temporal: Temporal, types: Sequence[str], query: HistoryQuery, save: Path | None
) -> AsyncIterator[StoredHistory]:
    client = await temporal.client()
    for each in types:
        async for history in fetch_histories(client, each, query):
            if save is not None:
                save_history(history, save)
            yield history


def describe_reports(reports: Sequence[TypeReport]) -> Iterator[str]:
    """A line for each workflow type and for each history that does not fit; advice at the end."""
    for report in reports:
        counts = f"{report.replayed} replayed, {len(report.failures)} failed"
        skipped = f", {report.skipped} skipped (no workflow task is completed yet)" if report.skipped else ""
        is_empty = not (report.replayed or report.failures or report.skipped)
        yield f"{report.workflow_type}: {'no histories' if is_empty else counts + skipped}"
        yield from (f"  FAILED {result.describe()}" for result in report.failures)
    if any(report.failures for report in reports):
        yield ADVICE
    elif not any(report.replayed for report in reports):
        yield "Nothing was replayed."


def _as_json(reports: Sequence[TypeReport]) -> str:
    types = [{**asdict(report), "failures": [asdict(each) for each in report.failures]} for report in reports]
    return json.dumps({"ok": not any(report.failures for report in reports), "types": types}, indent=2)
