"""The commit log in PostgreSQL: three tables in the schema ``durably``."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from durably.protocol.engine_errors import LogDamagedError, LogRefusedError

from .store import ANSWER_SECONDS, LeaderRecord, LogConflictError, LogRecord, LogStore, LogUnavailableError

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS durably.logs (
    name text PRIMARY KEY,
    record bytea NOT NULL,
    node text NOT NULL DEFAULT '',
    address text NOT NULL DEFAULT '',
    lease_until timestamptz NOT NULL DEFAULT 'epoch'
);
CREATE TABLE IF NOT EXISTS durably.log_entries (
    log text NOT NULL,
    sequence bigint NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (log, sequence)
);
-- Part 0 is the manifest. It is written last.
CREATE TABLE IF NOT EXISTS durably.log_snapshots (
    log text NOT NULL,
    sequence bigint NOT NULL,
    part integer NOT NULL,
    payload bytea NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log, sequence, part)
);
"""
_FOLLOWS = "(%s = 1 OR EXISTS (SELECT 1 FROM durably.log_entries WHERE log = %s AND sequence = %s - 1))"
"""The log has the entry before. Otherwise it has lost entries, and the leader must not go on after a gap."""
# A leader that was replaced long ago may find its number free, because old entries are trimmed.
_APPEND = b"""
INSERT INTO durably.log_entries (log, sequence, payload) SELECT $1, $2, $3
WHERE EXISTS (SELECT 1 FROM durably.logs WHERE name = $1 AND node = $4)
AND ($2 = 1 OR EXISTS (SELECT 1 FROM durably.log_entries WHERE log = $1 AND sequence = $2 - 1))
"""
_APPEND_TYPES = [25, 20, 17, 25]
"""PostgreSQL's numbers of text, bigint, bytea and text."""
_PREPARED = b"durably_append"
_INITIALISE_LOCK = 0x447572
"""The key of the advisory lock under which the tables are made: ``IF NOT EXISTS`` alone fails for two at a time."""
_CONNECT_SECONDS = 5
_SLOWEST_BYTES = 200_000
"""Bytes a second: how fast a large entry must be sent or received at least."""
_READ_BYTES = 16 * 1024 * 1024
"""Bytes of entries that are read together. One entry may be larger."""


