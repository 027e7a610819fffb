"""The commit log: what it refuses, what a standby gets, and who may append."""

import asyncio
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from tests.ports import free_port
from tests.waiting import async_eventually

from durably.engine.api.metrics import CATALOGUE
from durably.engine.log.log import CommitLog
from durably.engine.log.standby import follow
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.maintenance import back_up
from durably.engine.sqlite.server import serve_database
from durably.protocol.engine_errors import DatabaseLostError, LogDamagedError, LogRefusedError
from durably.protocol.events import Event
from durably.protocol.headers import ServerKind

from ...postgres import PostgresServer


async def send(engine: SqliteEngine, *numbers: int) -> None:
    for number in numbers:
        await engine.send_events([Event(name="shop/order.placed", data={"number": number, "price": 0.1})])


async def numbers_of(engine: SqliteEngine) -> list[int]:
    return sorted(event.data["number"] for event in await engine.list_events(limit=100))


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def replica(path: Path, url: str) -> Path:
    """A copy of the database that the log makes."""
    log = CommitLog(url)
    log.open_database(path, Durability.OFF).close()
    log.close()
    return path


async def test_an_empty_disk_gets_the_database_of_the_log(url: str, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    await send(engine, 1, 2, 3)
    await engine.close()
    engine = await SqliteEngine.open(tmp_path / "second.db", log=CommitLog(url))
    assert await numbers_of(engine) == [1, 2, 3]
    await send(engine, 4)
    await engine.close()
    # The first file is behind, and catches up.
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    assert await numbers_of(engine) == [1, 2, 3, 4]
    await engine.close()
    assert dump(tmp_path / "first.db") == dump(replica(tmp_path / "third.db", url))


async def test_a_database_that_exists_becomes_the_first_snapshot(url: str, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "first.db")
    await send(engine, 1)
    await engine.close()
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    await send(engine, 2)
    await engine.close()
    assert dump(tmp_path / "first.db") == dump(replica(tmp_path / "second.db", url))


async def test_a_leader_that_was_replaced_cannot_append(url: str, tmp_path: Path) -> None:
    """As after a pause for longer than its lease."""
    slow = CommitLog(url, lease=0.5)
    first = await SqliteEngine.open(tmp_path / "first.db", log=slow)
    await send(first, 1)
    slow._closing.set()  # It renews no more.
    log = CommitLog(url, lease=0.5)
    await follow(log, tmp_path / "second.db", Durability.OFF)
    second = await SqliteEngine.open(tmp_path / "second.db", log=log)
    with pytest.raises(DatabaseLostError):
        await send(first, 2)
    await first.wait_closed()
    assert isinstance(first.stop_error, DatabaseLostError)
    assert await numbers_of(second) == [1]
    await second.close()
    assert dump(replica(tmp_path / "first.db", url)) == dump(tmp_path / "second.db")


async def test_files_follow_a_log_that_has_lost_its_last_entry(postgres: PostgresServer, tmp_path: Path) -> None:
    """As after a failover to a replica that lagged. The log is the truth, and no file mixes two histories."""
    url = f"{postgres.url}?log={tmp_path.name}"
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    await send(engine, 1, 2)
    standby = CommitLog(url)
    connection = standby.open_database(tmp_path / "second.db", Durability.OFF)
    with psycopg.connect(postgres.url) as server:
        server.execute(
            "DELETE FROM durably.log_entries WHERE log = %s AND sequence = %s", (tmp_path.name, standby.sequence)
        )
    with pytest.raises(DatabaseLostError):
        await send(engine, 3)
    await engine.wait_closed()
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    await send(engine, 4)
    assert await numbers_of(engine) == [1, 4]
    assert (tmp_path / "first.db.replaced").exists()
    with pytest.raises(LogDamagedError, match="does not follow"):
        standby.catch_up(connection)
    connection.close()
    standby.open_database(tmp_path / "second.db", Durability.OFF).close()
    standby.close()
    await engine.close()
    assert dump(tmp_path / "second.db") == dump(tmp_path / "first.db")


async def test_an_idle_leader_that_was_replaced_stops(url: str, tmp_path: Path) -> None:
    slow = CommitLog(url, lease=10.0)  # It renews every two seconds.
    first = await SqliteEngine.open(tmp_path / "first.db", log=slow)
    second = None
    while second is None:  # The first one may renew before the second one claims.
        await asyncio.to_thread(slow.store.release, slow.node)
        with suppress(DatabaseLostError):
            second = await SqliteEngine.open(tmp_path / "second.db", log=CommitLog(url))
    await first.wait_closed()
    await second.close()


async def test_a_takeover_that_is_cancelled_gives_the_lease_back(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CommitLog(url, lease=300)
    claim, has_claimed, may_go_on = log._store.claim, threading.Event(), threading.Event()

    def claim_slowly(*arguments: Any) -> None:
        claim(*arguments)
        has_claimed.set()
        may_go_on.wait()

    monkeypatch.setattr(log._store, "claim", claim_slowly)
    opening = asyncio.create_task(SqliteEngine.open(tmp_path / "first.db", log=log))
    await asyncio.to_thread(has_claimed.wait)
    opening.cancel()
    asyncio.get_running_loop().call_later(0.1, may_go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await opening
    await (await SqliteEngine.open(tmp_path / "second.db", log=CommitLog(url))).close()
    log.close()


async def test_a_lease_keeps_standbys_away(url: str, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url, lease=300))
    with pytest.raises(DatabaseLostError):
        await SqliteEngine.open(tmp_path / "second.db", log=CommitLog(url))
    await send(engine, 1)
    log = CommitLog(url)
    following = asyncio.create_task(follow(log, tmp_path / "second.db", Durability.OFF))
    await asyncio.sleep(0.5)
    assert not following.done()
    await engine.close()
    await following
    assert dump(tmp_path / "first.db") == dump(tmp_path / "second.db")


def test_a_log_is_begun_while_another_thread_looks_for_its_leader(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CommitLog(url)
    look = log.store.open

    def look_too_early() -> object:
        found = look()
        log.open_database(tmp_path / "first.db", Durability.OFF).close()
        return found

    monkeypatch.setattr(log.store, "open", look_too_early)
    assert log.find_leader() is None
    assert log.key
    log.close()


async def test_snapshots_replace_old_entries(url: str, tmp_path: Path) -> None:
    log = CommitLog(url, lease=0.5, snapshot_bytes=1000)
    engine = await SqliteEngine.open(tmp_path / "first.db", log=log)
    # Object storage keeps entries for an hour.
    is_trimmed = (
        (lambda: log.store.read(0, 1)[0][0] > 1) if "postgresql" in url else (lambda: len(log.store.snapshots()) > 1)
    )
    number = 0
    while not is_trimmed():
        number += 1
        await send(engine, number)
    await engine.close()
    assert dump(replica(tmp_path / "second.db", url)) == dump(tmp_path / "first.db")


async def test_files_and_logs_of_different_databases_are_refused(make_url: object, url: str, tmp_path: Path) -> None:
    assert callable(make_url)
    other = make_url(f"{tmp_path.name}-other")
    for name, log_url in (("first.db", url), ("other.db", other)):
        engine = await SqliteEngine.open(tmp_path / name, log=CommitLog(log_url))
        await send(engine, 1)
        await engine.close()
    back_up(tmp_path / "first.db", tmp_path / "backup.db")
    plain = await SqliteEngine.open(tmp_path / "plain.db")
    await plain.close()
    for name, log_url in (
        ("first.db", other),
        ("plain.db", url),
        ("backup.db", url),
        ("first.db", make_url(f"{tmp_path.name}-empty")),
    ):
        before = dump(tmp_path / name)
        with pytest.raises(LogRefusedError, match=name):
            await SqliteEngine.open(tmp_path / name, log=CommitLog(log_url))
        assert dump(tmp_path / name) == before
    # A backup belongs to no log, so it may begin a new one.
    engine = await SqliteEngine.open(tmp_path / "backup.db", log=CommitLog(make_url(f"{tmp_path.name}-new")))
    assert await numbers_of(engine) == [1]
    await engine.close()


async def test_metrics_show_the_log(url: str, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    values = {
        metric.name: metric.samples[0].value for metric in await engine.read_metrics() if metric.name.startswith("log_")
    }
    assert values.pop("log_sequence") >= 1
    assert values.pop("log_bytes") > 100
    assert 0 < values.pop("log_lease_seconds") < 10
    assert values == {"log_up": 1, "log_leader": 1, "log_lag_entries": 0}
    assert {f"log_{name}" for name in ("up", "leader", "sequence", "lag_entries", "lease_seconds", "bytes")} == {
        family.name for family in CATALOGUE if family.name.startswith("log_")
    } - {"log_snapshot_age_seconds"}
    await engine.close()


async def test_a_copy_of_a_log_is_not_opened_without_it(url: str, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "first.db", log=CommitLog(url))
    await engine.close()
    with pytest.raises(LogRefusedError, match="first"):
        await SqliteEngine.open(tmp_path / "first.db")


async def test_the_engine_tells_its_part_in_the_log(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"event_keys": ["key" * 8], "port": 0}
    settings = EngineSettings(server_kind=ServerKind.CLOUD, signing_key="signkey-prod-" + "a" * 64)
    async with aiohttp.ClientSession() as http:

        async def ready(port: int) -> tuple[int, dict[str, Any]]:
            async with http.get(f"http://127.0.0.1:{port}/ready") as response:
                return response.status, await response.json()

        async def shown_log(port: int) -> dict[str, Any]:
            """A slow store leaves it out."""
            status, answer = await async_eventually(
                lambda: ready(port), "the log is shown", is_right=lambda found: "log" in found[1]
            )
            assert status == 200
            return dict(answer["log"])

        log = CommitLog(url)
        async with await serve_database(tmp_path / "first.db", settings, log=log, **options) as server:
            first_port = int(server.origin.rpartition(":")[2])
            shown = await shown_log(first_port)
            assert (shown["role"], shown["lag"], shown["store"]) == ("leader", 0, "")
            may_answer = threading.Event()
            monkeypatch.setattr(log, "state", lambda: may_answer.wait(30) and None)
            try:
                assert await ready(first_port) == (200, {"status": 200, "message": "OK"})
            finally:
                may_answer.set()
            port = free_port()
            standby = asyncio.create_task(
                serve_database(tmp_path / "second.db", settings, log=CommitLog(url), **options | {"port": port})
            )
            status, answer = await async_eventually(lambda: ready(port), "the standby answers", ignore=(OSError,))
            assert (status, "standby" in answer["error"]) == (503, True)
        async with await standby:
            assert (await shown_log(port))["role"] == "leader"
