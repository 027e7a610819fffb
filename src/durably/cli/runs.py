"""The commands ``durably runs list|show|cancel|wake|rerun|replay`` and ``durably logs``."""

import datetime as dt
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import click

from durably.engine.model.runs import (
    END_UPDATES,
    BulkOperation,
    FromStep,
    LogEntry,
    LogPage,
    Run,
    RunStatus,
    RunUpdate,
    UpdateKind,
)
from durably.protocol.text import suggest

from .client import EngineClient, echo_notes, existing, is_short_id, only_id
from .options import client_options, json_option, options, read_json, read_time
from .run_text import (
    Activity,
    describe_attempts,
    describe_entry,
    describe_events,
    describe_links,
    describe_logs,
    describe_metadata,
    describe_usage,
    draw,
)
from .run_text import describe_run as describe
from .text import (
    STATUS_COLOURS,
    CliError,
    Styled,
    coloured_status,
    describe_status,
    describe_zone,
    echo,
    echo_json,
    echo_json_line,
    fit,
    format_local,
    format_seconds,
    progress_line,
    style,
    table,
)

_MOST_EVENTS = 10
"""The largest number of events of a batch that is shown."""
_PAGE = 500
_POLL_SECONDS = 0.1


since_option = click.option(
    "--since", type=read_time, metavar="TIME", help="Only runs created since: RFC 3339, or how long ago, like 2h."
)
function_option = click.option("--function", "function_id", metavar="FUNCTION", help="Only runs of this function.")
selection_options = options(
    since_option,
    click.option("--until", type=read_time, metavar="TIME", help="Only runs created before: the same. [default: now]"),
    click.option("--if", "expression", metavar="EXPRESSION", help="Only runs for whose event this holds."),
    click.option("--no-wait", is_flag=True, help="Do not wait until all runs are found."),
)
"""``since``, ``until``, ``expression`` and ``no_wait``, of bulk operations."""


