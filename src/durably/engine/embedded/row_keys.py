"""Keys of new rows. Where the newest rows are purged, SQLite would give their keys out again; but answers that are on
their way, timers, and whoever goes through a table bit by bit know rows by their keys.

Used in the writer's thread alone. None of what knows keys outlives the engine, so that no more has to be stored.
"""

import sqlite3


class RowKeys:
    """Of one table, ascending. Each is given out once, also where the row is not written, or the writing undone."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self._last: int | None = None

    def next(self) -> int:
        last = self._read_last() if self._last is None else self._last
        self._last = last + 1
        return self._last

    def _read_last(self) -> int:
        (last,) = self._connection.execute(f"SELECT coalesce(max(key), 0) FROM {self._table}").fetchone()
        return int(last)
