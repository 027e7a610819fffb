"""Entries of the commit log: what a group commit wrote, as statements with their parameters.

A connection records the statements that change the database, and an entry is applied by executing them again. They
are deterministic: times, ids and random numbers are parameters, and keys follow from the rows before.
"""

import functools
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from durably.engine.sqlite.schema import MIGRATIONS
from durably.protocol.engine_errors import LogDamagedError, LogRefusedError

_FORMAT = 1
_SHORTEST_COMPRESSED = 1000
"""Bytes. zlib takes 30 µs to begin, a tenth of an append's time."""
_READS = ("SELECT", "PRAGMA", "EXPLAIN", "COMMIT", "RELEASE")
_BOUNDS = ("BEGIN", "SAVEPOINT", "ROLLBACK TO", "ROLLBACK")
_SCHEMA_VERSION = "PRAGMA user_version ="

Statement = tuple[str, Sequence[Any]]
"""SQL, and its parameters."""


_execute = sqlite3.Connection.execute


@functools.lru_cache(1024)  # The writer executes few texts, and each very often.
def _kind(sql: str) -> str:
    if sql.startswith(_READS) and not sql.startswith(_SCHEMA_VERSION):
        return "read"
    return next((word for word in _BOUNDS if sql.startswith(word)), "write")


class RecordingConnection(sqlite3.Connection):
    """A connection that records the statements of its transaction that change something.

    ``recorded`` has those of the transaction under way. Statements that a rollback undoes are removed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recorded: list[Statement] = []
        self._savepoint = 0

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        cursor = _execute(self, sql, parameters)
        if (kind := _kind(sql)) == "write":
            self.recorded.append((sql, parameters))
        elif kind == "SAVEPOINT":
            self._savepoint = len(self.recorded)
        elif kind == "ROLLBACK TO":
            del self.recorded[self._savepoint :]
        elif kind in ("ROLLBACK", "BEGIN"):
            self.recorded.clear()
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        rows = list(parameters)
        cursor = super().executemany(sql, rows)
        self.recorded += [(sql, row) for row in rows]
        return cursor


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What one group commit wrote.

    - ``token``: Random bytes. They tell an entry from another leader's with the same number.
    - ``previous``: The token of the entry before. A file applies an entry only after that one, because a store that was
      restored from a backup, or failed over to a replica that lagged, has other entries than the file.
    - ``schema_version``: The schema's version after the entry.
    - ``statements``: The index of each statement's SQL in ``sql``, and its parameters.
    """

    format: int
    token: bytes
    previous: bytes
    schema_version: int
    sql: list[str]
    statements: list[tuple[int, Any]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
_format_decoder = msgspec.msgpack.Decoder(list[Any])


def encode_entry(
    token: bytes, previous: bytes, statements: Sequence[Statement], schema_version: int = len(MIGRATIONS)
) -> bytes:
    """A checksum (4 bytes), a flag of compression, and the entry as MessagePack."""
    places: dict[str, int] = {}
    indexed = [(places.setdefault(sql, len(places)), parameters) for sql, parameters in statements]
    body = _encoder.encode(Entry(_FORMAT, token, previous, schema_version, list(places), indexed))
    body = b"\1" + zlib.compress(body, 1) if len(body) >= _SHORTEST_COMPRESSED else b"\0" + body
    return zlib.crc32(body).to_bytes(4, "big") + body


def decode_entry(sequence: int, payload: bytes) -> Entry:
    """Raises ``LogDamagedError``, and ``LogRefusedError`` for an entry of a newer version of Durably."""
    body = payload[4:]
    if zlib.crc32(body).to_bytes(4, "big") != payload[:4]:
        raise LogDamagedError(
            f"entry {sequence} of the commit log is damaged, because its checksum differs: copy the file of a machine "
            "that has the entry with `durably backup`, and begin a new log at another URL with the copy"
        )
    body = zlib.decompress(body[1:]) if body[:1] == b"\1" else body[1:]
    form, _, _, schema_version, *_ = _format_decoder.decode(body)
    if form != _FORMAT or schema_version > len(MIGRATIONS):
        raise LogRefusedError(
            f"entry {sequence} of the commit log was written by a newer version of Durably (format {form}, schema "
            f"version {schema_version}): update Durably in this process"
        )
    return _decoder.decode(body)


def apply_entries(connection: sqlite3.Connection, entries: Sequence[tuple[int, bytes]]) -> None:
    """Apply consecutive entries in one transaction. The database then contains the log up to the last one.

    Raises as ``decode_entry`` does, and ``LogDamagedError`` if they are not the continuation of the database.
    """
    execute = functools.partial(_execute, connection)  # Nothing is recorded.
    execute("BEGIN IMMEDIATE")
    try:
        first = entries[0][0]
        token = execute("SELECT log_token FROM owner").fetchone()[0] if first > 1 else b""
        for sequence, payload in entries:
            entry = decode_entry(sequence, payload)
            if sequence > 1 and entry.previous != token:
                raise LogDamagedError(
                    f"entry {sequence} of the commit log does not follow the last one of the database: move the "
                    "database's file away, and it is restored"
                )
            token = entry.token
            for place, parameters in entry.statements:
                execute(entry.sql[place], parameters)
        execute("UPDATE owner SET log_sequence = ?, log_token = ?", (entries[-1][0], token))
    except BaseException:
        if connection.in_transaction:
            execute("ROLLBACK")
        raise
    execute("COMMIT")
