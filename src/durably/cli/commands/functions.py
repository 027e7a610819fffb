"""``durably functions list|pause|resume``, and ``durably invoke``."""

import time
from typing import TYPE_CHECKING

import click

from durably.cli.options import client_options, json_option, read_data
from durably.cli.output.text import CliError, echo, echo_json, fit, format_json, style, table
from durably.protocol.text import printable

if TYPE_CHECKING:
    from durably.cli.clients.engine_client import EngineClient
    from durably.engine.model.overview import FunctionInfo
    from durably.engine.model.runs import Run


@click.group()
def functions() -> None:
    """List, pause and resume functions."""


@functions.command("list")
@json_option("an array in place of the table")
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
@json_option("the function")
@client_options
def pause(client: "EngineClient", function_id: str, as_json: bool) -> None:
    """Pause FUNCTION: it starts no more runs.

    An event that would start a run gives a skipped run, which `durably runs replay --status skipped` runs later.
    Present runs continue.
    """
    client.pause_function_sync(function_id)
    _report_state(client, function_id, "paused", as_json)


@functions.command()
@click.argument("function_id", metavar="FUNCTION")
@json_option("the function")
@client_options
def resume(client: "EngineClient", function_id: str, as_json: bool) -> None:
    """Resume a paused FUNCTION: it starts runs again."""
    client.resume_function_sync(function_id)
    _report_state(client, function_id, "active", as_json)


def _report_state(client: "EngineClient", function_id: str, state: str, as_json: bool) -> None:
    if as_json:
        found = (each for each in client.list_functions_sync() if each.id == function_id)
        echo_json(next(found, None))
    else:
        echo(f"{fit(function_id)} is {state}")


def _triggers(function: "FunctionInfo") -> str:
    triggers = (trigger.event or trigger.cron or "" for trigger in function.config.triggers)
    return ", ".join(triggers) or "invoked only"


def _state(function: "FunctionInfo") -> str:
    return style("paused", fg="yellow") if function.is_paused else style("active", fg="green")


_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 1.0


@click.command()
@click.argument("function_id", metavar="FUNCTION")
@click.option("--data", metavar="JSON|@FILE|-", help="The event's data: a JSON object, a file, or - for stdin.")
@click.option("--no-wait", is_flag=True, help="Print the run's id, and do not wait for its end.")
@json_option("the whole run, also if it fails")
@client_options
def invoke(client: "EngineClient", function_id: str, data: str | None, no_wait: bool, as_json: bool) -> None:
    """Run FUNCTION (<app>-<function>) and print its output, which is JSON.

    Exit code 1 if the run fails or is cancelled.
    """
    from durably.cli.clients.engine_client import existing

    receipt = client.invoke_sync(function_id, read_data(data))
    if receipt.run_id is None:
        raise CliError(f"no run of {function_id} was started, or not yet: its flow control delays or drops the event")
    if no_wait:
        if as_json:
            echo_json(existing(client.get_run_sync(receipt.run_id)))
        else:
            echo(receipt.run_id)
        return
    echo(f"run {receipt.run_id}", err=True)
    run = _wait_for_end(client, receipt.run_id)
    if as_json:
        echo_json(run)
    if run.status != "Completed":
        raise CliError(describe_failure(run))
    if not as_json:
        echo(format_json(run.decode_output()))


def _wait_for_end(client: "EngineClient", run_id: str) -> "Run":
    from durably.cli.clients.engine_client import existing

    pause = _FIRST_POLL_SECONDS
    while (run := existing(client.get_run_sync(run_id))).ended_at is None:
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)
    return run


def describe_failure(run: "Run") -> str:
    output = run.decode_output()
    error = output if isinstance(output, dict) else {}
    if run.status == "Cancelled":
        return printable(error.get("message"))
    if run.status == "Skipped":
        return printable(f"the run was skipped: {error.get('message')}")
    return printable(f"the run failed: {error.get('name') or 'Error'}: {error.get('message') or 'no message'}")
