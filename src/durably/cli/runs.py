"""The commands ``durably runs list|show|cancel|wake|rerun|replay``."""

import datetime as dt
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from durably.engine.model.runs import BulkOperation, FromStep, Run, RunStatus
from durably.protocol.text import suggest

from .client import EngineClient, existing
from .options import Command, client_options, echo_notes, is_short_id, json_option, only_id, read_json, read_time
from .run_text import (
    Activity,
    describe_attempts,
    describe_events,
    describe_links,
    describe_logs,
    describe_metadata,
    draw,
)
from .run_text import describe_run as describe
from .text import (
    STATUS_COLOURS,
    CliError,
    Styled,
    bar,
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

_POLL_SECONDS = 0.1


def selection_options(command: Command) -> Command:
    """The options ``since``, ``until``, ``expression`` and ``no_wait``."""
    options = (
        click.option(
            "--since",
            callback=read_time,
            metavar="TIME",
            help="Only runs created since: RFC 3339, or how long ago, like 2h.",
        ),
        click.option(
            "--until", callback=read_time, metavar="TIME", help="Only runs created before: the same. [default: now]"
        ),
        click.option("--if", "expression", metavar="EXPRESSION", help="Only runs for whose event this holds."),
        click.option("--no-wait", is_flag=True, help="Do not wait until all runs are found."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def count_selected(client: "EngineClient", function_id: str, **selection: Any) -> int | None:
    """The number of runs that a bulk operation will change, for its progress.

    ``None`` without a terminal, and if the engine has not counted all.
    """
    if not sys.stderr.isatty():
        return None
    try:
        found = client.count_matching_runs_sync(function_id, **selection)
    except click.ClickException:  # The operation says what is wrong, if anything is.
        return None
    return found.count if found.is_complete else None


def wait_for_end(
    operation: "BulkOperation", get: Callable[[str], "BulkOperation | None"], total: int | None
) -> "BulkOperation":
    """The bulk operation, once it has ended. Its progress is shown on a terminal."""
    with progress_line() as show_progress:
        while operation.ended_at is None:
            done = operation.affected
            show_progress(
                f"{done:,} runs so far" if total is None else f"{bar(done, total)}  {done:,} of {total:,} runs"
            )
            time.sleep(_POLL_SECONDS)
            operation = get(operation.id) or operation
        return operation


def count_runs(count: int) -> str:
    return f"{count} {'run was' if count == 1 else 'runs were'}"


_MOST_EVENTS = 10
"""The largest number of events of a batch that is shown."""


@click.group()
def runs() -> None:
    """List, show, cancel, wake and rerun runs."""


@runs.command("list")
@click.option(
    "--status", type=click.Choice(list(STATUS_COLOURS), case_sensitive=False), help="Only runs of this status."
)
@click.option("--function", "function_id", metavar="FUNCTION", help="Only runs of this function.")
@click.option(
    "--since", callback=read_time, metavar="TIME", help="Only runs created since: RFC 3339, or how long ago, like 2h."
)
@click.option(
    "--follow", is_flag=True, help="Print what happens to runs from now on, as `durably dev` does, until Ctrl-C."
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500), help="The largest number of runs.")
@json_option("an array; with --follow an object per line")
@client_options
def list_runs(
    client: "EngineClient",
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
        _follow(client, function_id, as_json)
        return

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
        rows = [[run.id, run.function_id, describe_status(run), *_times(run)] for run in found]
        zone = describe_zone(run.created_at for run in found)
        echo(table(["RUN", "FUNCTION", "STATUS", f"STARTED ({zone})", "DURATION"], rows))
        if len(found) == limit:
            echo(style(f"the newest {limit}; --limit shows more", dim=True), err=True)
        echo_notes(client)


@runs.command()
@click.argument("run_id", metavar="RUN")
@json_option("the report of the run, and its metadata")
@client_options
def show(client: "EngineClient", run_id: str, as_json: bool) -> None:
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
    client: "EngineClient",
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

    live = (RunStatus.SCHEDULED, RunStatus.RUNNING)
    selection = {"started_after": since, "started_before": until or now, "if_exp": expression}
    total = None if no_wait else count_selected(client, function_id, statuses=live, **selection)
    begun = client.cancel_runs_sync(function_id, started_after=since, started_before=until or now, if_exp=expression)
    if not no_wait:
        begun = wait_for_end(begun, client.get_cancellation_sync, total)
    if as_json:
        echo_json(begun)
    elif no_wait:
        echo(f"cancellation {begun.id} is still under way")
    else:
        echo(f"{count_runs(begun.affected)} cancelled")
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
def wake(client: "EngineClient", run_id: str, step_id: str | None, as_json: bool) -> None:
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
def rerun(client: "EngineClient", run_id: str, from_step: str | None, step_input: str | None, as_json: bool) -> None:
    """Run the same function again with the same events, and print the new run's id."""
    if step_input is not None and from_step is None:
        raise click.UsageError("--input is for the step of --from-step")

    step = None
    if from_step is not None:
        step = FromStep.of(from_step, None if step_input is None else read_json(step_input, "--input", list))
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
    client: "EngineClient",
    function_id: str,
    statuses: tuple[str, ...],
    since: dt.datetime | None,
    until: dt.datetime | None,
    expression: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Run many runs of a function again, and print how many."""

    selection: dict[str, Any] = {
        "statuses": [RunStatus(status) for status in statuses],
        "started_after": since,
        "started_before": until,
        "if_exp": expression,
    }
    total = None if no_wait else count_selected(client, function_id, **selection)
    started = client.replay_runs_sync(function_id, **selection)
    if not no_wait:
        started = wait_for_end(started, client.get_replay_sync, total)
    if as_json:
        echo_json(started)
    elif no_wait:
        echo(f"replay {started.id} is still under way")
    else:
        echo(f"{count_runs(started.affected)} started again")


def find_run_id(client: "EngineClient", text: str) -> str:
    """The id of the run that ``text`` names: an id, or the end of one.

    Raises ``CliError``.
    """
    if not is_short_id(text):
        return text
    return only_id("run", text, [run.id for run in client.list_runs_sync(id_suffix=text, limit=5)])


def check_function(client: "EngineClient", function_id: str) -> None:
    """Raises ``CliError`` if no app has such a function."""
    known = [function.id for function in client.list_functions_sync()]
    if function_id not in known:
        raise CliError(f"no app has a function with the id {function_id!r}{suggest(function_id, known)}")


def _follow(client: "EngineClient", function_id: str | None, as_json: bool) -> None:

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


def _times(run: "Run") -> list[str]:
    started = format_local(run.created_at)
    if run.ended_at is None:
        return [started, ""]
    return [started, format_seconds((run.ended_at - run.created_at).total_seconds())]
