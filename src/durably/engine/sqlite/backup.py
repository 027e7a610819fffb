"""Copying a database, whether an engine uses it or not.

A copy is what the database was at one moment: everything that had been acknowledged by then, and nothing by halves.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from durably.engine.core.errors import BackupFailedError

from .schema import open_existing


def back_up(database: Path, destination: Path) -> int:
    """Copy a database to a file of its own, and answer with the bytes that it has.

    An engine that is running goes on meanwhile. ``destination`` appears once the copy is complete and on the disk.
    Raises ``BackupFailedError``, ``DatabaseMissingError``, ``DatabaseCorruptError``.
    """
    if destination.exists():
        raise BackupFailedError(f"{destination} exists already; name a file that is to be made")
    partial = destination.with_name(destination.name + ".partial")
    with contextlib.closing(open_existing(database)) as source:
        try:
            _copy(source, partial)
            _flush(partial)
            partial.replace(destination)
            _flush(destination.parent)
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise BackupFailedError(f"{database} could not be copied to {destination}: {error}") from error
    return destination.stat().st_size


def _copy(source: sqlite3.Connection, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    # Exclusively: a file that somebody else makes here in between would stay theirs to read.
    os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(partial)) as target:
        # In one step: what an engine writes meanwhile would have each further step begin from the start.
        source.backup(target)
        # One file, which is whole by itself; an engine that opens it turns to a write-ahead log again.
        target.execute("PRAGMA journal_mode = DELETE")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
