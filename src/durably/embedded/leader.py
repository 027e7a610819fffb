"""The leader: the process that runs the engine, and serves its HTTP API to the other processes.

It serves those of its machine at a Unix socket, and, with a commit log, those of other machines over TCP.
"""

import asyncio
import contextvars
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from durably.engine.api.http.application import create_api
from durably.engine.api.http.connections import CONNECTIONS, Acceptor, ConnectionLimits, Connections
from durably.engine.api.http.requests import SERVER_LOGGER, ApiKeys, error_response
from durably.engine.api.operations import Operation
from durably.engine.log.log import CommitLog
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.files import DatabaseLock
from durably.protocol.engine_errors import (
    DatabaseLockedError,
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineClosedError,
)
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from . import sockets
from .dispatcher import Dispatcher, RunningCalls
from .follower import EngineMovedError
from .network import Network, key_check
from .remote_workers import Timing, Workers
from .worker import LocalWorker

LOCK_NOTE = "in-process"
"""The note in the lock file. It means that the leader has a socket."""

_LOCK_SECONDS = 0.1
"""Interval of lock attempts while a stopped former leader has the lock file. That leader may end."""
_API_CLOSE_SECONDS = 0.5
"""Seconds for HTTP requests to end before the leader closes."""
_LIMITS = ConnectionLimits(max_connections=10_000)
"""Of connections over TCP. A follower waits for each run with one."""

_logger = get_logger("durably.engine")


