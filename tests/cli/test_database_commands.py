"""``durably backup``, ``durably check`` and ``durably start --retention``."""

import sqlite3
from pathlib import Path

from .conftest import Run, Start


def test_a_backup_of_a_running_engine_is_sound(start: Start, run: Run, directory: Path) -> None:
    engine = start("dev", "--port", "0", "--db", "engine.db")
    origin = engine.origin
    assert run("send", "hello", "--url", origin).status == 0
    backup = run("backup", "copy.db", "--db", "engine.db")
    assert (backup.status, backup.stdout.startswith("copy.db: ")) == (0, True)
    for database in ("engine.db", "copy.db"):
        assert run("check", "--db", database).stdout == f"{database}: no fault found\n"
    with sqlite3.connect(directory / "copy.db") as connection:
        assert connection.execute("SELECT name FROM events").fetchall() == [("hello",)]
        connection.execute("UPDATE events SET body = 'x'")
    found = run("check", "--db", "copy.db")
    assert (found.status, "is not JSON" in found.stdout) == (1, True)
    again = run("backup", "copy.db", "--db", "engine.db")
    assert (again.status, "copy.db already exists" in again.stderr) == (1, True)


def test_missing_database_is_an_error(run: Run, directory: Path) -> None:
    for command in (("check",), ("backup", "copy.db")):
        result = run(*command, "--db", "nosuch.db")
        assert (result.status, result.stderr) == (1, "Error: there is no database nosuch.db\n")
    assert list(directory.iterdir()) == []


def test_invalid_retention_is_refused(run: Run) -> None:
    for age in ("soon", "0", "0s"):
        result = run("start", "--db", "engine.db", "--retention", age)
        assert (result.status, "'--retention'" in result.stderr) == (2, True)
