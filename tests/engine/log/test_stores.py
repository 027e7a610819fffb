"""The stores of commit logs: one entry a number, leases by the store's clock, snapshots in parts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from durably.engine.log.log import open_store
from durably.engine.log.postgres import PostgresLog
from durably.engine.log.store import LeaderRecord, LogConflictError, LogRecord, LogStore, LogUnavailableError
from durably.protocol.engine_errors import LogDamagedError, LogRefusedError

from ...postgres import PostgresServer


@pytest.fixture
def store(url: str) -> Iterator[LogStore]:
    store = open_store(url)
    assert store.open() is None
    store.create(LogRecord("database", "key", from_snapshot=False))
    yield store
    store.close()


def test_the_first_record_stays(store: LogStore) -> None:
    first = LogRecord("database", "key", from_snapshot=False)
    assert store.create(LogRecord("other", "other", from_snapshot=True)) == first
    assert store.open() == first


def test_one_of_many_processes_gets_a_number(url: str, store: LogStore) -> None:
    """All have the same number, as a leader and the standbys that replace it."""

    def claim(number: int) -> bool:
        each = open_store(url)
        try:
            each.claim(1, b"%d" % number, LeaderRecord(str(number), "", 30))
        except LogConflictError:
            return False
        finally:
            each.close()
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(claim, range(8)))
    assert won.count(True) == 1
    [(sequence, payload)] = store.read(0, 10)
    assert (sequence, payload) == (1, b"%d" % won.index(True))
    leader = store.leader()
    assert leader is not None
    assert leader.node == str(won.index(True))


def test_only_the_leader_appends_and_each_number_once(store: LogStore) -> None:
    store.claim(1, b"a", LeaderRecord("first", "host:1", 30))
    store.append(2, b"b", "first")
    with pytest.raises(LogConflictError):
        store.append(2, b"c", "first")
    for node in ("second", "first"):
        with pytest.raises(LogConflictError):
            store.claim(2 if node == "first" else 3, b"d", LeaderRecord(node, "", 30))
    store.release("second")
    leader = store.leader()
    assert leader is not None
    assert (leader.node, leader.address, 20 < leader.remaining < 32) == ("first", "host:1", True)
    store.release("first")
    store.claim(3, b"e", LeaderRecord("second", "", 30))
    assert not store.renew(LeaderRecord("first", "", 30))
    assert store.renew(LeaderRecord("second", "moved:2", 30))
    assert [payload for _, payload in store.read(0, 10)] == [b"a", b"b", b"e"]
    assert store.read(1, 1) == [(2, b"b")]
    assert (store.read(3, 10), store.last(), store.entry_bytes()) == ([], 3, 3)


@pytest.mark.parametrize("has_pooler", [False, True])
def test_appends_are_prepared_if_no_pooler_is_between(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pooler: bool
) -> None:
    if has_pooler:
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 1)
    store = PostgresLog(f"{postgres.url}?log={tmp_path.name}")
    store.open()
    store.create(LogRecord("database", "key", from_snapshot=False))
    store.claim(1, b"a", LeaderRecord("first", "", 30))
    payload = bytes(20_000_000)
    store.append(2, payload, "first")
    with pytest.raises(LogConflictError):
        store.append(2, b"b", "first")
    assert store._connection is not None
    prepared = store._connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert prepared == (0 if has_pooler else 1,)
    store.interrupt()
    with pytest.raises(LogUnavailableError) as failed:
        store.append(3, b"c", "first")
    assert failed.value.is_unclear
    store.append(3, b"c", "first")
    assert (store.read(1, 1), store.read(2, 1)) == ([(2, payload)], [(3, b"c")])
    store.close()


def test_a_leader_of_long_ago_finds_its_number_free_and_appends_nothing_that_counts(store: LogStore) -> None:
    """Old entries are deleted, so their numbers are free."""
    store.claim(1, b"a", LeaderRecord("first", "", -10))
    store.claim(2, b"b", LeaderRecord("second", "", 30))
    with pytest.raises(LogConflictError):
        store.append(2, b"c", "first")
    store.trim(2)
    assert store.read(0, 1)[0][0] in (1, 2)  # Object storage keeps entries for an hour.


def test_snapshots_are_read_as_written_or_refused(store: LogStore) -> None:
    store.put_snapshot(7, [b"one", b"two"])
    store.put_part(9, 1, b"half")
    assert [sequence for sequence, _ in store.snapshots()] == [7]
    assert list(store.read_snapshot(7)) == [b"one", b"two"]
    store.put_part(7, 2, b"TWO")
    with pytest.raises(LogDamagedError, match="checksum"):
        list(store.read_snapshot(7))
    with pytest.raises(LogDamagedError, match="part 0"):
        list(store.read_snapshot(8))


@pytest.mark.parametrize("url", ["mysql://host/x", "file", "s3://bucket", "s3:///prefix"])
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(LogRefusedError):
        open_store(url)


def test_a_user_with_a_schema_of_its_own_needs_no_other_right(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE shop")
        owner.execute("CREATE ROLE durably LOGIN")
    url = postgres.url.removesuffix("postgres").replace("postgres@", "durably@") + "shop"
    store = open_store(url)
    with pytest.raises(LogRefusedError, match="CREATE SCHEMA"):
        store.open()
    with psycopg.connect(url.replace("durably@", "postgres@"), autocommit=True) as owner:
        owner.execute("CREATE SCHEMA durably AUTHORIZATION durably")
    assert store.open() is None
    store.close()
