"""The command ``durably logs``."""

from functools import partial
from typing import TYPE_CHECKING

import click

from durably.cli.options import client_options, json_option
from durably.cli.output.text import (
    Styled,
    echo,
    echo_json,
    echo_json_line,
    fit,
    format_clock,
    short_id,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durably.cli.clients.engine_client import EngineClient
    from durably.engine.model.runs import LogEntry, LogPage, Run, RunUpdate

_PAGE = 500


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--function", "function_id", metavar="FUNCTION", help="Only of runs of this function.")
@click.option(
    "--follow",
    is_flag=True,
    help="Print lines as they arrive, and starts, failures and ends of runs, until the RUN has ended or Ctrl-C.",
)
@click.option("--lines-only", is_flag=True, help="With --follow: lines of ctx.logger and nothing else.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 500), help="Of all runs: the last lines."
)
@json_option("an array; with --follow an object per line")
@client_options
def logs(
    client: "EngineClient",
    run_id: str | None,
    function_id: str | None,
    follow: bool,
    lines_only: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Print lines of `ctx.logger`, of one RUN or of all.

    An engine keeps them in development only; with --follow it prints what happens to runs in production too. RUN is a
    run's id, or the end of it, as `durably dev` prints it.
    """
    from durably.cli.clients.engine_client import existing

    from .runs import check_function, find_run_id

    if run_id is not None and function_id is not None:
        raise click.UsageError("--function is for the lines of all runs, not of one RUN")
    if lines_only and not follow:
        raise click.UsageError("--lines-only is for --follow; without it, lines are all that is printed")
    run = None
    if run_id is None:
        if function_id is not None:
            check_function(client, function_id)
        page = client.list_logs_sync(function_id=function_id, limit=limit)
    else:
        run_id = find_run_id(client, run_id)
        run = existing(client.get_run_sync(run_id))
        page = client.list_logs_sync(run_id=run_id, position=1, limit=_PAGE)
    if follow:
        _follow(client, run, function_id, page, lines_only, as_json)
        return
    entries = [*page.entries]
    while run_id is not None and page.entries:
        page = client.list_logs_sync(run_id=run_id, position=page.position, limit=_PAGE)
        entries += page.entries
    if as_json:
        echo_json(entries)
    elif not entries:
        echo("no lines: an engine keeps those of ctx.logger in development only", err=True)
    else:
        for entry in entries:
            echo(describe_entry(entry))


def _follow(
    client: "EngineClient",
    run: "Run | None",
    function_id: str | None,
    page: "LogPage",
    lines_only: bool,
    as_json: bool,
) -> None:
    from durably.cli.clients.engine_client import existing
    from durably.cli.output.log_stream import describe_change, followed_lines, followed_updates, merge
    from durably.engine.model.runs import LogEntry, RunUpdate

    def show(value: "LogEntry | RunUpdate") -> None:
        if as_json:
            echo_json_line(value)
        else:
            echo(describe_entry(value) if isinstance(value, LogEntry) else describe_change(value))

    run_id = None if run is None else run.id
    report = partial(echo, style("following lines; Ctrl-C ends", dim=True), err=True)

    def read_from(position: int) -> "LogPage":
        return client.list_logs_sync(run_id=run_id, function_id=function_id, position=position, limit=_PAGE)

    sources: list[Iterator[LogEntry | RunUpdate]] = [followed_lines(client, run_id, page, read_from)]
    if lines_only or (run is not None and run.status.has_ended):
        report()
    else:
        sources.append(followed_updates(client, run, function_id, on_connected=report))
    if run is not None and not lines_only:
        show(RunUpdate.started(run))
    for value in merge(sources):
        show(value)
    if run is not None and not lines_only:
        show(RunUpdate.ended(existing(client.get_run_sync(run.id))))


_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def describe_entry(entry: "LogEntry") -> Styled:
    """Time, run, function, level, step and message, on one line."""
    line = entry.line
    parts = (
        style(format_clock(line.at, line.at), dim=True),
        style(short_id(entry.run_id), fg="magenta"),
        fit(entry.function_id),
        style(line.level.ljust(7), fg=_COLOURS.get(line.level)),
        *([style(line.step, dim=True)] if line.step else []),
        fit(line.message),
    )
    return Styled("  ".join(parts))
