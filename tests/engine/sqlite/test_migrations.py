"""Migrations: scripts that bring a database to the newest schema."""

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database
from durably.engine.sqlite.schema import MIGRATIONS
from durably.protocol.engine_errors import DatabaseCorruptError, DatabaseTooNewError

NEXT = "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('kept')"


def open_with(path: Path, *further: str) -> tuple[int, int]:
    """Open the database with further migrations. Returns its version, and its number of notes."""
    with contextlib.closing(open_database(path, Durability.FULL, (*MIGRATIONS, *further))) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'notes'").fetchone()
        return version, connection.execute("SELECT count(*) FROM notes").fetchone()[0] if tables else 0


def test_migration_is_applied_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "durably")
    first = len(MIGRATIONS)
    assert open_with(path) == (first, 0)
    assert "migrated" not in caplog.text
    for _ in range(2):
        assert open_with(path, NEXT) == (first + 1, 1)
    assert caplog.text.count(f"migrated from schema version {first} to {first + 1}") == 1


def test_failed_migration_changes_nothing(path: Path) -> None:
    open_with(path)
    with pytest.raises(DatabaseCorruptError):
        open_with(path, f"{NEXT}; INSERT INTO owner (id, epoch) VALUES (1, 1)")
    assert open_with(path) == (len(MIGRATIONS), 0)


def test_database_of_a_newer_version_is_refused(path: Path) -> None:
    open_with(path, NEXT)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        before = list(connection.iterdump())
    with pytest.raises(DatabaseTooNewError, match=f"version {len(MIGRATIONS) + 1}.* up to {len(MIGRATIONS)}"):
        open_with(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert list(connection.iterdump()) == before
