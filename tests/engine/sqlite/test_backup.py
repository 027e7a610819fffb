"""Copies of a database, made while an engine uses it or not."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.maintenance import back_up, check_database
from durably.protocol.engine_errors import BackupFailedError, DatabaseCorruptError, DatabaseMissingError

from ...waiting import async_eventually
from ..conftest import ended, only_run, opened, output, send, step_is
from ..small_app import SmallApp, Steps


async def test_copy_is_whole_and_continues_by_itself(engine: SqliteEngine, path: Path, app: SmallApp) -> None:
    """Made in the middle of load; whatever had been acknowledged when it began is in it, and its runs continue."""

    @app.function("patient")
    def patient(steps: Steps) -> object:
        number = steps.run("number", lambda: steps.event.data["n"])
        steps.wait_for_event("wait", "go", timeout="1h")
        return number

    copy = path.with_name("copy.db")
    await engine.sync_app(app.sync_request())
    waiting = await only_run(engine, await send(engine, "patient", n=1))
    await step_is(engine, waiting, "wait", "waiting")
    acknowledged: list[str] = []
    warm = asyncio.Event()

    async def load() -> None:
        while True:
            acknowledged.append(await send(engine, "patient", n=2))
            if len(acknowledged) == 20:
                warm.set()

    loading = asyncio.create_task(load())
    await warm.wait()
    before = list(acknowledged)
    await asyncio.to_thread(back_up, path, copy)
    # A small copy is sometimes made within one send; the engine goes on all the same.
    await async_eventually(lambda: len(acknowledged) > len(before), "another event is acknowledged")
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await engine.close()

    assert check_database(copy) == []
    async with opened(copy) as restored:
        for event_id in before:
            assert await restored.get_event(event_id) is not None
        for event_id in before:
            await step_is(restored, await only_run(restored, event_id), "wait", "waiting")
        await send(restored, "go")
        assert output(await ended(restored, waiting)) == 1


async def test_a_copy_is_made_without_an_engine_and_of_one_that_was_killed(path: Path) -> None:
    """Rows that are only in the write-ahead log are in the copy, too."""
    async with opened(path) as engine:
        await send(engine, "kept")
        # As a kill leaves it: the log not yet folded into the file.
        torn = path.with_name("torn.db")
        await asyncio.to_thread(torn.write_bytes, await asyncio.to_thread(path.read_bytes))
        log = await asyncio.to_thread(path.with_name("engine.db-wal").read_bytes)
        await asyncio.to_thread(torn.with_name("torn.db-wal").write_bytes, log)
    for number, database in enumerate((path, torn)):
        copy = path.with_name(f"copy-{number}.db")
        assert back_up(database, copy) == copy.stat().st_size
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT name FROM events").fetchall() == [("kept",)]


def test_failed_backup_leaves_no_file(tmp_path: Path) -> None:
    database, copy = tmp_path / "engine.db", tmp_path / "copy.db"
    with pytest.raises(DatabaseMissingError, match=r"there is no database .*engine\.db"):
        back_up(database, copy)
    database.write_bytes(b"something else" * 1000)
    with pytest.raises(DatabaseCorruptError):
        back_up(database, copy)
    database.write_bytes(b"")
    with pytest.raises(DatabaseCorruptError, match="it is empty"):
        back_up(database, copy)
    assert {file.name for file in tmp_path.iterdir()} == {"engine.db"}


def fill(database: Path, rows: int) -> None:
    """Make a database that is larger than one part of a copy."""
    with contextlib.closing(open_database(database, Durability.OFF)) as connection:
        connection.execute("CREATE TABLE ballast (content)")
        connection.executemany("INSERT INTO ballast VALUES (zeroblob(?))", [(1_000_000,)] * rows)


def test_writes_of_an_engine_do_not_restart_a_copy(path: Path) -> None:
    fill(path, rows=12)
    copy = path.with_name("copy.db")
    reported: list[tuple[int, int]] = []
    with contextlib.closing(sqlite3.connect(path)) as writer:

        def write(copied: int, total: int) -> None:
            reported.append((copied, total))
            with writer:
                writer.execute("UPDATE ballast SET content = zeroblob(1000001)")
                writer.execute("INSERT INTO ballast VALUES ('new')")

        assert back_up(path, copy, on_progress=write) == reported[-1][1]
    assert len(reported) > 2
    assert sorted(set(reported)) == reported
    assert reported[-1][0] == reported[-1][1]
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        sizes = connection.execute("SELECT length(content), count(*) FROM ballast GROUP BY 1").fetchall()
        assert sizes == [(1_000_000, 12)]


def test_an_interrupted_copy_leaves_nothing_behind(path: Path) -> None:
    fill(path, rows=1)

    def interrupt(copied: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(path, path.with_name("copy.db"), on_progress=interrupt)
    assert not list(path.parent.glob("copy.db*"))


async def test_a_copy_takes_no_files_place(path: Path) -> None:
    async with opened(path):
        pass
    taken = path.with_name("taken.db")
    await asyncio.to_thread(taken.write_text, "precious")
    with pytest.raises(BackupFailedError, match=r"taken\.db already exists"):
        back_up(path, taken)
    assert await asyncio.to_thread(taken.read_text) == "precious"
    with pytest.raises(BackupFailedError, match="could not be copied"):
        back_up(path, path.with_name("no such directory") / "copy.db")


@pytest.mark.parametrize("operation", ["unlink", "create"])
async def test_a_partial_copy_of_somebody_else_is_named(
    path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a directory with the sticky bit, where users cannot remove the files of others."""
    async with opened(path):
        pass
    copy = path.with_name("copy.db")
    partial = copy.with_name("copy.db.partial")
    partial.write_text("somebody else's")

    def unlink(file: Path, missing_ok: bool = False) -> None:
        if operation == "unlink":
            raise PermissionError(1, "Operation not permitted", str(file))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(BackupFailedError, match=r"copy\.db\.partial"):
        back_up(path, copy)
    assert partial.read_text() == "somebody else's"
    assert not copy.exists()
