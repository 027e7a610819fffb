"""Reading, on connections and threads of its own, so that the event loop never waits for the disk."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from durably.engine.errors import DatabaseCorruptError, EngineClosedError

from .schema import connect_reader
from .sqlite_errors import explain

T = TypeVar("T")

_THREADS = 2


class Reader:
    """``on_damage`` is told, on the event loop, once the database turns out to be damaged."""

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self._path = path
        self._on_damage = on_damage
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="durably-reader")

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``query``, all of which sees the database as it is at one moment.

        Raises ``EngineClosedError``, ``DatabaseUnavailableError``, ``DatabaseCorruptError``.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, query)
        except sqlite3.Error as error:
            explained = explain(error)
            if isinstance(explained, DatabaseCorruptError):
                self._on_damage(explained.message)
            raise explained from error

    def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection()
        connection.execute("BEGIN")
        try:
            return query(connection)
        finally:
            connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect_reader(self._path)
            self._connections.append(connection)
        return connection

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()
