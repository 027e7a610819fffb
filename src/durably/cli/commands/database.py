"""``durably backup`` and ``durably check``, which read the database of an engine."""

from pathlib import Path

import click

from durably.cli.options import database_option, json_option
from durably.cli.output.text import bar, echo, echo_json, progress_line


@click.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@json_option("both paths, and the size in bytes")
@database_option
def backup(database: Path, destination: Path, as_json: bool) -> None:
    """Copy the database --db to the new file DEST.

    The engine may be running. The copy contains everything that was acknowledged when it began. To restore it, stop
    the engine, and start one with --db DEST.
    """
    from durably.engine.sqlite.maintenance import back_up

    with progress_line() as show_progress:
        size = back_up(
            database,
            destination,
            on_progress=lambda copied, total: show_progress(
                f"{bar(copied, total)}  copied {copied:,} of {total:,} bytes"
            ),
        )
    if as_json:
        echo_json({"database": str(database), "destination": str(destination), "bytes": size})
    else:
        echo(f"{destination}: {size:,} bytes")


@click.command()
@json_option("the path, and the faults, an empty array if there are none")
@database_option
def check(database: Path, as_json: bool) -> None:
    """Check the database --db: the file's integrity, and the consistency of its rows.

    The command only reads; the engine may be running. It prints faults; the exit code is 1 if there are any.
    """
    from durably.engine.sqlite.maintenance import check_database

    with progress_line() as show_progress:
        findings = check_database(
            database,
            on_progress=lambda part, number, total: show_progress(
                f"{bar(number - 1, total)}  checking {part} ({number} of {total})"
            ),
        )
    if as_json:
        echo_json({"database": str(database), "faults": findings})
    else:
        for finding in findings:
            echo(finding)
    if findings:
        raise click.exceptions.Exit(1)
    if not as_json:
        echo(f"{database}: no fault found")
