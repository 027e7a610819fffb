"""``durably runs list|show|cancel|rerun|replay``."""

import time
from typing import TYPE_CHECKING

import click

from .data import read_json
from .options import client_options, read_moment
from .text import STATUS_COLOURS, coloured_status, echo_json, format_local, format_seconds, table

if TYPE_CHECKING:
    from durably.protocol.api import RunBody

    from .engine_client import EngineClient


_POLL_SECONDS = 0.1


@click.group()
def runs() -> None:
    """Look at runs, cancel them, run them again."""


@runs.command("list")
@click.option(
    "--status", type=click.Choice(list(STATUS_COLOURS), case_sensitive=False), help="Only runs of this status."
)
@click.option("--function", "function_id", metavar="FUNCTION", help="Only runs of this function.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@client_options
def list_runs(client: "EngineClient", status: str | None, function_id: str | None, limit: int, as_json: bool) -> None:
    """List runs, newest first."""
    found = client.list_runs(status=status, function_id=function_id, limit=limit)
    if as_json:
        echo_json(found)
    elif not found:
        click.echo("no runs", err=True)
    else:
        rows = [[run.run_id, run.function_id, coloured_status(run.status), *_times(run)] for run in found]
        click.echo(table(["RUN", "FUNCTION", "STATUS", "STARTED", "DURATION"], rows))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the run, with its steps.")
@client_options
def show(client: "EngineClient", run_id: str, as_json: bool) -> None:
    """Show a run and the timeline of its steps."""
    from .timeline import describe_run, describe_steps

    run, steps = client.get_run(run_id), client.run_steps(run_id)
    if as_json:
        echo_json({"run": run, "steps": steps})
        return
    click.echo(describe_run(run))
    if steps:
        click.echo("\n" + describe_steps(run, steps))


@runs.command()
@click.argument("run_id", metavar="RUN")
@client_options
def cancel(client: "EngineClient", run_id: str) -> None:
    """Cancel a run that has not ended."""
    run = client.cancel_run(run_id)
    click.echo(f"run {run.run_id} is {coloured_status(run.status)}")


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from-step", metavar="ID", help="Keep what the steps before this one came to.")
@click.option(
    "--input", "step_input", metavar="JSON|@FILE|-", help="A JSON array: arguments for that step in place of its own."
)
@client_options
def rerun(client: "EngineClient", run_id: str, from_step: str | None, step_input: str | None) -> None:
    """Run the same function again with the same events, and print the new run's id."""
    if step_input is not None and from_step is None:
        raise click.UsageError("--input is for the step of --from-step")
    step = None
    if from_step is not None:
        step = {"step_id": from_step, "input": None if step_input is None else read_json(step_input, "--input", list)}
    click.echo(client.rerun(run_id, step).run_id)


@runs.command()
@click.option("--function", "function_id", metavar="FUNCTION", required=True, help="The function whose runs to replay.")
@click.option(
    "--since", callback=read_moment, metavar="TIME", help="Only runs created since: RFC 3339, or how long ago, like 2h."
)
@click.option(
    "--until", callback=read_moment, metavar="TIME", help="Only runs created before: the same. [default: now]"
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    default=("Failed",),
    show_default=True,
    type=click.Choice(("Failed", "Cancelled", "Completed", "Skipped"), case_sensitive=False),
    help="Only runs that ended so. May be repeated.",
)
@click.option("--if", "expression", metavar="EXPRESSION", help="Only runs for whose event this holds.")
@click.option("--no-wait", is_flag=True, help="Do not wait until all were started.")
@client_options
def replay(
    client: "EngineClient",
    function_id: str,
    since: str | None,
    until: str | None,
    statuses: tuple[str, ...],
    expression: str | None,
    no_wait: bool,
) -> None:
    """Run many runs of a function again, and print how many."""
    selection = {
        "function_id": function_id,
        "started_after": since,
        "started_before": until,
        "statuses": statuses,
        "if": expression,
    }
    started = client.replay(selection)
    if no_wait:
        click.echo(f"replay {started.id} goes on")
        return
    while started.ended_at is None:
        time.sleep(_POLL_SECONDS)
        started = client.get_replay(started.id)
    click.echo(f"{started.replayed} {'run was' if started.replayed == 1 else 'runs were'} started again")


def _times(run: "RunBody") -> list[str]:
    started = format_local(run.run_started_at)
    if run.ended_at is None:
        return [started, ""]
    return [started, format_seconds((run.ended_at - run.run_started_at).total_seconds())]
