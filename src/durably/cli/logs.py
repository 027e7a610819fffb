"""The command ``durably logs``, with the stream of ``--follow``."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import click

from durably.engine.model.runs import END_UPDATES, LogEntry, LogPage, Run, RunUpdate, UpdateKind

from .client import EngineClient, existing
from .options import client_options, json_option
from .run_text import describe_update
from .runs import check_function, find_run_id
from .text import CliError, Styled, echo, echo_json, echo_json_line, fit, format_clock, short_id, shorten, style

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
        echo("no lines of ctx.logger; an engine in production keeps none", err=True)
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


_LEVEL_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def describe_entry(entry: "LogEntry") -> Styled:
    """Time, run, function, level, step and message, on one line."""
    line = entry.line
    parts = (
        style(format_clock(line.at, line.at), dim=True),
        style(short_id(entry.run_id), fg="magenta"),
        fit(entry.function_id),
        style(line.level.ljust(7), fg=_LEVEL_COLOURS.get(line.level)),
        *([style(line.step, dim=True)] if line.step else []),
        fit(line.message),
    )
    return Styled("  ".join(parts))


T = TypeVar("T")
_AFTER_END_SECONDS = 1.0
"""Seconds for the last lines of a run that has ended: apps send them a little later."""
_DETAIL_WIDTH = 500
_INTERRUPT_SECONDS = 0.5
"""On Windows, Ctrl-C has no effect while a thread waits for a queue."""

_FAILED_ATTEMPTS = {UpdateKind.RETRYING, UpdateKind.STEP_FAILED, UpdateKind.UNREACHED}
_SHOWN = {UpdateKind.RUN_STARTED, *END_UPDATES.values(), *_FAILED_ATTEMPTS}
_COLOURS = {
    UpdateKind.RUN_COMPLETED: "green",
    UpdateKind.RUN_FAILED: "red",
    UpdateKind.STEP_FAILED: "red",
    UpdateKind.RUN_CANCELLED: "yellow",
    UpdateKind.RUN_SKIPPED: "yellow",
    UpdateKind.RETRYING: "yellow",
    UpdateKind.UNREACHED: "yellow",
}


def followed_lines(
    client: EngineClient, run_id: str | None, page: LogPage, read_from: Callable[[int], LogPage]
) -> Iterator[LogEntry]:
    """The lines of ``page`` and those that follow, until the run has ended.

    ``read_from`` returns the lines from a position on.
    """
    change = None
    ends_at = None
    while True:
        yield from page.entries
        if not page.entries:
            if ends_at is not None and time.monotonic() > ends_at:
                return
            if ends_at is None and run_id is not None and existing(client.get_run_sync(run_id)).status.has_ended:
                ends_at = time.monotonic() + _AFTER_END_SECONDS
            if ends_at is None:
                change = client.wait_for_changes_sync(after=change).position
            else:
                time.sleep(_AFTER_END_SECONDS / 5)
        page = read_from(page.position)


def followed_updates(
    client: EngineClient, run: Run | None, function_id: str | None, *, on_connected: Callable[[], None]
) -> Iterator[RunUpdate]:
    """Starts, failed attempts and ends of runs, from now on.

    Of one ``run`` only failed attempts: the others are ``start_of`` and ``end_of``. Raises ``CliError`` when the engine
    stops.
    """
    shown = _SHOWN if run is None else _FAILED_ATTEMPTS
    for update in client.updates(
        function_id=function_id if run is None else run.function_id, on_connected=on_connected
    ):
        if update.kind in shown and (run is None or update.run_id == run.id):
            yield update
    raise CliError("the engine stopped")


def describe_change(update: RunUpdate) -> Styled:
    """Time, run, function, kind, step and detail, in the columns of lines."""
    parts = (
        style(format_clock(update.at, update.at), dim=True),
        style(short_id(update.run_id), fg="magenta"),
        fit(update.function_id),
        style(update.kind.value, fg=_COLOURS.get(update.kind), bold=True),
        *([style(update.step, dim=True)] if update.step else []),
        fit(shorten(describe_update(update), _DETAIL_WIDTH)),
    )
    return Styled("  ".join(filter(None, parts)))


class _Ended(NamedTuple):
    error: BaseException | None


def merge(sources: Sequence[Iterator[T]]) -> Iterator[T]:
    """The values of blocking iterators as they come, until one of them ends.

    Each is read by a thread of its own. Raises the first error of any.
    """
    values: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()

    def read(source: Iterator[T]) -> None:
        try:
            for value in source:
                values.put(value)
            values.put(_Ended(None))
        except BaseException as error:
            values.put(_Ended(error))

    for source in sources:
        threading.Thread(target=read, args=(source,), daemon=True).start()
    while True:
        try:
            value = values.get(timeout=_INTERRUPT_SECONDS)
        except queue.Empty:
            continue
        if not isinstance(value, _Ended):
            yield value
        elif value.error is not None:
            raise value.error
        else:
            return