class PostgresLog(LogStore):
    """A log in a PostgreSQL database.

    ``?log=NAME`` in the URL names the log, for several in one database; other parameters are those of libpq.
    """

    poll_seconds = 0.1

    def __init__(self, url: str) -> None:
        try:
            base, _, parameters = url.partition("?")
            query = dict(parse_qsl(parameters.replace("+", "%2B")))
            self._log = query.pop("log", "durably")
            self._url = f"{base}?{urlencode(query, quote_via=quote)}" if query else base
            place = conninfo_to_dict(self._url)
        except (ValueError, psycopg.Error):  # The error may contain the password.
            place = {"host": "@"}
        host, database, port = (str(place.get(part) or "") for part in ("host", "dbname", "port"))
        if "@" in host + database or (port and not port.replace(",", "").isdigit()):
            raise LogRefusedError(
                "the commit log's URL cannot be read: it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with "
                "special characters of USER and PASSWORD, such as @ : / ? # and %, percent-encoded"
            )
        self.name = f"the log {self._log!r} in PostgreSQL at {host or 'localhost'}/{database}"
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()
        self._is_direct = self._is_prepared = False
        self._answer_until: float | None = None
        self._closed = threading.Event()
        self._watching: threading.Thread | None = None

    def _run(self, work: Callable[[psycopg.Connection[Any]], T], size: int = 0, *, may_repeat: bool = True) -> T:
        """Carry out a request.

        - ``size``: The bytes that are sent or received, if they may be many.
        - ``may_repeat``: Also on a new connection, if the old one was broken: servers and poolers end idle ones.
        """
        with self._lock:
            sent = False
            may_repeat = may_repeat and self._connection is not None
            if self._watching is None:
                self._watching = threading.Thread(target=self._watch, name="durably-log-watch", daemon=True)
                self._watching.start()
            self._answer_until = time.monotonic() + ANSWER_SECONDS + size / _SLOWEST_BYTES
            try:
                connection = self._connection
                if connection is None or connection.closed:
                    connection = self._connect()
                sent = True
                return work(connection)
            except errors.UniqueViolation:
                raise
            except psycopg.Error as error:
                is_lost = (error.sqlstate or "")[:3] in ("57P", "080")  # A pooler may keep its end open.
                is_broken = is_lost or self._connection is None or self._connection.closed
                if not isinstance(error, errors.QueryCanceled):
                    # A server that has become a replica refuses writes. The next connection finds the primary.
                    self._drop()
                if is_broken and may_repeat:
                    return self._run(work, size, may_repeat=False)
                lines = str(error).strip().splitlines()
                raise LogUnavailableError(
                    f"{self.name} cannot be used now: {lines[0] if lines else type(error).__name__}",
                    is_unclear=sent and is_broken,
                ) from None
            finally:
                self._answer_until = None

    def _watch(self) -> None:
        """Break a connection that does not answer: libpq itself would wait for ever."""
        while not self._closed.wait(1):
            if (until := self._answer_until) is not None and time.monotonic() > until:
                self.interrupt()

    def interrupt(self) -> None:
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=_duplicate(connection)) as end:
                end.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="durably",
            prepare_threshold=None,  # for poolers
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10_000,
        )
        # A database may be set to acknowledge commits before they are on its disk.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        # Poolers give out process ids of their own. Those that share connections between transactions lose statements.
        (pid,) = _row(connection.execute("SELECT pg_backend_pid()"))
        self._is_direct, self._is_prepared = pid == connection.info.backend_pid, False
        with contextlib.suppress(OSError), socket.socket(fileno=_duplicate(connection)) as end:
            if end.family in (socket.AF_INET, socket.AF_INET6):
                self.local_host = end.getsockname()[0]
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def descriptors(self) -> list[int]:
        return [] if self._connection is None else [self._connection.pgconn.socket]

    def close(self) -> None:
        with self._lock:  # A request under way may hang until the watch breaks it.
            self._closed.set()
            self._drop()

    # the record

    def open(self) -> LogRecord | None:
        def make_tables(connection: psycopg.Connection[Any]) -> None:
            (exists,) = _row(connection.execute("SELECT to_regclass('durably.log_snapshots') IS NOT NULL"))
            if exists:
                return
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_INITIALISE_LOCK,))
                # IF NOT EXISTS would need the right to create schemas even if this one exists.
                (has_schema,) = _row(connection.execute("SELECT to_regnamespace('durably') IS NOT NULL"))
                if not has_schema:
                    connection.execute("CREATE SCHEMA durably")
                connection.execute(_TABLES)

        def work(connection: psycopg.Connection[Any]) -> LogRecord | None:
            try:
                make_tables(connection)
            except errors.InsufficientPrivilege as error:
                user = connection.info.user
                raise LogRefusedError(
                    f"{self.name} cannot be made or used by the user {user!r} ({error.diag.message_primary}): let the "
                    f'database\'s owner execute CREATE SCHEMA durably AUTHORIZATION "{user}"'
                ) from None
            row = connection.execute("SELECT record FROM durably.logs WHERE name = %s", (self._log,)).fetchone()
            return None if row is None else msgspec.json.decode(row[0], type=LogRecord)

        return self._run(work)

    def create(self, record: LogRecord) -> LogRecord:
        def work(connection: psycopg.Connection[Any]) -> LogRecord:
            connection.execute(
                "INSERT INTO durably.logs (name, record) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (self._log, msgspec.json.encode(record)),
            )
            (stored,) = _row(connection.execute("SELECT record FROM durably.logs WHERE name = %s", (self._log,)))
            return msgspec.json.decode(stored, type=LogRecord)

        return self._run(work)

    # entries

    def append(self, sequence: int, payload: bytes, node: str) -> None:
        def work(connection: psycopg.Connection[Any]) -> None:
            # On the critical path of each commit: psycopg's execute takes twice as long.
            server, values = (
                connection.pgconn,
                [self._log.encode(), sequence.to_bytes(8, "big"), payload, node.encode()],
            )
            if self._is_direct:
                if not self._is_prepared:
                    _check(server.prepare(_PREPARED, _APPEND, _APPEND_TYPES))
                    self._is_prepared = True
                inserted = _check(server.exec_prepared(_PREPARED, values, [1] * len(values)))
            else:
                inserted = _check(server.exec_params(_APPEND, values, _APPEND_TYPES, [1] * len(values)))
            if inserted.command_tuples == 0:
                raise LogConflictError(
                    f"another process leads {self.name}, or the log has lost its last entries: it was restored from a "
                    "backup, or failed over to a replica without them"
                )

        with self._conflicts(sequence):
            self._run(work, len(payload), may_repeat=False)  # by the caller, who knows what it appends

    def claim(self, sequence: int, payload: bytes, leader: LeaderRecord) -> None:
        def work(connection: psycopg.Connection[Any]) -> None:
            with connection.transaction():
                node, is_over = _row(
                    connection.execute(
                        "SELECT node, lease_until < clock_timestamp() FROM durably.logs WHERE name = %s FOR UPDATE",
                        (self._log,),
                    )
                )
                if node != leader.node and not is_over:
                    raise LogConflictError(f"another process leads {self.name}")
                inserted = connection.execute(
                    f"INSERT INTO durably.log_entries (log, sequence, payload) SELECT %s, %s, %s WHERE {_FOLLOWS} "
                    # The number may be free because old entries are trimmed.
                    "AND NOT EXISTS (SELECT 1 FROM durably.log_entries WHERE log = %s AND sequence > %s)",
                    (self._log, sequence, payload, sequence, self._log, sequence, self._log, sequence),
                    binary=True,
                )
                if inserted.rowcount == 0:
                    raise LogConflictError(f"{self.name} does not end with entry {sequence - 1}")
                connection.execute(
                    "UPDATE durably.logs SET node = %s, address = %s, "
                    "lease_until = clock_timestamp() + make_interval(secs => %s) WHERE name = %s",
                    (leader.node, leader.address, leader.remaining, self._log),
                )

        with self._conflicts(sequence):
            self._run(work, len(payload), may_repeat=False)  # by the caller, who knows what it appends

    @contextlib.contextmanager
    def _conflicts(self, sequence: int) -> Iterator[None]:
        try:
            yield
        except errors.UniqueViolation:
            raise LogConflictError(f"{self.name} has an entry {sequence} already") from None

    def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """At most ``_READ_BYTES``, but at least one."""

        def measure(connection: psycopg.Connection[Any]) -> tuple[int, int]:
            query = (
                "SELECT sequence, length(payload) FROM durably.log_entries WHERE log = %s AND sequence > %s "
                "ORDER BY sequence LIMIT %s"
            )
            last, size = after, 0
            for sequence, length in connection.execute(query, (self._log, after, limit)):
                if size and size + length > _READ_BYTES:
                    break
                last, size = sequence, size + length
            return last, size

        query = (
            "SELECT sequence, payload FROM durably.log_entries WHERE log = %s AND sequence > %s AND sequence <= %s "
            "ORDER BY sequence"
        )
        last, size = self._run(measure)
        if not size:
            return []
        arguments = (self._log, after, last)
        entries = self._run(lambda connection: connection.execute(query, arguments, binary=True).fetchall(), size)
        return entries or self.read(after, limit)  # They were deleted in between, and later ones exist.

    def last(self) -> int:
        query = "SELECT coalesce(max(sequence), 0) FROM durably.log_entries WHERE log = %s"
        return int(self._run(lambda connection: _row(connection.execute(query, (self._log,)))[0]))

    def entry_bytes(self, after: int = 0) -> int:
        query = "SELECT coalesce(sum(length(payload)), 0) FROM durably.log_entries WHERE log = %s AND sequence > %s"
        return int(self._run(lambda connection: _row(connection.execute(query, (self._log, after)))[0]))

    # the leader

    def renew(self, leader: LeaderRecord) -> bool:
        query = (
            "UPDATE durably.logs SET lease_until = clock_timestamp() + make_interval(secs => %s), address = %s "
            "WHERE name = %s AND node = %s"
        )
        arguments = (leader.remaining, leader.address, self._log, leader.node)
        return self._run(lambda connection: connection.execute(query, arguments).rowcount) == 1

    def release(self, node: str) -> None:
        query = "UPDATE durably.logs SET lease_until = 'epoch' WHERE name = %s AND node = %s"
        self._run(lambda connection: connection.execute(query, (self._log, node)))

    def leader(self) -> LeaderRecord | None:
        query = (
            "SELECT node, address, extract(epoch FROM lease_until - clock_timestamp())::float8 "
            "FROM durably.logs WHERE name = %s AND node <> ''"
        )
        row = self._run(lambda connection: connection.execute(query, (self._log,)).fetchone())
        return None if row is None else LeaderRecord(*row)

    # snapshots

    def put_part(self, sequence: int, part: int, payload: bytes) -> None:
        query = (
            "INSERT INTO durably.log_snapshots (log, sequence, part, payload) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (log, sequence, part) DO UPDATE SET payload = excluded.payload, written_at = clock_timestamp()"
        )
        arguments = (self._log, sequence, part, payload)
        self._run(lambda connection: connection.execute(query, arguments))

    def get_part(self, sequence: int, part: int) -> bytes:
        query = "SELECT payload FROM durably.log_snapshots WHERE log = %s AND sequence = %s AND part = %s"
        arguments = (self._log, sequence, part)
        row = self._run(lambda connection: connection.execute(query, arguments, binary=True).fetchone())
        if row is None:
            raise LogDamagedError(f"part {part} of snapshot {sequence} of {self.name} is missing")
        return bytes(row[0])

    def snapshots(self) -> list[tuple[int, float]]:
        query = (
            "SELECT sequence, extract(epoch FROM clock_timestamp() - written_at)::float8 FROM durably.log_snapshots "
            "WHERE log = %s AND part = 0 ORDER BY sequence DESC"
        )
        return self._run(lambda connection: connection.execute(query, (self._log,)).fetchall())

    def trim(self, before: int) -> None:
        def work(connection: psycopg.Connection[Any]) -> None:
            for table in ("log_entries", "log_snapshots"):
                connection.execute(
                    f"DELETE FROM durably.{table} WHERE log = %s AND sequence < %s",
                    (self._log, before),
                )

        self._run(work)


def _row(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    return tuple(row)


def _duplicate(connection: psycopg.Connection[Any]) -> int:
    return os.dup(connection.pgconn.socket)


def _check(result: psycopg.pq.abc.PGresult) -> psycopg.pq.abc.PGresult:
    if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
        raise errors.error_from_result(result)
    return result
