"""The database: who owns it, what it is refused for, and how things are written to it."""

import asyncio
import contextlib
import datetime as dt
import functools
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from durably.engine.model.runs import RunStatus
from durably.engine.model.settings import Durability
from durably.engine.sqlite import database
from durably.engine.sqlite.database import open_database, take_ownership
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.reader import Reader
from durably.engine.sqlite.writer import Writer
from durably.protocol.engine_errors import (
    DatabaseCorruptError,
    DatabaseLockedError,
    DatabaseLostError,
    EngineClosedError,
    StaleCallError,
)
from durably.protocol.events import Event

from ..conftest import QUICK, ended, only_run, opened, output, send, until
from ..small_app import SmallApp, Steps

T = TypeVar("T")


async def test_one_engine_owns_a_database(path: Path) -> None:
    async with opened(path):
        with pytest.raises(DatabaseLockedError, match=r"engine\.db belongs to another engine"):
            await SqliteEngine.open(path, QUICK)
    async with opened(path):
        pass


def change(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


async def test_a_run_whose_run_state_is_damaged_fails_when_the_engine_starts(path: Path, app: SmallApp) -> None:
    """And no other."""

    @app.function("slow")
    def slow(steps: Steps) -> str:
        return "fine"

    app.gate.clear()
    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        first, second = [await only_run(engine, await send(engine, "slow")) for _ in range(2)]
        await app.wait_for_calls(2)
    change(path, f"UPDATE run_states SET state = x'c1' WHERE run_key = (SELECT key FROM runs WHERE id = '{first}')")
    app.gate.set()
    async with opened(path) as engine:
        damaged = await ended(engine, first)
        assert damaged.status == RunStatus.FAILED
        assert output(damaged)["name"] == "DatabaseCorruptError"
        assert "run state" in output(damaged)["message"]
        assert output(await ended(engine, second)) == "fine"


@pytest.mark.parametrize("step", ["nap", "retried", "called", "listed"])
async def test_a_run_whose_run_state_is_damaged_fails_when_it_is_to_move(path: Path, app: SmallApp, step: str) -> None:
    long_backoff = msgspec.structs.replace(QUICK, backoff=lambda attempt, jitter: dt.timedelta(hours=1))

    @app.function("f")
    def f(steps: Steps) -> None:
        if step == "nap":
            steps.sleep("nap", "1h")
        elif step == "retried":
            raise ValueError
        steps.wait_for_event("wait", "go")

    async with opened(path, long_backoff) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "f"))
        if step == "retried":
            await until(engine, lambda: has(engine.run_calls(run_id), lambda call: call.error is not None))
        else:
            await until(engine, lambda: has(engine.run_steps(run_id), lambda step: True))
    change(path, "UPDATE run_states SET state = x'c1'")
    for table in ("waits", "delayed_calls"):
        change(path, f"UPDATE {table} SET due = 1 WHERE '{step}' IN ('nap', 'retried')")
    async with opened(path, long_backoff) as engine:
        if step == "called":
            await send(engine, "go")
        elif step == "listed":
            assert [run.status for run in await engine.list_runs()] == [RunStatus.RUNNING]
            assert await engine.cancel_run(run_id) is False
        assert output(await ended(engine, run_id))["name"] == "DatabaseCorruptError"


async def has(found: Awaitable[list[T]], is_so: Callable[[T], bool]) -> bool:
    return any(is_so(each) for each in await found)


@pytest.mark.parametrize("how", ["written", "read"])
async def test_a_database_that_turns_out_to_be_damaged_stops_the_engine(path: Path, how: str) -> None:
    """Nothing is acknowledged that might not be there."""
    async with opened(path) as engine:
        await send(engine, "before")
        root = await engine._read(
            lambda connection: connection.execute(
                "SELECT rootpage, page_size FROM sqlite_schema, pragma_page_size WHERE name = 'events'"
            ).fetchone()
        )
    with path.open("r+b") as file:
        file.seek((root[0] - 1) * root[1])
        file.write(b"\xff" * root[1])
    async with opened(path) as engine:
        with pytest.raises(DatabaseCorruptError, match="durably check"):
            await (send(engine, "after") if how == "written" else engine.list_events())
        await engine.wait_closed()
        with pytest.raises(EngineClosedError):
            await send(engine, "later")


async def test_an_engine_whose_database_was_taken_over_stops(path: Path) -> None:
    async with opened(path) as engine:
        await send(engine, "before")
        other = sqlite3.connect(path, isolation_level=None)
        take_ownership(other)
        with pytest.raises(DatabaseLostError):
            await send(engine, "after")
        with engine.watch() as updates:
            async for _ in updates:
                pass
        with pytest.raises(EngineClosedError):
            await send(engine, "later")
        assert other.execute("SELECT name FROM events").fetchall() == [("before",)]
        other.close()


