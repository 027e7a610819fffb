"""The database: who owns it, what it is refused for, and how things are written to it."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from durably.engine.embedded import EmbeddedEngine
from durably.engine.embedded.reader import Reader
from durably.engine.embedded.schema import MIGRATIONS, open_database, take_ownership
from durably.engine.embedded.settings import Durability
from durably.engine.embedded.writer import Writer
from durably.engine.errors import (
    DatabaseCorruptError,
    DatabaseLockedError,
    DatabaseLostError,
    DatabaseTooNewError,
    EngineClosedError,
)
from durably.protocol.events import Event

from .conftest import QUICK, opened, send
from .small_app import SmallApp


async def test_one_engine_owns_a_database(path: Path) -> None:
    async with opened(path):
        with pytest.raises(DatabaseLockedError, match=r"engine\.db belongs to another engine"):
            await EmbeddedEngine.open(path, QUICK)
    async with opened(path):
        pass


async def test_directories_are_made(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "down" / "engine.db") as engine:
        assert await engine.list_runs() == []


async def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(DatabaseTooNewError, match="update Durably"):
        await EmbeddedEngine.open(path, QUICK)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    connection.close()


@pytest.fixture
def text_file(path: Path) -> Path:
    path.write_bytes(b"this is a text file, and by no means a database" * 100)
    return path


async def test_what_is_no_database_is_refused(text_file: Path) -> None:
    with pytest.raises(DatabaseCorruptError, match=r"engine\.db"):
        await EmbeddedEngine.open(text_file, QUICK)


async def test_another_programs_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.close()
    with pytest.raises(DatabaseCorruptError, match="another program"):
        await EmbeddedEngine.open(path, QUICK)


async def test_a_damaged_head_is_named_and_the_database_let_go(path: Path, app: SmallApp) -> None:
    app.function("slow")(lambda steps: None)
    app.gate.clear()
    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        await send(engine, "slow")
        await app.wait_for_calls(1)
        run_id = (await engine.list_runs())[0].id
    connection = sqlite3.connect(path)
    connection.execute("UPDATE heads SET head = x'c1'")
    connection.commit()
    connection.close()
    for _ in range(2):
        with pytest.raises(DatabaseCorruptError, match=run_id):
            await EmbeddedEngine.open(path, QUICK)


async def test_an_engine_whose_database_was_taken_over_stops(path: Path) -> None:
    async with opened(path) as engine:
        await send(engine, "before")
        other = sqlite3.connect(path, isolation_level=None)
        take_ownership(other, writes_canonical=False)
        with pytest.raises(DatabaseLostError):
            await send(engine, "after")
        with engine.watch() as updates:
            async for _ in updates:
                pass
        with pytest.raises(EngineClosedError):
            await send(engine, "later")
        assert other.execute("SELECT name FROM events").fetchall() == [("before",)]
        other.close()


async def test_what_waits_together_is_committed_together_and_failures_stay_alone(path: Path) -> None:
    connection = open_database(path, Durability.FULL)
    connection.execute("CREATE TABLE things (name TEXT NOT NULL)")
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    connection.set_trace_callback(count)
    writer = Writer(connection, take_ownership(connection, writes_canonical=False).epoch, on_lost=lambda: None)
    commits = 0
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait()

    def add(name: str | None) -> str | None:
        connection.execute("INSERT INTO things VALUES ('half done')")
        connection.execute("INSERT INTO things VALUES (?)", (name,))
        connection.execute("DELETE FROM things WHERE name = 'half done'")
        return name

    writer.start()
    held = writer.submit(hold)
    await asyncio.to_thread(started.wait)
    order: list[str | None] = []
    futures = [writer.submit(lambda name=name: add(name), order.append) for name in ("a", None, "c", "d")]  # type: ignore[misc]
    go.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert commits == 2, "one for what held the writer up, one for all that waited meanwhile"
    assert (results[0], results[2], results[3]) == ("a", "c", "d")
    assert isinstance(results[1], sqlite3.IntegrityError)
    assert order == ["a", "c", "d"]
    reader = Reader(path)
    assert await reader.read(lambda db: db.execute("SELECT name FROM things").fetchall()) == [("a",), ("c",), ("d",)]
    await reader.close()
    await writer.close()
    with pytest.raises(EngineClosedError):
        writer.submit(lambda: None)
    connection.close()


async def test_a_result_is_there_for_all_once_it_is_told(path: Path) -> None:
    """What was acknowledged, any other connection sees."""
    async with opened(path) as engine:
        other = sqlite3.connect(path, isolation_level=None)
        for number in range(50):
            (event_id,) = await engine.send_events([Event(name=f"n{number}")])
            assert other.execute("SELECT name FROM events WHERE id = ?", (event_id,)).fetchone() == (f"n{number}",)
        other.close()


async def test_what_was_submitted_is_written_though_its_sender_has_gone(path: Path) -> None:
    async with opened(path) as engine:
        task = asyncio.create_task(engine.send_events([Event(name="orphan")]))
        await asyncio.sleep(0)
        task.cancel()
        await send(engine, "next")
        assert {event.event.name for event in await engine.list_events()} == {"orphan", "next"}


@pytest.mark.parametrize("durability", list(Durability))
async def test_durability(path: Path, durability: Durability) -> None:
    connection = open_database(path, durability)
    expected = {Durability.FULL: 2, Durability.NORMAL: 1}
    assert connection.execute("PRAGMA synchronous").fetchone() == (expected[durability],)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_database_of_each_earlier_version_is_migrated(path: Path) -> None:
    """With one version so far: opened twice, it is migrated once."""
    for _ in range(2):
        connection = open_database(path, Durability.FULL)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        connection.close()
