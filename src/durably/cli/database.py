"""``durably backup`` and ``durably check``, which read the database of an engine."""

from pathlib import Path

import click

from .options import database_option
from .text import echo


@click.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@database_option
def backup(database: Path, destination: Path) -> None:
    """Copy the database --db to the new file DEST.

    The engine may be running. The copy contains everything that was acknowledged when it began. To restore it, stop
    the engine, and start one with --db DEST.
    """
    from durably.engine.sqlite.maintenance import back_up

    size = back_up(database, destination)
    echo(f"{destination}: {size:,} bytes")


@click.command()
@database_option
def check(database: Path) -> None:
    """Check the database --db: the file's integrity, and the consistency of its rows.

    The command only reads; the engine may be running. It prints faults; the exit code is 1 if there are any.
    """
    from durably.engine.sqlite.maintenance import check_database

    findings = check_database(database)
    for finding in findings:
        echo(finding)
    if findings:
        raise click.exceptions.Exit(1)
    echo(f"{database}: no fault found")