async def test_waiting_writes_share_a_commit_and_failures_stay_alone(path: Path) -> None:
    connection = open_database(path, Durability.FULL)
    connection.execute("CREATE TABLE things (name TEXT NOT NULL)")
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    connection.set_trace_callback(count)
    writer = Writer(connection, take_ownership(connection), on_lost=lambda reason: None)
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

    order: list[str | None] = []
    writer.start(lambda unit: (result := unit(), result), order.append)
    held = writer.submit(hold)
    await asyncio.to_thread(started.wait)
    futures = [writer.submit(functools.partial(add, name)) for name in ("a", None, "c", "d")]
    go.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    await held
    assert commits == 2, "one for the write that delayed the writer, one for all that waited for it"
    assert (results[0], results[2], results[3]) == ("a", "c", "d")
    assert isinstance(results[1], sqlite3.IntegrityError)
    assert order == [None, "a", "c", "d"]
    reader = Reader(path, lambda reason: None)
    assert await reader.read(lambda db: db.execute("SELECT name FROM things").fetchall()) == [("a",), ("c",), ("d",)]
    await reader.close()
    await writer.close()
    with pytest.raises(EngineClosedError):
        writer.submit(lambda: None)
    connection.close()


async def test_failed_write_rolls_back_and_repeats_only_its_group(path: Path) -> None:
    connection = open_database(path, Durability.FULL)
    connection.execute("CREATE TABLE things (name TEXT NOT NULL)")
    epoch = take_ownership(connection)
    done: list[str] = []
    writer = Writer(connection, epoch, on_lost=lambda reason: None, on_rollback=lambda: done.append("undone"))

    def add(name: str, error: Exception | None = None) -> None:
        done.append(name)
        connection.execute("INSERT INTO things VALUES (?)", (name,))
        if error is not None:
            raise error

    def refuse() -> None:
        done.append("refused")
        raise StaleCallError("too late")

    futures = [writer.submit(unit) for unit in (lambda: add("a"), refuse)]
    writer.start(lambda unit: (unit(), None), lambda outcome: None)
    await asyncio.gather(*futures, return_exceptions=True)
    assert done == ["a", "refused"], "who has changed nothing is not in anybody's way"
    done.clear()
    futures = [writer.submit(unit) for unit in (lambda: add("b"), lambda: add("c", StaleCallError("no")), refuse)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert done == ["b", "c", "undone", "b", "c", "undone", "refused"]
    assert [type(result) for result in results] == [type(None), StaleCallError, StaleCallError]
    await writer.close()
    assert connection.execute("SELECT name FROM things").fetchall() == [("a",), ("b",)]
    connection.close()


async def test_acknowledged_write_is_visible_to_all_connections(path: Path) -> None:
    """Acknowledged writes are visible to other connections."""
    async with opened(path) as engine:
        other = sqlite3.connect(path, isolation_level=None)
        for number in range(50):
            (event_id,) = await engine.send_events([Event(name=f"n{number}")])
            assert other.execute("SELECT name FROM events WHERE id = ?", (event_id,)).fetchone() == (f"n{number}",)
        other.close()


async def test_submitted_write_is_committed_though_its_caller_is_cancelled(path: Path) -> None:
    async with opened(path) as engine:
        task = asyncio.create_task(engine.send_events([Event(name="orphan")]))
        await asyncio.sleep(0)
        task.cancel()
        await send(engine, "next")
        assert {event.event.name for event in await engine.list_events()} == {"orphan", "next"}


@pytest.mark.parametrize("durability", list(Durability))
async def test_durability_sets_sqlites_synchronous_mode(path: Path, durability: Durability) -> None:
    connection = open_database(path, durability)
    expected = {Durability.FULL: 2, Durability.NORMAL: 1, Durability.OFF: 0}
    assert connection.execute("PRAGMA synchronous").fetchone() == (expected[durability],)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_the_log_shrinks_after_a_long_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_MOST_LOG_BYTES", 100_000)
    log = path.with_name("engine.db-wal")
    async with opened(path) as engine:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        while log.stat().st_size < 8_000_000:
            await engine.send_events([Event(name="e", data={"text": "x" * 400_000})])
        reader.close()
        for _ in range(3):
            await engine.send_events([Event(name="e", data={"text": "x" * 400_000})])
        assert log.stat().st_size < 8_000_000
