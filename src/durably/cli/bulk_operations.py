"""Bulk operations: the options of ``durably runs cancel`` and ``replay``, and ``durably cancellations``."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import Command, client_options, read_moment
from .text import echo, echo_json, format_local, table

if TYPE_CHECKING:
    from durably.engine.views import CancellationView, ReplayView

    from .engine_client import EngineClient

    Body = TypeVar("Body", CancellationView, ReplayView)

_POLL_SECONDS = 0.1


def selection_options(command: Command) -> Command:
    """The options ``since``, ``until``, ``expression`` and ``no_wait``."""
    options = (
        click.option(
            "--since",
            callback=read_moment,
            metavar="TIME",
            help="Only runs created since: RFC 3339, or how long ago, like 2h.",
        ),
        click.option(
            "--until", callback=read_moment, metavar="TIME", help="Only runs created before: the same. [default: now]"
        ),
        click.option("--if", "expression", metavar="EXPRESSION", help="Only runs for whose event this holds."),
        click.option("--no-wait", is_flag=True, help="Do not wait until all were found."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def wait_for_end(operation: "Body", get: Callable[[str], "Body | None"]) -> "Body":
    while operation.ended_at is None:
        time.sleep(_POLL_SECONDS)
        operation = get(operation.id) or operation
    return operation


def count_runs(count: int) -> str:
    return f"{count} {'run was' if count == 1 else 'runs were'}"


@click.group()
def cancellations() -> None:
    """Look at bulk cancellations, which `durably runs cancel --function` makes, and take them back."""


@cancellations.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@client_options
def list_cancellations(client: "EngineClient", as_json: bool) -> None:
    """List bulk cancellations, newest first."""
    found = client.list_cancellations_sync()
    if as_json:
        echo_json(found)
    elif not found:
        echo("no cancellations", err=True)
    else:
        echo(table(["CANCELLATION", "FUNCTION", "SINCE", "UNTIL", "IF", "CANCELLED"], list(map(_row, found))))


@cancellations.command()
@click.argument("cancellation_id", metavar="CANCELLATION")
@client_options
def delete(client: "EngineClient", cancellation_id: str) -> None:
    """Let CANCELLATION cancel no more runs."""
    client.delete_cancellation_sync(cancellation_id)
    echo(f"{cancellation_id} cancels no more runs")


def _row(cancellation: "CancellationView") -> list[Any]:
    since, until = cancellation.started_after, cancellation.started_before
    times = [format_local(since) if since else "", format_local(until)]
    return [
        cancellation.id,
        cancellation.function_id,
        *times,
        cancellation.expression or "",
        str(cancellation.affected),
    ]
