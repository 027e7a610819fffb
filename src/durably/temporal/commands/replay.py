"""``replay``: replay histories of workflows against the code.

The exit code is 0 if all histories match the code, 1 if one does not, and 2 if histories could not be replayed.
"""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from durably.errors import Error
from durably.protocol.durations import parse_duration, parse_rfc3339
from durably.protocol.text import printable, printable_json
from durably.temporal.client.connection import Temporal
from durably.temporal.compat import workflow_parts
from durably.temporal.declarations import WorkerDeclaration
from durably.temporal.gateway import Exposure, Gateway
from durably.temporal.replay.histories import (
    DEFAULT_LIMIT,
    STATES,
    HistoryQuery,
    State,
    StoredHistory,
    fetch_histories,
    read_histories,
    save_history,
)
from durably.temporal.replay.replayer import HistoryReplayer, TypeReport, replay_all

from . import CouldNotRunError, json_option, print_line, with_target

ADVICE = (
    "Running workflows of this kind would stop after a deployment: guard the change with workflow.patched(), or let "
    "them end on the version that started them (worker versioning)."
)


@dataclass(frozen=True)
class ReplayTarget:
    """The code to replay against.

    It has the workflows of the workers, and the workflows that a gateway exposes.
    """

    temporal: Temporal
    declarations: Sequence[WorkerDeclaration]


def replay_target(code: Gateway | Temporal, declarations: Sequence[WorkerDeclaration] | None = None) -> ReplayTarget:
    """The workflows of ``code``; ``declarations`` replace those of its connection."""
    if isinstance(code, Gateway):
        declared = code.temporal.workers if declarations is None else declarations
        return ReplayTarget(code.temporal, _with_exposed(declared, code.exposures.values()))
    return ReplayTarget(code, code.workers if declarations is None else declarations)


def _with_exposed(declared: Sequence[WorkerDeclaration], exposures: Iterable[Exposure]) -> list[WorkerDeclaration]:
    """``declared``, and declarations of exposed workflows.

    Each exposed workflow that no worker declares gets a declaration.
    """
    known = {each for declaration in declared for each in declaration.workflows}
    added: list[WorkerDeclaration] = []
    for exposure in exposures:
        parts = workflow_parts(exposure.run_function)
        if parts is not None and parts.cls not in known:
            added.append(WorkerDeclaration(task_queue=exposure.task_queue, workflows=(parts.cls,)))
            known.add(parts.cls)
    return [*declared, *added]


class Since(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``7d`` or an RFC 3339 date. The value is a time in UTC."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        if (time := parse_rfc3339(value)) is not None:
            return time
        try:
            return dt.datetime.now(dt.UTC) - parse_duration(value)
        except Error as error:
            self.fail(f"{value!r} is neither a duration, such as 7d, nor a date, such as 2026-01-31", param, ctx)
            raise AssertionError from error


REPLAY_OPTIONS = (
    click.Option(["--from", "directory"], type=click.Path(path_type=Path), metavar="DIR", help="Read histories here."),
    click.Option(["--save"], type=click.Path(path_type=Path), metavar="DIR", help="Write fetched histories here."),
    click.Option(["--type", "types"], multiple=True, metavar="NAME", help="Only this workflow type. May be repeated."),
    click.Option(
        ["--limit"],
        default=DEFAULT_LIMIT,
        show_default=True,
        type=click.IntRange(1),
        metavar="N",
        help="Fetch the N most recent running and the N most recent closed histories of each type.",
    ),
    click.Option(["--status"], type=click.Choice([*STATES, "all"]), default="all", show_default=True),
    click.Option(["--query"], metavar="QUERY", help="A list filter of Temporal that workflows must match too."),
    click.Option(["--since"], type=Since(), metavar="WHEN", help="Started since then: 7d, 12h, or 2026-01-31."),
    json_option(),
)


def make_replay_command(load: Callable[..., ReplayTarget], *, target: str | None = None) -> click.Command:
    """The command ``replay``.

    ``load`` returns the code to replay against. If ``target`` is given, the command takes an argument with this
    metavar, and ``load`` gets it as ``target``.
    """
    words = (
        "Replay histories of workflows against the code, and name the events that the code does not produce.\n\n"
        "Fetches recent histories of each workflow type from the server, or reads stored ones with --from. The exit "
        "code is 1 if a history does not fit the code, and 2 if histories could not be replayed."
    )

    def callback(**options: Any) -> None:
        given = {} if target is None else {"target": options.pop("target")}
        _run(lambda: load(**given), **options)

    return with_target(click.Command("replay", callback=callback, params=list(REPLAY_OPTIONS), help=words), target)


def _run(
    load: Callable[[], ReplayTarget],
    *,
    directory: Path | None,
    save: Path | None,
    types: Sequence[str],
    limit: int,
    status: str,
    query: str | None,
    since: dt.datetime | None,
    as_json: bool,
) -> None:
    if directory is not None and (save or query or since or status != "all"):
        raise click.UsageError("--from reads stored histories: leave out --save, --query, --since and --status")
    states: list[State] = [each for each in STATES if status in (each, "all")]
    asked = HistoryQuery(limit=limit, query=query, since=since, states=states)
    try:
        reports = asyncio.run(_replay(load(), directory, save, types, asked))
    except Error as error:
        raise CouldNotRunError(error.message) from error
    if as_json:
        click.echo(printable_json(_to_json(reports)))
    else:
        for line in describe_reports(reports):
            print_line(line)
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
    """A line for each workflow type and for each history that does not match.

    Advice is at the end.
    """
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


def _to_json(reports: Sequence[TypeReport]) -> str:
    types = [{**asdict(report), "failures": [asdict(each) for each in report.failures]} for report in reports]
    return json.dumps({"ok": not any(report.failures for report in reports), "types": types}, indent=2)
