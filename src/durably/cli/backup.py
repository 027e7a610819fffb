"""``durably backup``."""

from pathlib import Path

import click

from .options import database_option
from .text import echo


@click.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@database_option
def backup(database: Path, destination: Path) -> None:
    """Copy the database --db to the new file DEST.

    The engine may be running, and goes on meanwhile. The copy holds everything that was acknowledged when it began.
    To go back to it, stop the engine, and start one with --db DEST.
    """
    from durably.engine.sqlite.maintenance import back_up

    size = back_up(database, destination)
    echo(f"{destination}: {size:,} bytes")
