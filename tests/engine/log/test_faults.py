"""The commit log while its store fails, leaders change, and machines lose their disks."""

import contextlib
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durably.engine.log import log as log_module
from durably.engine.log.log import CommitLog, open_store
from durably.engine.log.postgres import PostgresLog
from durably.engine.log.s3 import S3Log
from durably.engine.log.store import LogUnavailableError
from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database
from durably.protocol.engine_errors import (
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineError,
    LogDamagedError,
    LogRefusedError,
)

LEASE = 1000.0
REQUESTS = ("open", "create", "append", "claim", "renew", "release", "leader", "read", "last", "put_part", "trim")


class FaultyStore:
    """A store that breaks the connection before or after it carries out the next requests."""

    faults: ClassVar[deque[str]] = deque()

    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._store, name)
        return request if name not in REQUESTS else lambda *arguments: self._run(request, arguments)

    def _run(self, request: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        fault = self.faults.popleft() if self.faults else "none"
        if fault in ("before", "refused"):
            raise LogUnavailableError("a fault", is_unclear=fault == "before")
        result = request(*arguments)
        if fault == "after":
            raise LogUnavailableError("a fault", is_unclear=True)
        return result


class Machine:
    """A process and its disk, which stores numbers as an engine's writer does."""

    def __init__(self, url: str, path: Path) -> None:
        self.url, self.path = url, path
        self.log = CommitLog(url, lease=LEASE)
        self.connection: Any = None

    def crash(self) -> None:
        self.log._closing.set()
        self.close()
        self.log._store.close()
        self.log._side.close()
        self.log = CommitLog(self.url, lease=LEASE)

    def lose_disk(self) -> None:
        self.crash()
        for file in self.path.parent.glob(f"{self.path.name}*"):
            file.unlink()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def open(self) -> None:
        self.close()
        self.connection = self.log.open_database(self.path, Durability.OFF)

    def lead(self) -> None:
        self.open()
        self.log.take_over(self.connection, lambda error: None)

    def end_lease(self) -> None:
        """As when the leader has not renewed it in time, and does not know."""
        if (leader := self.log._side.leader()) is not None:
            self.log._side.release(leader.node)

    def write(self, number: int) -> bool:
        """Whether the number was acknowledged."""
        if self.connection is None:
            return False
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute(
                "INSERT INTO run_metadata (run_key, received_at, body) VALUES (1, ?, '')", (number,)
            )
            self.log.append(self.connection)
            self.connection.execute("COMMIT")
        except (EngineError, sqlite3.Error) as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if not isinstance(error, DatabaseUnavailableError):
                self.close()
            return False
        return True

    def contents(self) -> list[str]:
        self.open()
        dump = list(self.connection.iterdump())
        self.close()
        return dump

    def numbers(self) -> list[int]:
        self.open()
        found = [number for (number,) in self.connection.execute("SELECT received_at FROM run_metadata ORDER BY key")]
        self.close()
        return found


@pytest.fixture
def machines(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Machine]]:
    monkeypatch.setattr(log_module, "open_store", FaultyStore)
    monkeypatch.setattr(log_module, "_RETRY_SECONDS", (0.001, 0.001))
    FaultyStore.faults.clear()
    machines = [Machine(url, tmp_path / f"{number}.db") for number in range(3)]
    yield machines
    FaultyStore.faults.clear()
    for machine in machines:
        machine.crash()
        machine.log.close()


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_is_in_every_copy_once(machines: list[Machine], seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: set[int] = set()
    if "s3" in machines[0].url and seed:
        pytest.skip("slow")
    for step in range(25 if "s3" in machines[0].url else 100):
        machine = chance.choice(machines)
        action = chance.choices(
            ("write", "lead", "crash", "lose disk", "follow", "snapshot", "fault"), (12, 4, 1, 1, 2, 2, 2)
        )[0]
        with contextlib.suppress(DatabaseLostError, DatabaseUnavailableError, LogUnavailableError):
            match action:
                case "write":
                    done = {number for number, each in enumerate(machines, 3 * step) if each.write(number)}
                    assert len(done) <= 1  # Never two leaders.
                    acknowledged |= done
                case "lead":
                    if chance.random() < 0.8:
                        machine.end_lease()
                    machine.lead()
                case "crash":
                    machine.crash()
                case "lose disk":
                    machine.lose_disk()
                case "follow":
                    machine.open()
                case "snapshot":
                    if machine.connection is not None:
                        machine.log._snapshot_and_trim()
                case "fault":
                    FaultyStore.faults += chance.choices(("before", "after", "refused", "none"), k=2)
    FaultyStore.faults.clear()
    for machine in machines:
        machine.crash()
    numbers = machines[0].numbers()
    assert len(numbers) == len(set(numbers))
    assert acknowledged <= set(numbers)
    assert acknowledged
    machines[2].lose_disk()
    first = machines[0].contents()
    assert [machine.contents() == first for machine in machines] == [True] * 3


def test_a_claim_whose_outcome_is_unknown_is_not_repeated(machines: list[Machine]) -> None:
    """So that a process that is asked to stop does not wait for its store."""
    machines[0].open()
    FaultyStore.faults += ["after"]
    with pytest.raises(DatabaseUnavailableError):
        machines[0].log.take_over(machines[0].connection, lambda error: None)
    machines[0].lead()
    assert machines[0].write(1)
    assert machines[0].numbers() == [1]


def test_a_standby_that_slept_takes_no_number_that_was_deleted(machines: list[Machine]) -> None:
    slow, leader, _ = machines
    slow.open()
    leader.lead()
    for number in range(3):
        leader.write(number)
        leader.log._snapshot_and_trim()
    leader.log.release()
    with pytest.raises(DatabaseLostError):
        slow.log.take_over(slow.connection, lambda error: None)
    slow.lead()
    assert slow.numbers() == [0, 1, 2]


def test_processes_that_begin_a_log_at_a_time_wait_for_the_one_with_a_database(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The empty one looks for the log before the other creates it."""
    with_database, empty, _ = machines
    open_database(with_database.path, Durability.OFF).close()
    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "_put_snapshot", lambda log, store: None)  # It takes a while.
        with_database.open()
    with monkeypatch.context() as patch:
        patch.setattr(empty.log._store, "open", lambda: None, raising=False)
        with pytest.raises(DatabaseUnavailableError, match="first snapshot"):
            empty.lead()
    with_database.lead()
    assert with_database.write(1)
    assert empty.numbers() == [1]


def test_the_write_ahead_log_of_a_deleted_file_is_not_applied_to_a_restored_one(machines: list[Machine]) -> None:
    first, second, _ = machines
    first.lead()
    first.write(0)
    first.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    first.write(1)
    wal = first.path.with_name("0.db-wal")
    left = wal.read_bytes()
    first.connection.execute("BEGIN IMMEDIATE")
    first.connection.execute("INSERT INTO pauses (function_id, paused_at) VALUES ('shop', 1)")  # It is in another page.
    first.log.append(first.connection)
    first.connection.execute("COMMIT")
    first.log._snapshot_and_trim()
    first.lose_disk()
    wal.write_bytes(left)
    assert first.numbers() == [0, 1]
    assert first.contents() == second.contents()


def test_a_damaged_entry_stops_with_an_error_until_there_is_a_newer_snapshot(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, behind, _ = machines
    leader.lead()
    behind.open()
    append = leader.log._store.append
    monkeypatch.setattr(
        leader.log._store, "append", lambda number, payload, node: append(number, payload + b"x", node), raising=False
    )
    leader.write(1)
    with pytest.raises(LogDamagedError, match="entry 2"):
        behind.open()
    leader.log._snapshot_and_trim()
    assert behind.numbers() == [1]


def test_the_bytes_of_former_leaders_count_for_the_next_snapshot(machines: list[Machine], url: str) -> None:
    """A leader may be replaced at each deployment, before it has written much."""
    machines[0].lead()
    machines[0].write(1)
    machines[0].log.release()
    machines[1].log.lease = 0.1
    machines[1].log._snapshot_bytes = machines[0].log._side.entry_bytes() - 1
    machines[1].lead()
    while not machines[1].log._side.snapshots():
        pass


def test_a_store_that_ignores_conditions_is_refused(
    machines: list[Machine], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines[0].log._store._store  # type: ignore[attr-defined]
    if not isinstance(store, S3Log):
        pytest.skip("PostgreSQL has unique keys")
    machines[0].open()
    put_object = store._s3.put_object
    monkeypatch.setattr(store._s3, "put_object", lambda IfNoneMatch=None, **rest: put_object(**rest))
    with pytest.raises(LogRefusedError, match="conditional writes"):
        machines[0].lead()


@pytest.mark.parametrize(
    "url",
    [
        *(f"postgresql://user:{password}@127.0.0.1:1/db" for password in ("se/cret", "se@cret", "se?cret", "%secret")),
        "postgresql://user:1/secret@127.0.0.1:1/db",
        "s3://id:secret@bucket/prefix",
        "s3://bucket/prefix?key=secret",
    ],
)
def test_an_error_of_a_url_does_not_show_its_secrets(url: str) -> None:
    with pytest.raises(LogRefusedError) as caught:
        open_store(url)
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_parameters_of_a_postgresql_url_reach_libpq(postgres: Any) -> None:
    store = PostgresLog(f"{postgres.url}?log=a+b%20c&options=-c%20application_name%3Dx")
    assert store.open() is None
    assert "'a+b c'" in store.name
    store.close()
