"""``durably runs list|show|cancel|rerun``."""

from typing import TYPE_CHECKING

import click

from .options import client_options
from .text import STATUS_COLOURS, coloured_status, format_local, format_seconds, table

if TYPE_CHECKING:
    from durably.protocol.api import RunBody

    from .engine_client import EngineClient


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
        _echo_json(found)
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
        _echo_json({"run": run, "steps": steps})
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
@client_options
def rerun(client: "EngineClient", run_id: str) -> None:
    """Run the same function again with the same event, and print the new run's id."""
    click.echo(client.rerun(run_id).run_id)


def _times(run: "RunBody") -> list[str]:
    started = format_local(run.run_started_at)
    if run.ended_at is None:
        return [started, ""]
    return [started, format_seconds((run.ended_at - run.run_started_at).total_seconds())]


def _echo_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
