"""``CommitLog``: one process's part in a commit log, as a standby or as the leader.

The numbers of entries are unique, so appending is the fence. A leader appends each group commit before it commits it
locally and acknowledges it. A process becomes the leader by appending the beginning of a new epoch. The former leader
then finds its next number taken, and stops.

The local file is a copy of the log's contents, up to the entry whose number the file stores.
"""

import contextlib
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from durably.engine.model.overview import LogState
from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import explain, migrate, open_file
from durably.engine.sqlite.maintenance import copy_database
from durably.protocol.engine_errors import (
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineError,
    LogDamagedError,
    LogRefusedError,
)
from durably.protocol.text import get_logger

from .entries import RecordingConnection, apply_entries, decode_entry, encode_entry
from .store import LeaderRecord, LogConflictError, LogRecord, LogStore, LogUnavailableError

LEASE_SECONDS = 5.0
SNAPSHOT_BYTES = 64 * 1024 * 1024
_RENEWALS = 5
"""Renewals in the time of a lease."""
_RETRY_SECONDS = 0.05, 1.0
"""The first and the longest pause before an append whose outcome is unknown is repeated."""
_APPLIED_TOGETHER = 500
_PART_BYTES = 1024 * 1024
_SNAPSHOTS_KEPT = 2
_STATE_SECONDS = 1.0

_logger = get_logger("durably.engine")


def open_store(url: str) -> LogStore:
    """The store of a URL: ``postgresql://…`` or ``s3://bucket/prefix``. Does not connect.

    Raises ``LogRefusedError`` for another URL, ``ImportError`` without the extra.
    """
    scheme = url.partition("://")[0]
    if scheme in ("postgresql", "postgres"):
        from .postgres import PostgresLog

        return PostgresLog(url)
    if scheme == "s3":
        from .s3 import S3Log

        return S3Log(url)
    raise LogRefusedError(
        f"the commit log must be postgresql://… or s3://bucket/prefix, not {scheme}://…"
        if "://" in url
        else "the commit log must be a URL: postgresql://… or s3://bucket/prefix"
    )


