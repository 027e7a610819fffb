"""``durably functions list|pause|resume``."""

from typing import TYPE_CHECKING

import click

from .options import client_options
from .text import echo, echo_json, fit, style, table

if TYPE_CHECKING:
    from durably.engine.views import FunctionView

    from .engine_client import EngineClient


@click.group()
def functions() -> None:
    """Look at functions, pause them, let them go on."""


@functions.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@client_options
def list_functions(client: "EngineClient", as_json: bool) -> None:
    """List the functions that apps have synced."""
    found = client.list_functions_sync()
    if as_json:
        echo_json(found)
    elif not found:
        echo("no functions", err=True)
    else:
        rows = [[function.id, function.app_id, _triggers(function), _state(function)] for function in found]
        echo(table(["FUNCTION", "APP", "TRIGGERS", "STATE"], rows))


@functions.command()
@click.argument("function_id", metavar="FUNCTION")
@client_options
def pause(client: "EngineClient", function_id: str) -> None:
    """Let FUNCTION start no more runs.

    What would start one is shown as skipped, and can be run again with `durably runs replay --status skipped`. Runs
    under way go on.
    """
    client.pause_function_sync(function_id)
    echo(f"{fit(function_id)} is paused")


@functions.command()
@click.argument("function_id", metavar="FUNCTION")
@client_options
def resume(client: "EngineClient", function_id: str) -> None:
    """Let a paused FUNCTION start runs again."""
    client.resume_function_sync(function_id)
    echo(f"{fit(function_id)} is active")


def _triggers(function: "FunctionView") -> str:
    triggers = (trigger.event or trigger.cron or "" for trigger in function.config.triggers)
    return ", ".join(triggers) or "invoked only"


def _state(function: "FunctionView") -> str:
    return style("paused", fg="yellow") if function.is_paused else style("active", fg="green")
