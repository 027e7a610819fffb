"""The engine's own rows of the queue, in a SQLite file without anything else."""

import sqlite3
from pathlib import Path

from durably.engine.sqlite.schema import MIGRATIONS
from durably.engine.sqlite.tables.flow import SqliteQueueRows


class SqliteRows(SqliteQueueRows):
    """Removes no expired row by itself, because its time does not pass."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self.statements: list[str] = []
        super().__init__(self._open(), now=0)
        for script in MIGRATIONS:
            self._connection.executescript(script)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def reopen(self) -> None:
        """As after a restart."""
        self._connection.close()
        super().__init__(self._open(), now=0)

    def close(self) -> None:
        self._connection.close()

    def record_statements(self) -> None:
        self._connection.set_trace_callback(self.statements.append)

    def plan_of(self, statement: str) -> str:
        return " ".join(row[3] for row in self._connection.execute(f"EXPLAIN QUERY PLAN {statement}"))

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, parameters)

    def purge(self, now: int) -> None:
        """Remove rows that now have no effect."""
        self._connection.execute("DELETE FROM throttle_levels WHERE expires <= ?", (now,))

    def next_opening(self) -> int | None:
        row: tuple[int | None] = self._connection.execute("SELECT min(ready_at) FROM throttle_times").fetchone()
        return row[0]
