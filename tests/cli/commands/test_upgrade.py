"""docs/how-to/upgrade.md: a database of the first version under this one, and the way back."""

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

from durably.engine.sqlite.migrations import MIGRATIONS

from ..conftest import Command, Run, Start

FIRST_VERSION = Path(__file__).parents[2] / "engine" / "sqlite" / "first_version.sql"
PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "upgrade.md").read_text()
KEYS = {"DURABLY_SIGNING_KEY": "signkey-prod-" + "ab" * 32, "DURABLY_EVENT_KEY": "key"}


def execute(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def schema_version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def run_engine(start: Start) -> Command:
    """An engine that has started and ended."""
    engine = start("start", "--db", "durably.db", "--port", "0", **KEYS)
    engine.until("engine started")
    assert engine.stop() == 0
    return engine


def test_an_upgrade_and_the_way_back(start: Start, run: Run, directory: Path) -> None:
    database, before = directory / "durably.db", directory / "before.db"
    execute(database, FIRST_VERSION.read_text())
    # Commands never migrate; the engine does, and says so.
    assert run("backup", "before.db", "--db", "durably.db").status == 0
    assert (schema_version(database), schema_version(before)) == (1, 1)
    engine = run_engine(start)
    assert schema_version(database) == len(MIGRATIONS)
    migrated = f"database migrated from schema version 1 to {len(MIGRATIONS)}"
    engine.until(f"{migrated}: earlier versions .* can no longer open")
    checked = run("check", "--db", "durably.db")
    assert checked.status == 0, checked.stderr
    assert "database migrated" not in run_engine(start).output
    # The state after a newer version has migrated the database:
    newer = len(MIGRATIONS) + 1
    execute(database, f"PRAGMA user_version = {newer}")
    content = database.read_bytes()
    refused = run("start", "--db", "durably.db", "--port", "0", **KEYS)
    shown = re.search(r"```\nthe database durably.db (has schema version) \d+, (and .* up to) \d+\n```", PAGE)
    assert shown is not None
    assert refused.status == 1
    assert f"{shown[1]} {newer}, {shown[2]} {len(MIGRATIONS)}" in refused.stderr
    assert database.read_bytes() == content
    # Back to the backup.
    database.rename(directory / "after.db")
    shutil.copy(before, database)
    run_engine(start)
