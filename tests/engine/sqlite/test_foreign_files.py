"""Files of other programs, which an engine refuses and leaves as they are."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from durably import Embedded
from durably.engine.sqlite.database import refuse_foreign
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.engine_errors import DatabaseCorruptError

from ..conftest import QUICK, opened, send

Contents = dict[str, tuple[int, bytes]]


def contents(directory: Path) -> Contents:
    """The modes and bytes of all files."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {file.name: (file.stat().st_mode, file.read_bytes()) for file in files}


def write_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")


def write_database_in_a_log(path: Path) -> None:
    """Its tables are in the write-ahead log alone, as after a crash."""
    source = path.with_name("source.db")
    with contextlib.closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE customers (id INTEGER)")
        shutil.copy(source, path)
        shutil.copy(f"{source}-wal", f"{path}-wal")
    source.unlink()


def write_marked_database(path: Path) -> None:
    """It has an ``application_id``, and no tables."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("VACUUM")


def write_text(path: Path) -> None:
    path.write_text("not a database")


@pytest.fixture(params=[write_database, write_database_in_a_log, write_marked_database, write_text])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of another program, which others may read."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    path = directory / "app.sqlite3"
    write: Callable[[Path], None] = request.param
    write(path)
    path.chmod(0o664)
    return path


MESSAGE = "another program|not a database"


async def test_engine_leaves_foreign_file_as_it_is(foreign: Path) -> None:
    before = contents(foreign.parent)
    with pytest.raises(DatabaseCorruptError, match=MESSAGE):
        await SqliteEngine.open(foreign, QUICK)
    assert contents(foreign.parent) == before
    assert len(os.listdir(foreign.parent)) == len(before)


async def test_app_leaves_foreign_file_as_it_is(foreign: Path) -> None:
    before = contents(foreign.parent)
    with pytest.raises(DatabaseCorruptError, match=MESSAGE):
        await Embedded(foreign).start()
    assert contents(foreign.parent) == before
    assert len(os.listdir(foreign.parent)) == len(before)


async def test_database_whose_tables_are_in_its_log_is_opened(path: Path, tmp_path: Path) -> None:
    """A new engine that was killed leaves such files."""
    copy = tmp_path / "copy.db"
    async with opened(path) as engine:
        await send(engine, "a")
        shutil.copy(path, copy)
        shutil.copy(f"{path}-wal", f"{copy}-wal")
    refuse_foreign(copy)
    async with opened(copy) as engine:
        assert len(await engine.list_events()) == 1
