"""``durably invoke``."""

import time
from typing import TYPE_CHECKING

import click

from durably.protocol.text import printable

from .data import read_data
from .failures import CliError
from .options import client_options
from .text import echo, format_json

if TYPE_CHECKING:
    from durably.engine.views import RunView

    from .engine_client import EngineClient

_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 1.0


@click.command()
@click.argument("function_id", metavar="FUNCTION")
@click.option("--data", metavar="JSON|@FILE|-", help="The event's data: a JSON object, a file, or - for stdin.")
@click.option("--no-wait", is_flag=True, help="Print the run's id, and do not wait for its end.")
@client_options
def invoke(client: "EngineClient", function_id: str, data: str | None, no_wait: bool) -> None:
    """Run FUNCTION (<app>-<function>) and print its output as JSON.

    Exit code 1 if the run fails or is cancelled.
    """
    receipt = client.invoke_sync(function_id, read_data(data))
    if receipt.run_id is None:
        raise CliError(f"no run of {function_id} was started, or not yet: its flow control held the event back")
    if no_wait:
        echo(receipt.run_id)
        return
    echo(f"run {receipt.run_id}", err=True)
    run = _wait_for_end(client, receipt.run_id)
    if run.status != "Completed":
        raise CliError(describe_failure(run))
    echo(format_json(run.decode_output()))


def _wait_for_end(client: "EngineClient", run_id: str) -> "RunView":
    from .engine_client import existing

    pause = _FIRST_POLL_SECONDS
    while (run := existing(client.get_run_sync(run_id))).ended_at is None:
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)
    return run


def describe_failure(run: "RunView") -> str:
    output = run.decode_output()
    error = output if isinstance(output, dict) else {}
    if run.status == "Cancelled":
        return printable(error.get("message"))
    if run.status == "Skipped":
        return printable(f"the run was skipped: {error.get('message')}")
    return printable(f"the run failed: {error.get('name') or 'Error'}: {error.get('message') or 'no message'}")
