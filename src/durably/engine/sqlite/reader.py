"""Reads, in threads with connections of their own.

The event loop never waits for the disk.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from durably.protocol.engine_errors import (
    DatabaseCorruptError,
    DatabaseReplacedError,
    EngineClosedError,
    EngineError,
)

from .database import connect_reader, explain

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 2
_MAX_BATCH = 32
"""Number of queries that one thread runs before it delivers their results."""


class Reader:
    """Reads the database in threads of its own.

    ``on_damage`` is called on the event loop if the database is damaged or replaced. ``check_files`` raises
    ``DatabaseReplacedError`` if it was replaced: a new connection would open another file.
    """

    def __init__(
        self, path: Path, on_damage: Callable[[EngineError], None], check_files: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._on_damage = on_damage
        self._check_files = check_files
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._is_closed = False
        self._asked: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="durably-reader")

    async def read(
        self, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of ``query``, which reads one snapshot of the database.

        Raises ``EngineClosedError``, ``DatabaseUnavailableError``, ``DatabaseCorruptError``.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        loop = asyncio.get_running_loop()
        return await self._explained(
            loop.run_in_executor(self._threads, self._run, lambda connection: query(connection, *args, **kwargs))
        )

    async def read_batched(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """``read`` for small queries.

        Queries of one iteration of the event loop share a thread switch.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._hand_over)
        future: asyncio.Future[T] = loop.create_future()
        self._asked.append((query, future))
        return await self._explained(future)

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        if self._is_closed:
            for _, future in asked:
                _resolve(future, EngineClosedError("the engine is closed"))
            return
        for group in (asked[start : start + _MAX_BATCH] for start in range(0, len(asked), _MAX_BATCH)):
            queries, futures = zip(*group, strict=True)
            outcomes = asyncio.get_running_loop().run_in_executor(self._threads, self._run_each, queries)
            outcomes.add_done_callback(partial(_deliver, futures))

    def _run_each(self, queries: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        """The results of queries, or their errors."""
        outcomes = []
        for query in queries:
            try:
                outcomes.append(self._run(query))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    async def _explained(self, result: asyncio.Future[T]) -> T:
        try:
            return await result
        except DatabaseReplacedError as error:
            self._on_damage(error)
            raise
        except sqlite3.Error as error:
            explained = explain(error)
            if isinstance(explained, DatabaseCorruptError):
                self._on_damage(explained)
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
            self._check_files()
            connection = self._local.connection = connect_reader(self._path)
            self._connections.append(connection)
        return connection

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()


def _deliver(futures: Sequence[asyncio.Future[Any]], outcomes: asyncio.Future[list[Any]]) -> None:
    for future, outcome in zip(futures, outcomes.result(), strict=True):
        _resolve(future, outcome)


def _resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