class Leader:
    """Runs the engine and accepts followers. Use ``open``."""

    def __init__(
        self, database: Path, settings: EngineSettings, worker: LocalWorker, timing: Timing, lock: DatabaseLock | None
    ) -> None:
        self._database = database
        self._worker = worker
        self._timing = timing
        self._lock = lock
        self._dispatcher = Dispatcher(settings)
        self._slots = self._dispatcher.add(worker, worker.capacity(), is_local=True)
        self._workers = Workers(self._dispatcher, timing, self._sync)
        self._acceptor: Acceptor | None = None
        self._make_connection: Callable[[], asyncio.Protocol] = web.Server(_answer_starting)
        self._api: web.AppRunner | None = None
        self._socket = Path()
        self._listener: socket.socket | None = None
        self._connections: Connections | None = None
        self.engine: SqliteEngine
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        database: Path,
        settings: EngineSettings,
        worker: LocalWorker,
        timing: Timing,
        lock: DatabaseLock | None,
        after_epoch: int | None = None,
        log: CommitLog | None = None,
        network: Network | None = None,
    ) -> "Leader":
        """Start the engine on the database, and accept followers.

        ``lock`` is the database's lock file, or ``None`` if its owner sends no heartbeat. Without the lock, a new epoch
        takes over the database, and the leader locks the file when it is free. ``log`` and ``network``: to lead several
        machines.

        Raises the errors of ``SqliteEngine.open``, and ``ConfigInvalidError`` for a function of this process.
        """
        leader = cls(database, settings, worker, timing, lock)
        try:
            if log is not None and network is not None:
                leader._listener = network.listen(log)
            engine = await SqliteEngine.open(
                database,
                settings,
                make_caller=lambda _: leader._dispatcher,
                takes_lock=False,
                after_epoch=after_epoch,
                on_owned=leader._listen,
                log=log,
            )
        except BaseException:
            await leader._leave()
            raise
        engine.count_followers = leader._workers.__len__
        leader.engine = engine
        leader._tasks = [asyncio.create_task(leader._watch(engine))]
        if lock is None:
            leader._tasks.append(asyncio.create_task(leader._get_lock()))
        try:
            await leader._serve_api(engine, log, network)
            await leader.update()
        except BaseException:
            await leader.close()
            raise
        return leader

    async def request(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Raises ``EngineMovedError``, and the operation's errors."""
        try:
            return await operation.execute(self.engine, arguments)
        except (EngineClosedError, DatabaseLostError) as error:
            raise EngineMovedError(error.message, is_unclear=False) from None

    @property
    def runs_nothing(self) -> bool:
        """Whether no process accepts calls."""
        return not self._dispatcher.takes_calls

    async def update(self) -> None:
        """Report the functions that this process serves. Raises ``ConfigInvalidError``."""
        self._dispatcher.change(self._slots, self._worker.capacity())
        for sync in self._worker.syncs():
            await self._sync(sync)

    async def _sync(self, sync: SyncRequest) -> None:
        await self.engine.sync_app(sync, in_process=True)

    async def wait_lost(self) -> None:
        await self.engine.wait_closed()
        await self._leave()

    async def close(self) -> None:
        """Stop making calls, wait for running ones, and release the database.

        It waits for calls in all processes.
        """
        await self.engine.close()
        await self._leave()

    def descriptors(self) -> list[int]:
        """Descriptors that a forked child must close.

        Otherwise other processes do not notice the end of this process.
        """
        listening = [each.fileno() for each in (self._acceptor, self._listener) if each is not None]
        server = None if self._api is None else self._api.server
        connections = [] if server is None else [each.transport for each in server.connections]
        return [*listening, *(each.get_extra_info("socket").fileno() for each in connections if each is not None)]

    def release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _leave(self) -> None:
        """Release all resources once.

        If one of several callers is cancelled, the others still wait.
        """
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._release_all(), context=contextvars.Context())
        await asyncio.shield(self._leaving)

    async def _release_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._acceptor is not None:
            await self._acceptor.close()
            self._socket.unlink(missing_ok=True)
        if self._connections is not None:
            await self._connections.close()
        if self._listener is not None:
            self._listener.close()
        self._workers.close()
        if self._dispatcher.running is not None:
            self._dispatcher.running.close()
        self.release_lock()
        if self._api is not None:
            await self._api.cleanup()

    # heartbeat and lock

    async def _watch(self, engine: SqliteEngine) -> None:
        """Give up silent workers, and check the epoch after a long pause of this process.

        Another process may have taken over the database in the pause.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._worker.heartbeat.beat()
            before = loop.time()
            await asyncio.sleep(self._timing.heartbeat)
            self._workers.beat()
            if loop.time() - before > self._timing.lease / 2:
                try:
                    await engine.verify()
                except (DatabaseLostError, DatabaseUnavailableError, EngineClosedError):
                    continue

    async def _get_lock(self) -> None:
        while self._lock is None:
            await asyncio.sleep(_LOCK_SECONDS)
            try:
                self._lock = DatabaseLock(self._database, LOCK_NOTE)
            except DatabaseLockedError:
                continue

    # the API

    async def _listen(self, epoch: int) -> None:
        """Listen before the engine recovers its runs, which may take long: followers see that a leader lives."""
        directory = sockets.directory_of(self._database)
        self._socket = sockets.path_of(directory, epoch)
        self._acceptor = Acceptor(
            sockets.listen(self._socket),
            lambda: self._make_connection(),
            name="the leader of the database",
            logger=_logger,
        )
        self._dispatcher.running = RunningCalls(directory)
        sockets.remove_others(directory, epoch)
        _logger.info("process %d is now the leader of the database %s (epoch %d)", os.getpid(), self._database, epoch)

    async def _serve_api(self, engine: SqliteEngine, log: CommitLog | None, network: Network | None) -> None:
        """Serve HTTP at the socket, and over TCP with the key of the log.

        Only this user can connect to the socket, so its connections and lists need no limits.
        """
        api = create_api(engine, ApiKeys(server_kind=ServerKind.DEV), routes=self._workers.routes, has_limits=False)
        if log is not None:
            api[CONNECTIONS] = self._connections = Connections(_LIMITS)
            api.middlewares.append(key_check(log.key))
        self._api = web.AppRunner(
            api,
            access_log=None,
            logger=SERVER_LOGGER,
            shutdown_timeout=_API_CLOSE_SECONDS,
            handle_signals=False,
            auto_decompress=False,
            handler_cancellation=True,  # A broken connection shows that a worker has ended.
        )
        await self._api.setup()
        assert self._api.server is not None
        self._make_connection = self._api.server
        if self._connections is not None and self._listener is not None and network is not None:
            self._connections.start(self._listener, self._api.server, network.server_tls)


async def _answer_starting(request: web.BaseRequest) -> web.StreamResponse:
    response = error_response(503, "the engine recovers its runs: repeat the request")
    response.force_close()
    return response
