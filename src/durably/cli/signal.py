"""``durably signal``."""

from typing import TYPE_CHECKING, Any

import click

from .data import read_json
from .options import client_options
from .text import echo

if TYPE_CHECKING:
    from .engine_client import EngineClient


@click.command()
@click.argument("name")
@click.option("--data", metavar="JSON|@FILE|-", help="What the step is to return: JSON, a file, or - for stdin.")
@client_options
def signal(client: "EngineClient", name: str, data: str | None) -> None:
    """Wake the run that waits for the signal NAME, and print its id.

    Exit code 1 if no run waits for it.
    """
    value: Any = None if data is None else read_json(data, "--data", object)
    echo(client.signal_sync(name, value))
