"""Reading, on connections and threads of its own, so that the event loop never waits for the disk."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from durably.engine.errors import DatabaseUnavailableError, EngineClosedError

from .schema import connect_reader

T = TypeVar("T")

_THREADS = 2


class Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="durably-reader")

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``query``, all of which sees the database as it is at one moment.

        Raises ``EngineClosedError``, ``DatabaseUnavailableError``.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, query)

    def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise DatabaseUnavailableError(f"the database cannot be read at the moment: {error}") from error

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
