"""Statements for apps, their functions, pauses, bulk cancellations and replays."""

import sqlite3
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec

from durably.engine.core.run_state import RunStatus

_SELECT = (
    "SELECT id, kind, function_id, started_after, started_before, expression, statuses, created_at, ended_at, cursor, "
    "until_key, affected FROM bulk_operations"
)
_statuses = msgspec.json.Decoder(tuple[RunStatus, ...])


class BulkOperationKind(StrEnum):
    CANCEL = "cancel"
    REPLAY = "replay"


class BulkOperation(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk cancellation or replay, and its progress.

    ``affected`` is the number of runs changed so far. For the other fields see ``schema``.
    """

    id: str
    kind: BulkOperationKind
    function_id: str
    started_after: int | None
    started_before: int
    expression: str | None
    statuses: tuple[RunStatus, ...] | None
    created_at: int
    ended_at: int | None = None
    cursor: int = 0
    until_key: int
    affected: int = 0


class AppStore:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # apps

    def put_app(
        self, app_id: str, url: str, sdk: str | None, framework: str | None, version: str | None, now: int
    ) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO apps (id, url, sdk, framework, version, synced_at) VALUES (?, ?, ?, ?, ?, ?)",
            (app_id, url, sdk, framework, version, now),
        )

    def app_version_and_url(self, app_id: str) -> tuple[str | None, str | None]:
        """The app's version, and its URL, at its last sync."""
        row = self._connection.execute("SELECT version, url FROM apps WHERE id = ?", (app_id,)).fetchone()
        return (row[0], row[1]) if row else (None, None)

    def put_sync(self, app_id: str, sync: bytes) -> None:
        """Store the report of an app's last sync, JSON."""
        self._connection.execute("INSERT OR REPLACE INTO app_syncs (app_id, sync) VALUES (?, ?)", (app_id, sync))

    def active_functions(self, app_id: str) -> list[tuple[str, bytes]]:
        """Ids and configurations, in the order in which the app synced them."""
        return self._connection.execute(
            "SELECT id, config FROM functions WHERE app_id = ? AND is_active ORDER BY position", (app_id,)
        ).fetchall()

    def other_owner(self, function_id: str, app_id: str) -> str | None:
        """Another app with an active function of this id."""
        row = self._connection.execute(
            "SELECT app_id FROM functions WHERE id = ? AND is_active AND app_id != ?", (function_id, app_id)
        ).fetchone()
        return row[0] if row else None

    def put_functions(self, app_id: str, configs: Iterable[tuple[str, bytes]]) -> None:
        """Make these the app's active functions."""
        self._connection.execute("UPDATE functions SET is_active = 0 WHERE app_id = ?", (app_id,))
        self._connection.executemany(
            "INSERT OR REPLACE INTO functions (id, app_id, position, is_active, config) VALUES (?, ?, ?, 1, ?)",
            [(function_id, app_id, position, config) for position, (function_id, config) in enumerate(configs)],
        )

    def all_functions(self) -> list[tuple[str, str, bool, bytes, str | None]]:
        """Ids, apps, whether active, configurations, and apps' versions of all functions.

        They are in the order of apps and of functions within them.
        """
        return self._connection.execute(
            "SELECT functions.id, app_id, is_active, config, version FROM functions "
            "LEFT JOIN apps ON apps.id = app_id ORDER BY app_id, position"
        ).fetchall()

    # pauses

    def set_paused(self, function_id: str, now: int) -> None:
        self._connection.execute(
            "INSERT OR IGNORE INTO pauses (function_id, paused_at) VALUES (?, ?)", (function_id, now)
        )

    def set_resumed(self, function_id: str) -> None:
        self._connection.execute("DELETE FROM pauses WHERE function_id = ?", (function_id,))

    def paused_functions(self) -> set[str]:
        return {function_id for (function_id,) in self._connection.execute("SELECT function_id FROM pauses")}

    # bulk operations

    def add(self, operation: BulkOperation) -> None:
        self._connection.execute(
            "INSERT INTO bulk_operations (id, kind, function_id, started_after, started_before, expression, statuses, "
            "created_at, ended_at, cursor, until_key, affected) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                operation.id,
                operation.kind,
                operation.function_id,
                operation.started_after,
                operation.started_before,
                operation.expression,
                None if operation.statuses is None else msgspec.json.encode(operation.statuses).decode(),
                operation.created_at,
                operation.ended_at,
                operation.cursor,
                operation.until_key,
                operation.affected,
            ),
        )

    def find(self, operation_id: str) -> BulkOperation | None:
        row = self._connection.execute(f"{_SELECT} WHERE id = ?", (operation_id,)).fetchone()
        return read_bulk_operation(row) if row else None

    def open_bulk_operations(self, function_id: str | None = None) -> list[str]:
        """The ids of unfinished operations, of one function or of all."""
        rows = self._connection.execute(
            "SELECT id FROM bulk_operations WHERE ended_at IS NULL AND function_id = coalesce(?, function_id) ORDER "
            "BY id",
            (function_id,),
        )
        return [operation_id for (operation_id,) in rows]

    def of_kind(self, kind: BulkOperationKind) -> list[BulkOperation]:
        """Operations of one kind, oldest first."""
        return read_bulk_operations(self._connection, kind)

    def note_progress(self, operation_id: str, cursor: int, affected: int) -> None:
        self._connection.execute(
            "UPDATE bulk_operations SET cursor = ?, affected = ? WHERE id = ?", (cursor, affected, operation_id)
        )

    def end(self, operation_id: str, now: int) -> None:
        self._connection.execute("UPDATE bulk_operations SET ended_at = ? WHERE id = ?", (now, operation_id))

    def delete(self, operation_id: str) -> None:
        self._connection.execute("DELETE FROM bulk_operations WHERE id = ?", (operation_id,))

    def last_run_key(self) -> int:
        row: tuple[int] = self._connection.execute("SELECT coalesce(max(key), 0) FROM runs").fetchone()
        return row[0]

    def runs_between(self, function_id: str, after: int, until: int, at_most: int) -> list[tuple[int, RunStatus, int]]:
        """Keys, statuses and creation times of a function's runs.

        The runs have keys in ``(after, until]``.
        """
        rows: Iterable[tuple[int, str, int]] = self._connection.execute(
            "SELECT key, status, created_at FROM runs WHERE function_id = ? AND key > ? AND key <= ? "
            "ORDER BY key LIMIT ?",
            (function_id, after, until, at_most),
        )
        return [(key, RunStatus(status), created_at) for key, status, created_at in rows]


def read_syncs(connection: sqlite3.Connection) -> dict[str, bytes]:
    """The reports of the last syncs by app, JSON."""
    return dict(connection.execute("SELECT app_id, sync FROM app_syncs"))


def read_bulk_operations(connection: sqlite3.Connection, kind: BulkOperationKind) -> list[BulkOperation]:
    """Operations of one kind, oldest first."""
    return [read_bulk_operation(row) for row in connection.execute(f"{_SELECT} WHERE kind = ? ORDER BY id", (kind,))]


def read_bulk_operation(row: Any) -> BulkOperation:
    return BulkOperation(
        id=row[0],
        kind=BulkOperationKind(row[1]),
        function_id=row[2],
        started_after=row[3],
        started_before=row[4],
        expression=row[5],
        statuses=None if row[6] is None else _statuses.decode(row[6]),
        created_at=row[7],
        ended_at=row[8],
        cursor=row[9],
        until_key=row[10],
        affected=row[11],
    )
