"""Metadata of runs, lines of their loggers, and spans of users' code, from SDKs.

They are stored for display only, so their size is bounded. The rest is dropped, and a line is logged.
"""

import contextlib
import sqlite3
from collections.abc import Sequence

import msgspec

from durably.engine.model.records import MAX_LOG_CHARACTERS, MAX_LOG_LINES, MAX_METADATA_BYTES
from durably.engine.model.runs import ExportedSpans, RunMetadata, to_datetime, to_microseconds
from durably.engine.sqlite.tables.runs import find_run_key
from durably.protocol.call import LogLine
from durably.protocol.engine_errors import RunNotFoundError
from durably.protocol.text import get_logger

from .transaction import Transaction

MAX_TRACES_BYTES = 16 * 1024 * 1024
"""The limit of all spans. The oldest are deleted first."""

_TOO_MANY_LINES = f"further lines are not kept: a run may have {MAX_LOG_LINES} with {MAX_LOG_CHARACTERS} characters"

_logger = get_logger("durably.engine")


def add_metadata(transaction: Transaction, run_id: str, body: bytes) -> bool:
    """Add metadata. Returns ``False`` if the run already has too much.

    Raises ``RunNotFoundError``.
    """
    run_key = transaction.find_run_key(run_id)
    if run_key is None:
        raise RunNotFoundError(f"there is no run with the id {run_id!r}")
    connection = transaction.connection
    (size,) = connection.execute(
        "SELECT coalesce(sum(length(body)), 0) FROM run_metadata WHERE run_key = ?", (run_key,)
    ).fetchone()
    if size + len(body) > MAX_METADATA_BYTES:
        _logger.warning(
            "run %s: metadata of %d bytes is dropped: a run may have %d", run_id, len(body), MAX_METADATA_BYTES
        )
        return False
    connection.execute(
        "INSERT INTO run_metadata (run_key, received_at, body) VALUES (?, ?, ?)", (run_key, transaction.now, body)
    )
    return True


def add_run_logs(transaction: Transaction, run_id: str, lines: Sequence[LogLine]) -> bool:
    """Add lines. Returns ``False`` if the run has too many, and not all are kept.

    Raises ``RunNotFoundError``.
    """
    run_key = transaction.find_run_key(run_id)
    if run_key is None:
        raise RunNotFoundError(f"there is no run with the id {run_id!r}")
    connection = transaction.connection
    count, size, is_full = connection.execute(
        "SELECT count(*), coalesce(sum(length(message)), 0), coalesce(max(message = ? AND attempt IS NULL), 0) "
        "FROM run_logs WHERE run_key = ?",
        (_TOO_MANY_LINES, run_key),
    ).fetchone()
    if is_full:
        return False
    kept: list[LogLine] = []
    for line in lines:
        size += len(line.message)
        is_full = count + len(kept) >= MAX_LOG_LINES or size > MAX_LOG_CHARACTERS
        kept.append(LogLine(at=line.at, level="WARNING", message=_TOO_MANY_LINES) if is_full else line)
        if is_full:
            break
    connection.executemany(
        "INSERT INTO run_logs (run_key, at, level, message, step, attempt) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (run_key, to_microseconds(line.at), line.level, line.message, line.step, line.attempt)
            for line in sorted(kept, key=lambda line: line.at)
        ],
    )
    return not is_full


def add_traces(transaction: Transaction, content_type: str, body: bytes) -> bool:
    """Add an export of spans. Returns ``False`` if it is too large."""
    if len(body) > MAX_TRACES_BYTES // 4:
        _logger.warning("spans of %d bytes are dropped: at most %d are kept", len(body), MAX_TRACES_BYTES // 4)
        return False
    connection = transaction.connection
    connection.execute(
        "INSERT INTO traces (received_at, content_type, body) VALUES (?, ?, ?)", (transaction.now, content_type, body)
    )
    connection.execute(
        "DELETE FROM traces WHERE key IN (SELECT key FROM ("
        "SELECT key, sum(length(body)) OVER (ORDER BY key DESC) AS size FROM traces) WHERE size > ?)",
        (MAX_TRACES_BYTES,),
    )
    return True


def list_metadata(connection: sqlite3.Connection, run_id: str) -> list[RunMetadata] | None:
    """Metadata in the order of receipt; ``None`` if the run does not exist."""
    run_key = find_run_key(connection, run_id)
    if run_key is None:
        return None
    rows = connection.execute(
        "SELECT received_at, body FROM run_metadata WHERE run_key = ? ORDER BY key", (run_key,)
    ).fetchall()
    return [RunMetadata(received_at=to_datetime(at), body=msgspec.Raw(body)) for at, body in rows]


def list_traces(connection: sqlite3.Connection, run_id: str) -> list[ExportedSpans]:
    """Exports that contain the run's id, in the order of receipt.

    They may contain spans of other runs.
    """
    rows = connection.execute(
        "SELECT received_at, content_type, body FROM traces WHERE instr(body, ?) > 0 ORDER BY key", (run_id.encode(),)
    ).fetchall()
    return [_traces_view(*row) for row in rows]


def _traces_view(received_at: int, content_type: str, body: bytes) -> ExportedSpans:
    encoded = msgspec.Raw(msgspec.json.encode(body))  # base64
    if content_type == "application/json":
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            encoded = msgspec.json.decode(body, type=msgspec.Raw)
    return ExportedSpans(received_at=to_datetime(received_at), content_type=content_type, body=encoded)