def report_bulk(
    operation: BulkOperation,
    get: Callable[[str], BulkOperation | None],
    name: str,
    done: str,
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Wait until a bulk operation has ended, unless ``no_wait``, and print how many runs it changed.

    ``get`` reads it. Its progress is shown on a terminal. ``name`` and ``done`` are words: "replay", "started again".
    """
    with progress_line() as show_progress:
        while operation.ended_at is None and not no_wait:
            show_progress(f"{operation.affected:,} runs so far")
            time.sleep(_POLL_SECONDS)
            operation = get(operation.id) or operation
    if as_json:
        echo_json(operation)
    elif no_wait:
        echo(f"{name} {operation.id} is still under way")
    else:
        echo(f"{operation.affected} {'run was' if operation.affected == 1 else 'runs were'} {done}")


@click.group()
def runs() -> None:
    """List, show, cancel, wake and rerun runs."""


@runs.command("list")
@click.option(
    "--status", type=click.Choice(list(STATUS_COLOURS), case_sensitive=False), help="Only runs of this status."
)
@function_option
@since_option
@click.option(
    "--follow", is_flag=True, help="Print what happens to runs from now on, as `durably dev` does, until Ctrl-C."
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500), help="The largest number of runs.")
@json_option("an array; with --follow an object per line")
@client_options
def list_runs(
    client: EngineClient,
    status: str | None,
    function_id: str | None,
    since: dt.datetime | None,
    follow: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    if follow:
        if status or since:
            raise click.UsageError("--follow shows what happens from now on: --status and --since do not go with it")
        if function_id is not None:
            check_function(client, function_id)
        activity = Activity()
        report = partial(echo, style("following runs; Ctrl-C ends", dim=True), err=True)
        for update in client.updates(function_id=function_id, on_connected=report):
            if as_json:
                echo_json_line(update)
            else:
                echo(activity.format(update))
        raise CliError("the engine stopped")

    found = client.list_runs_sync(
        status=RunStatus(status) if status else None, function_id=function_id, started_after=since, limit=limit
    )
    if not found and function_id is not None:
        check_function(client, function_id)
    if as_json:
        echo_json(found)
    elif not found:
        echo("no runs", err=True)
        echo_notes(client)
    else:
        rows = [
            [
                run.id,
                run.function_id,
                describe_status(run),
                format_local(run.created_at),
                "" if run.ended_at is None else format_seconds((run.ended_at - run.created_at).total_seconds()),
            ]
            for run in found
        ]
        zone = describe_zone(run.created_at for run in found)
        echo(table(["RUN", "FUNCTION", "STATUS", f"STARTED ({zone})", "DURATION"], rows))
        if len(found) == limit:
            echo(style(f"the newest {limit}; --limit shows more", dim=True), err=True)
        echo_notes(client)


@runs.command()
@click.argument("run_id", metavar="RUN")
@json_option("the report of the run, and its metadata")
@client_options
def show(client: EngineClient, run_id: str, as_json: bool) -> None:
    """Show a run: its events, its steps on a time axis, and its errors.

    The error of each failed attempt is shown. RUN is a run's id, or the end of it, as `durably dev` prints it.
    """
    run_id = find_run_id(client, run_id)
    report = existing(client.inspect_run_sync(run_id))
    metadata = [] if report.unavailable else existing(client.run_metadata_sync(run_id))
    if as_json:
        echo_json({name: getattr(report, name) for name in report.__struct_fields__} | {"metadata": metadata})
        return
    parts = [
        describe(report.run, report.app_version),
        describe_events(report.events[:_MOST_EVENTS], len(report.run.event_ids)),
        draw(report, dt.datetime.now(dt.UTC)),
        describe_attempts(report),
        describe_usage(report),
        describe_links(report),
        describe_logs(report),
        describe_metadata(metadata),
    ]
    for number, part in enumerate(filter(None, parts)):
        if number:
            echo("")
        echo(part)
    if report.unavailable:
        echo("", err=True)
        echo(report.unavailable, err=True)


@runs.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--function", "function_id", metavar="FUNCTION", help="Cancel runs of this function instead of one RUN.")
@selection_options
@json_option("the run, or the bulk cancellation")
@client_options
def cancel(
    client: EngineClient,
    run_id: str | None,
    function_id: str | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    expression: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Cancel a run that has not ended, or many of a function, and print how many.

    With an --until in the future, runs that start before it are cancelled too.
    """
    if (run_id is None) == (function_id is None):
        raise click.UsageError("name a RUN, or the --function whose runs to cancel")
    if run_id is not None:
        if since or until or expression:
            raise click.UsageError("--since, --until and --if are for the runs of a --function")

        run_id = find_run_id(client, run_id)
        client.cancel_run_sync(run_id)
        run = existing(client.get_run_sync(run_id))
        if as_json:
            echo_json(run)
        else:
            echo(Styled(f"run {fit(run.id)} is {coloured_status(run.status)}"))
            if not run.status.has_ended:
                echo(
                    "the cancellation is stored: the run ends when a process with its app runs (the app itself, or "
                    "`durably worker`)",
                    err=True,
                )
        return
    now = dt.datetime.now(dt.UTC)
    assert function_id is not None
    begun = client.cancel_runs_sync(function_id, started_after=since, started_before=until or now, if_exp=expression)
    report_bulk(begun, client.get_cancellation_sync, "cancellation", "cancelled", no_wait=no_wait, as_json=as_json)
    if until is not None and until > now:
        echo(
            f"runs that start until {format_local(begun.started_before)} will be cancelled too: "
            f"the page of the function in the dashboard can end that",
            err=True,
        )


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--step", "step_id", metavar="ID", help="Only this step. [default: all of the run]")
@json_option("the run, and how many delays were skipped")
@client_options
def wake(client: EngineClient, run_id: str, step_id: str | None, as_json: bool) -> None:
    """End the sleeps of a run now, and make its delayed attempts now."""
    run_id = find_run_id(client, run_id)
    count = client.skip_delays_sync(run_id, step_id=step_id)
    if not count:
        where = "" if step_id is None else f" at step {fit(step_id)!r}"
        raise CliError(f"run {fit(run_id)} neither sleeps nor waits for another attempt{where}")
    run = existing(client.get_run_sync(run_id))
    if as_json:
        echo_json({"run": run, "skipped": count})
    else:
        echo(Styled(f"run {fit(run.id)} goes on: {count} {'delay' if count == 1 else 'delays'} skipped"))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from-step", metavar="ID", help="Keep the results of the steps before this one.")
@click.option(
    "--input", "step_input", metavar="JSON|@FILE|-", help="A JSON array: arguments for that step in place of its own."
)
@json_option("the new run")
@client_options
def rerun(client: EngineClient, run_id: str, from_step: str | None, step_input: str | None, as_json: bool) -> None:
    """Run the same function again with the same events, and print the new run's id."""
    if step_input is not None and from_step is None:
        raise click.UsageError("--input is for the step of --from-step")

    step = None
    if from_step is not None:
        step = FromStep.of(from_step, None if step_input is None else read_json(step_input, list, "--input"))
    new_id = client.rerun_sync(find_run_id(client, run_id), from_step=step)
    if as_json:
        echo_json(client.get_run_sync(new_id))
    else:
        echo(new_id)


@runs.command()
@click.option("--function", "function_id", metavar="FUNCTION", required=True, help="The function whose runs to replay.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    default=("Failed",),
    show_default=True,
    type=click.Choice(("Failed", "Cancelled", "Completed", "Skipped"), case_sensitive=False),
    help="Only runs with this status. May be repeated.",
)
@selection_options
@json_option("the bulk replay")
@client_options
def replay(
    client: EngineClient,
    function_id: str,
    statuses: tuple[str, ...],
    since: dt.datetime | None,
    until: dt.datetime | None,
    expression: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Run many runs of a function again, and print how many."""
    started = client.replay_runs_sync(
        function_id,
        statuses=[RunStatus(status) for status in statuses],
        started_after=since,
        started_before=until,
        if_exp=expression,
    )
    report_bulk(started, client.get_replay_sync, "replay", "started again", no_wait=no_wait, as_json=as_json)


def find_run_id(client: EngineClient, text: str) -> str:
    """The id of the run that ``text`` names: an id, or the end of one.

    Raises ``CliError``.
    """
    if not is_short_id(text):
        return text
    return only_id("run", text, [run.id for run in client.list_runs_sync(id_suffix=text, limit=5)])


def check_function(client: EngineClient, function_id: str) -> None:
    """Raises ``CliError`` if no app has such a function."""
    known = [function.id for function in client.list_functions_sync()]
    if function_id not in known:
        raise CliError(f"no app has a function with the id {function_id!r}{suggest(function_id, known)}")


# -- logs

T = TypeVar("T")
_AFTER_END_SECONDS = 1.0
"""Seconds for the last lines of a run that has ended: apps send them a little later."""
_INTERRUPT_SECONDS = 0.5
"""On Windows, Ctrl-C has no effect while a thread waits for a queue."""

_FAILED_ATTEMPTS = {UpdateKind.RETRYING, UpdateKind.STEP_FAILED, UpdateKind.UNREACHED}
_SHOWN = {UpdateKind.RUN_STARTED, *END_UPDATES.values(), *_FAILED_ATTEMPTS}


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--function", "function_id", metavar="FUNCTION", help="Only of runs of this function.")
@click.option(
    "--follow",
    is_flag=True,
    help="Print lines as they arrive, and starts, failures and ends of runs, until the RUN has ended or Ctrl-C.",
)
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 500), help="Of all runs: the last lines."
)
@json_option("an array; with --follow an object per line")
@client_options
def logs(
    client: EngineClient,
    run_id: str | None,
    function_id: str | None,
    follow: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Print lines of `ctx.logger`, of one RUN or of all.

    An engine keeps them in development only; with --follow it prints what happens to runs in production too. RUN is a
    run's id, or the end of it, as `durably dev` prints it.
    """

    if run_id is not None and function_id is not None:
        raise click.UsageError("--function is for the lines of all runs, not of one RUN")
    run = None
    if run_id is None:
        if function_id is not None:
            check_function(client, function_id)
        page = client.list_logs_sync(function_id=function_id, limit=limit)
    else:
        run_id = find_run_id(client, run_id)
        run = existing(client.get_run_sync(run_id))
        page = client.list_logs_sync(run_id=run_id, position=1, limit=_PAGE)
    if not follow:
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
        return

    activity = Activity()

    def show(value: LogEntry | RunUpdate) -> None:
        if as_json:
            echo_json_line(value)
        else:
            echo(describe_entry(value) if isinstance(value, LogEntry) else activity.format(value))

    report = partial(echo, style("following lines; Ctrl-C ends", dim=True), err=True)
    sources: list[Iterator[LogEntry | RunUpdate]] = [_followed_lines(client, run_id, function_id, page)]
    if run is not None and run.status.has_ended:
        report()
    else:
        sources.append(_followed_updates(client, run, function_id, on_connected=report))
    if run is not None:
        show(RunUpdate.started(run))
    for value in _merge(sources):
        show(value)
    if run is not None:
        show(RunUpdate.ended(existing(client.get_run_sync(run.id))))


def _followed_lines(
    client: EngineClient, run_id: str | None, function_id: str | None, page: LogPage
) -> Iterator[LogEntry]:
    """The lines of ``page`` and those that follow, until the run has ended."""
    change, ends_at = None, None
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
        page = client.list_logs_sync(run_id=run_id, function_id=function_id, position=page.position, limit=_PAGE)


def _followed_updates(
    client: EngineClient, run: Run | None, function_id: str | None, *, on_connected: Callable[[], None]
) -> Iterator[RunUpdate]:
    """Starts, failed attempts and ends of runs, from now on.

    Of one ``run`` only failed attempts. Raises ``CliError`` when the engine
    stops.
    """
    shown = _SHOWN if run is None else _FAILED_ATTEMPTS
    for update in client.updates(
        function_id=function_id if run is None else run.function_id, on_connected=on_connected
    ):
        if update.kind in shown and (run is None or update.run_id == run.id):
            yield update
    raise CliError("the engine stopped")


class _Ended(NamedTuple):
    error: BaseException | None


def _merge(sources: Sequence[Iterator[T]]) -> Iterator[T]:
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
