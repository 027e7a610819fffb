"""``durably check``."""

from pathlib import Path

import click

from .options import database_option
from .text import echo


@click.command()
@database_option
def check(database: Path) -> None:
    """Examine the database --db: is the file sound, and does all in it fit together?

    Only reads; the engine may be running. Prints what is wrong; exit code 1 if anything is.
    """
    from durably.engine.sqlite.maintenance import check_database

    findings = check_database(database)
    for finding in findings:
        echo(finding)
    if findings:
        raise click.exceptions.Exit(1)
    echo(f"{database}: no fault found")
