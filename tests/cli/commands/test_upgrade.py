"""docs/how-to/upgrade.md: a database of a newer version, and the way back to a backup."""

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

from durably.engine.sqlite.schema import MIGRATIONS

from ..conftest import Command, Run, Start

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


def test_a_newer_database_is_refused_and_a_backup_is_the_way_back(start: Start, run: Run, directory: Path) -> None:
    database, before = directory / "durably.db", directory / "before.db"
    run_engine(start)
    assert run("backup", "before.db", "--db", "durably.db").status == 0
    assert (schema_version(database), schema_version(before)) == (len(MIGRATIONS), len(MIGRATIONS))
    assert run("check", "--db", "durably.db").status == 0
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