class CommitLog:
    """A commit log, and the local file that copies it.

    - ``address``: The address of this process for those on other machines; see ``LeaderRecord``.
    - ``lease``: Seconds without a renewal after which a standby takes over.
    - ``snapshot_bytes``: Bytes of entries after which the leader stores a snapshot: at least these, and a quarter of
      a large file.

    Methods block. Those that take a connection belong to the thread that writes.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = LEASE_SECONDS,
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        self.lease = lease
        self.node = secrets.token_hex(8)
        self.address = ""
        self.sequence = 0
        self._snapshot_bytes = snapshot_bytes
        self._store = open_store(url)
        self._side = open_store(url)
        """For reads and renewals, which do not wait for an append."""
        self._url = url
        self._record: LogRecord | None = None
        self._path = Path()
        self._leads = False
        self._closing = threading.Event()
        self._stops_waiting = threading.Event()
        self._renewed_at = 0.0
        self._state: tuple[float, LogState | None] = 0.0, None
        self._bytes_since_snapshot = 0
        self._snapshot: threading.Thread | None = None
        self._copying = threading.Lock()
        self._renewing: threading.Thread | None = None

    @property
    def store(self) -> LogStore:
        return self._side

    @property
    def has_key(self) -> bool:
        return self._record is not None

    @property
    def key(self) -> str:
        assert self._record is not None
        return self._record.key

    # the local file

    def open_database(self, path: Path, durability: Durability, *, must_exist: bool = False) -> RecordingConnection:
        """Open the local file, and bring it to the log's last entry.

        A missing file is restored, and one that contradicts the log is set aside and restored. The caller has the
        file's lock. ``must_exist``: no log is begun. Raises ``LogRefusedError`` if file and log belong to different
        databases, ``LogDamagedError``, ``DatabaseUnavailableError`` if the store cannot be reached, and the errors of
        ``open_file``.
        """
        self._path = path
        with _unavailable():
            self._record = self._store.open()
            if self._record is None and must_exist:
                raise LogRefusedError(f"{self._store.name} does not exist: correct the log's URL")
            if self._record is None:
                self._begin(path, durability)
            if not path.exists() or not path.stat().st_size:
                self._restore(path)
            connection = _open_recording(path, durability)
            try:
                self._check(connection, path)
                if not self._contains_own_past(connection):
                    connection = self._replace(connection, path, durability)
                try:
                    self.catch_up(connection)
                except LogDamagedError:
                    snapshots = self._store.snapshots()
                    if not snapshots or snapshots[0][0] <= self.sequence:
                        raise
                    connection = self._replace(connection, path, durability)
                    self.catch_up(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _replace(self, connection: RecordingConnection, path: Path, durability: Durability) -> RecordingConnection:
        """Set the local file aside, and restore it."""
        connection.close()
        aside = path.with_name(path.name + ".replaced")
        _logger.warning(
            "the database %s does not match %s: it is kept as %s, and restored", path, self._store.name, aside
        )
        for suffix in ("", "-wal"):
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)
        for suffix in ("", "-wal"):  # The second exists if another process reads the file.
            with contextlib.suppress(FileNotFoundError):
                os.replace(path.with_name(path.name + suffix), aside.with_name(aside.name + suffix))
        self._restore(path)
        return _open_recording(path, durability)

    def _begin(self, path: Path, durability: Durability) -> None:
        """Create the log. A database that exists becomes its first snapshot."""
        exists = path.exists() and path.stat().st_size > 0
        database_id = secrets.token_hex(8)
        if exists:
            with contextlib.closing(open_file(path, durability)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                migrate(connection, path)
                stored, sequence = connection.execute("SELECT database_id, log_sequence FROM owner").fetchone()
                if sequence:
                    raise LogRefusedError(
                        f"{self._store.name} is empty, but the database {path} has {sequence} entries of a log: "
                        "correct the log's URL. To begin a new log with this database, start from a copy that "
                        "`durably backup` makes"
                    )
                database_id = stored or database_id
                connection.execute("UPDATE owner SET database_id = ?, log_token = x''", (database_id,))
                connection.execute("COMMIT")
        self._record = self._store.create(LogRecord(database_id, secrets.token_urlsafe(24), from_snapshot=exists))
        _logger.warning(
            "%s did not exist: it was begun %s",
            self._store.name,
            f"with {path}" if exists else "with an empty database",
        )

    def _check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Refuse a file of another database."""
        assert self._record is not None
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            return  # An empty file, which the first entry fills.
        (database_id,) = connection.execute("SELECT database_id FROM owner").fetchone()
        sequence, token = _position(connection)
        if database_id != self._record.database_id:
            raise LogRefusedError(
                f"the database {path} is not the one of {self._store.name}: correct the path or the log's URL. To "
                "begin a new log with this database, name one that is empty; to use the log's database, move this file "
                "away"
            )
        if token is None and self._store.last() > 0:
            raise LogRefusedError(
                f"the database {path} was made before {self._store.name} or restored from a backup, and the log has "
                "later entries: move the file away to use the log's database, or begin a new log at another URL"
            )
        if sequence == 0 and self._record.from_snapshot and not self._store.snapshots():
            self._put_snapshot(self._store)

    def _contains_own_past(self, connection: sqlite3.Connection) -> bool:
        """Whether the local file's last entry is in the log, so that the next entries can be applied."""
        sequence, token = _position(connection)
        if sequence == 0:
            return token is not None or not self._store.snapshots()
        return self._has_entry(sequence, token)

    def _restore(self, path: Path) -> None:
        """Make the local file from the newest snapshot that is whole."""
        assert self._record is not None
        for suffix in ("-wal", "-shm"):  # SQLite would apply those of a former file.
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        snapshots = self._store.snapshots()
        unfinished = path.with_name(path.name + ".partial")
        for sequence, _ in snapshots:
            unfinished.unlink(missing_ok=True)
            try:
                with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    for part in self._store.read_snapshot(sequence):
                        file.write(zlib.decompress(part))
                    os.fsync(file.fileno())
            except (LogDamagedError, zlib.error) as error:
                _logger.error("a snapshot cannot be used, an older one may do: %s", error)
                continue
            os.replace(unfinished, path)
            _logger.info("the database %s was restored from snapshot %d of %s", path, sequence, self._store.name)
            return
        if snapshots:
            raise LogDamagedError(
                f"all snapshots of {self._store.name} are damaged: start from a backup or another machine's file, with "
                "a new log at another URL"
            )
        if self._record.from_snapshot:
            raise DatabaseUnavailableError(
                f"{self._store.name} was begun with a database whose first snapshot is not complete: start the process "
                "that has the file of this database first"
            )

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Apply the entries that the local file lacks.

        Raises ``LogDamagedError`` if the next entry is missing: the file must be restored.
        """
        self.sequence, _ = _position(connection)
        while entries := self._read_next():
            numbers = [number for number, _ in entries]
            if numbers != [*range(self.sequence + 1, self.sequence + 1 + len(entries))]:
                raise LogDamagedError(
                    f"{self._side.name} lacks entries between {self.sequence} and {numbers[-1]}: the database "
                    f"{self._path} cannot follow it; move the file away, and it is restored"
                )
            with _unavailable():
                apply_entries(connection, entries)
            self.sequence = numbers[-1]

    # other processes

    def find_leader(self) -> LeaderRecord | None:
        """The other process that leads, if it serves processes of other machines. Then ``key`` is known.

        It needs no local file. Raises ``LogUnavailableError``.
        """
        if self._record is None and (record := self._side.open()) is not None:  # Another thread may have begun the log.
            self._record = record
        leader = None if self._record is None else self._side.leader()
        is_other = leader is not None and leader.node != self.node and leader.remaining >= 0
        return leader if leader is not None and is_other and leader.address else None

    def end_lease_of(self, node: str) -> None:
        """End the lease of a process that has ended, if it led. Raises ``LogUnavailableError``."""
        self._side.release(node)

    def descriptors(self) -> list[int]:
        return [*self._store.descriptors(), *self._side.descriptors()]

    def interrupt(self) -> None:
        """Break requests that have not been answered."""
        self._store.interrupt()
        self._side.interrupt()

    def _read_next(self) -> list[tuple[int, bytes]]:
        with _unavailable():
            return self._side.read(self.sequence, _APPLIED_TOGETHER)

    # the leader

    def may_take_over(self) -> bool:
        """Whether no other process has the lease."""
        leader = self._side.leader()
        return leader is None or leader.node == self.node or leader.remaining < 0

    def take_over(self, connection: RecordingConnection, on_lost: Callable[[EngineError], None]) -> int:
        """Become the leader: append the beginning of a new epoch, and return the epoch.

        ``on_lost`` is called, in another thread, if another process becomes the leader. Raises ``DatabaseLostError``
        if another process has been faster or has the lease, and ``DatabaseUnavailableError``, also if the outcome is
        unknown. Then open the database again.
        """
        assert self._record is not None
        leader = LeaderRecord(self.node, self.address, self.lease)
        self._stops_waiting.clear()
        began = time.monotonic()
        try:
            with _unavailable():
                connection.execute("BEGIN IMMEDIATE")
                migrate(connection, self._path)
                connection.execute("UPDATE owner SET epoch = epoch + 1, database_id = ?", (self._record.database_id,))
                epoch: int = connection.execute("SELECT epoch FROM owner").fetchone()[0]
                self._append(connection, lambda number, payload: self._store.claim(number, payload, leader))
                self._leads = True
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._renewed_at, self._state = began, (0.0, None)
        self._closing.clear()
        self._renewing = threading.Thread(target=self._renew, args=(on_lost,), name="durably-log", daemon=True)
        self._renewing.start()
        return epoch

    def append(self, connection: RecordingConnection) -> None:
        """Append what the transaction under way has written.

        Raises ``DatabaseLostError`` if another process leads now, and ``DatabaseUnavailableError`` if the log does not
        have the entry. While it is unknown whether the log has the entry, the same one is appended again.
        """
        if connection.recorded:
            self._append(connection, lambda number, payload: self._store.append(number, payload, self.node), True)

    def _append(
        self, connection: RecordingConnection, request: Callable[[int, bytes], None], insists: bool = False
    ) -> None:
        """``insists``: repeat a request whose outcome is unknown."""
        sequence, token = self.sequence + 1, os.urandom(8)
        previous = connection.execute("SELECT log_token FROM owner").fetchone()[0] or b""
        payload = encode_entry(token, previous, connection.recorded)
        connection.execute("UPDATE owner SET log_sequence = ?, log_token = ?", (sequence, token))
        is_unclear, (pause, longest) = False, _RETRY_SECONDS
        while True:
            try:
                try:
                    request(sequence, payload)
                    break
                except LogConflictError as error:
                    # Perhaps an earlier attempt has arrived.
                    if is_unclear and self._has_entry(sequence, token):
                        break
                    raise DatabaseLostError(f"another process leads the database now: {error.message}") from None
            except LogUnavailableError as error:
                is_unclear = is_unclear or error.is_unclear
                if not (is_unclear and insists):
                    raise DatabaseUnavailableError(error.message) from None
                _logger.warning("entry %d is appended again, because its outcome is unknown: %s", sequence, error)
                if self._stops_waiting.wait(pause):
                    raise DatabaseUnavailableError(f"it is unknown whether entry {sequence} was stored") from None
                pause = min(2 * pause, longest)
        self.sequence = sequence
        self._bytes_since_snapshot += len(payload)

    def _has_entry(self, sequence: int, token: bytes | None) -> bool:
        entries = self._store.read(sequence - 1, 1)
        return bool(entries) and entries[0][0] == sequence and decode_entry(*entries[0]).token == token

    def _renew(self, on_lost: Callable[[EngineError], None]) -> None:
        """Renew the lease, and store snapshots, until the end."""
        leader = LeaderRecord(self.node, self.address, self.lease)
        with contextlib.suppress(LogUnavailableError):  # Former leaders may have been too short for a snapshot.
            newest = next((sequence for sequence, _ in self._side.snapshots()), 0)
            self._bytes_since_snapshot = self._side.entry_bytes(newest)
        while not self._closing.wait(self.lease / _RENEWALS):
            began = time.monotonic()
            try:
                if not self._side.renew(leader):
                    self._leads = False
                    on_lost(DatabaseLostError("another process leads the database now"))
                    return
            except LogUnavailableError as error:
                _logger.warning("the lease could not be renewed: %s", error)
                continue
            self._renewed_at = began
            if self._bytes_since_snapshot > max(self._snapshot_bytes, self._large_file_size() // 4) and (
                self._snapshot is None or not self._snapshot.is_alive()
            ):
                self._bytes_since_snapshot = 0
                self._snapshot = threading.Thread(target=self._snapshot_and_trim, name="durably-snapshot", daemon=True)
                self._snapshot.start()

    def _large_file_size(self) -> int:
        """The bytes of the local file, 0 for a file that is uploaded fast."""
        try:
            size = self._path.stat().st_size
        except OSError:  # The engine notices that the file was deleted.
            return 0
        return size if size > SNAPSHOT_BYTES else 0

    def _snapshot_and_trim(self) -> None:
        store = open_store(self._url)
        try:
            self._put_snapshot(store)
            kept = store.snapshots()[:_SNAPSHOTS_KEPT]
            if len(kept) == _SNAPSHOTS_KEPT:
                store.trim(kept[-1][0])
        except (EngineError, OSError, sqlite3.Error) as error:
            _logger.error("no snapshot could be stored in %s; the log grows until the next one: %s", store.name, error)
        finally:
            store.close()

    def _put_snapshot(self, store: LogStore) -> None:
        """Store a snapshot of the local file."""
        copy = self._path.with_name(self._path.name + ".snapshot")
        with self._copying:
            try:
                sequence = copy_database(self._path, copy)
                store.put_snapshot(sequence, _compressed_parts(copy))
            finally:
                copy.unlink(missing_ok=True)

    # both

    def state(self) -> LogState:
        """The state of the log, read from the store at most once a second. Raises ``DatabaseUnavailableError``."""
        read_at, state = self._state
        if state is None or time.monotonic() - read_at > _STATE_SECONDS:
            with _unavailable():
                leader, snapshots = self._side.leader(), self._side.snapshots()
                state = LogState(
                    store=self._side.name,
                    role="leader" if self._leads else "standby",
                    sequence=self.sequence,
                    lag=0 if self._leads else max(0, self._side.last() - self.sequence),
                    lease_remaining=None if leader is None else leader.remaining,
                    leader="" if leader is None else leader.address,
                    log_bytes=self._side.entry_bytes(),
                    snapshot_age=snapshots[0][1] if snapshots else None,
                )
            self._state = time.monotonic(), state
        return state

    def check_lease(self) -> None:
        """Raise ``DatabaseUnavailableError`` if the lease was not renewed in time: another process may lead."""
        if (age := time.monotonic() - self._renewed_at) > self.lease:
            raise DatabaseUnavailableError(f"the lease of the database was not renewed for {age:.0f} s")

    def stop_waiting(self) -> None:
        """Give an append up whose outcome is unknown. The next leader finds out whether the log has it."""
        self._stops_waiting.set()

    def release(self) -> None:
        """End the lease, so that a standby takes over at once. The log can be used again with ``open_database``."""
        self._closing.set()
        if self._renewing is not None:
            self._renewing.join(self.lease)
            if self._renewing.is_alive():  # The store does not answer.
                self._side.interrupt()
                self._renewing.join()
        if self._leads:
            self._leads = False
            with contextlib.suppress(LogUnavailableError):
                self._side.release(self.node)

    def close(self) -> None:
        self.release()
        self._store.close()
        self._side.close()


def _open_recording(path: Path, durability: Durability) -> RecordingConnection:
    connection = open_file(path, durability, RecordingConnection)
    assert isinstance(connection, RecordingConnection)
    return connection


def _position(connection: sqlite3.Connection) -> tuple[int, bytes | None]:
    """The number and the token of the last entry that a file contains.

    The token is empty in a database with which a log began, and ``None`` in one that belongs to no log.
    """
    if connection.execute("PRAGMA user_version").fetchone() == (0,):
        return 0, None
    sequence, token = connection.execute("SELECT log_sequence, log_token FROM owner").fetchone()
    return sequence, token


def _compressed_parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            yield zlib.compress(part, 1)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except LogUnavailableError as error:
        raise DatabaseUnavailableError(error.message) from None
    except sqlite3.IntegrityError as error:
        raise LogDamagedError(f"an entry of the commit log does not fit the local file: {error}") from error
    except sqlite3.Error as error:
        raise explain(error) from error
