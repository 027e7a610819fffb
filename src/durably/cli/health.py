"""``durably health``: whether an engine is ready, for supervisors of containers."""

from typing import TYPE_CHECKING

import click

from .options import client_options
from .text import echo

if TYPE_CHECKING:
    from .engine_client import EngineClient


@click.command()
@client_options
def health(client: "EngineClient") -> None:
    """Exit with 0 if the engine takes events and calls apps, with 1 if not.

    It asks the engine's /ready, which needs no keys.
    """
    client.check_ready()
    echo("ready")
