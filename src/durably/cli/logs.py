"""The command ``durably logs``."""

import time
from typing import TYPE_CHECKING

import click

from .options import client_options, json_option
from .text import CliError, Styled, echo, echo_json, echo_json_line, fit, format_clock, short_id, style

if TYPE_CHECKING:
    from durably.engine.reports import LogEntry, LogPage

    from .engine_client import EngineClient

_PAGE = 500
_AFTER_END_SECONDS = 1.0
"""Seconds for the last lines of a run that has ended: apps send them a little later."""


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--function", "function_id", metavar="FUNCTION", help="Only lines of runs of this function.")
@click.option("--follow", is_flag=True, help="Print lines as they arrive, until the RUN has ended or Ctrl-C.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 500), help="Of all runs: the last lines."
)
@json_option("an array; with --follow an object per line")
@client_options
def logs(
    client: "EngineClient", run_id: str | None, function_id: str | None, follow: bool, limit: int, as_json: bool
) -> None:
    """Print lines of `ctx.logger`, of one RUN or of all.

    An engine keeps them in development only. RUN is a run's id, or the end of it, as `durably dev` prints it.
    """
    from .runs import find_run_id

    if run_id is not None and function_id is not None:
        raise click.UsageError("--function is for the lines of all runs, not of one RUN")
    if run_id is None:
        page = client.list_logs_sync(function_id=function_id, limit=limit)
    else:
        run_id = find_run_id(client, run_id)
        _check_run(client, run_id)
        page = client.list_logs_sync(run_id=run_id, position=1, limit=_PAGE)
    if follow:
        _follow(client, run_id, function_id, page, as_json)
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
    client: "EngineClient", run_id: str | None, function_id: str | None, page: "LogPage", as_json: bool
) -> None:
    echo(style("following lines; Ctrl-C ends", dim=True), err=True)
    change = None
    ends_at = None
    while True:
        for entry in page.entries:
            if as_json:
                echo_json_line(entry)
            else:
                echo(describe_entry(entry))
        if not page.entries:
            if ends_at is not None and time.monotonic() > ends_at:
                return
            if ends_at is None and run_id is not None and _check_run(client, run_id):
                ends_at = time.monotonic() + _AFTER_END_SECONDS
            if ends_at is None:
                change = client.wait_for_changes_sync(after=change).position
            else:
                time.sleep(_AFTER_END_SECONDS / 5)
        page = client.list_logs_sync(run_id=run_id, function_id=function_id, position=page.position, limit=_PAGE)


def _check_run(client: "EngineClient", run_id: str) -> bool:
    """Whether the run has ended. Raises ``CliError`` if there is no such run."""
    run = client.get_run_sync(run_id)
    if run is None:
        raise CliError(f"no run has the id {run_id!r}")
    return run.status.has_ended


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
