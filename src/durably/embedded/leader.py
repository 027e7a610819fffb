"""The leader: the process that runs the engine, and serves its HTTP API to the other processes.

It serves those of its machine at a Unix socket, and, with a commit log, those of other machines over TCP.
"""

import asyncio
import contextvars
import importlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from durably.engine.api.http.acceptor import Acceptor
from durably.engine.api.operations import Operation
from durably.engine.log.log import CommitLog
from durably.engine.model.dispatcher import Dispatcher, RunningCalls
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.files import DatabaseLock
from durably.protocol.engine_errors import (
    DatabaseLockedError,
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineClosedError,
)
from durably.protocol.events import ErrorBody
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from . import sockets
from .network import Network
from .process import EngineMovedError
from .worker import LocalWorker
from .worker_resource import Timing

if TYPE_CHECKING:
    from .remote_workers import LeaderApi, Workers

LOCK_NOTE = "in-process"
"""The note in the lock file. It means that the leader has a socket."""

_LOCK_SECONDS = 0.1
"""Interval of lock attempts while a stopped former leader has the lock file. That leader may end."""

_logger = get_logger("durably.engine")


class Leader:
    """Runs the engine and accepts followers. Use ``open``."""

    def __init__(
        self,
        database: Path,
        settings: EngineSettings,
        worker: LocalWorker,
        timing: Timing,
        lock: DatabaseLock | None,
        log: CommitLog | None,
        network: Network | None,
    ) -> None:
        self._database = database
        self._worker = worker
        self._timing = timing
        self._lock = lock
        self._dispatcher = Dispatcher(settings)
        self._slots = self._dispatcher.add(worker, worker.capacity(), is_local=True)
        self._workers: Workers | None = None
        """Those in other processes, since the first of these has connected."""
        self._acceptor: Acceptor | None = None
        self._api: LeaderApi | None = None
        self._opening_api: asyncio.Task[None] | None = None
        self._socket = Path()
        self._log, self._network = log, network
        self._listener: socket.socket | None = None
        self._has_recovered = asyncio.Event()
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
        leader = cls(database, settings, worker, timing, lock, log, network)
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
        engine.count_followers = lambda: 0 if leader._workers is None else len(leader._workers)
        leader.engine = engine
        leader._has_recovered.set()
        leader._tasks = [asyncio.create_task(leader._watch(engine))]
        if lock is None:
            leader._tasks.append(asyncio.create_task(leader._get_lock()))
        try:
            if leader._listener is not None:
                await leader._begin_api()
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
        return [*listening, *([] if self._api is None else self._api.descriptors())]

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
        if self._opening_api is not None:
            self._opening_api.cancel()
            await asyncio.gather(self._opening_api, return_exceptions=True)
        if self._api is not None:
            await self._api.stop_accepting()
        if self._listener is not None:
            self._listener.close()
        if self._workers is not None:
            self._workers.close()
        if self._dispatcher.running is not None:
            self._dispatcher.running.close()
        self.release_lock()
        if self._api is not None:
            await self._api.close()

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
            if self._workers is not None:
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
            self._make_protocol,
            name="the leader of the database",
            logger=_logger,
        )
        self._dispatcher.running = RunningCalls(directory)
        sockets.remove_others(directory, epoch)
        _logger.info("process %d is now the leader of the database %s (epoch %d)", os.getpid(), self._database, epoch)

    def _make_protocol(self) -> asyncio.Protocol:
        """The protocol of a connection at the socket."""
        if self._api is not None:
            return self._api.make_protocol()
        self._begin_api()
        return _StartingProtocol()

    def _begin_api(self) -> asyncio.Task[None]:
        if self._opening_api is None:
            self._opening_api = asyncio.get_running_loop().create_task(self._open_api(), context=contextvars.Context())
        return self._opening_api

    async def _open_api(self) -> None:
        """Open the API once the runs are recovered. Its import takes long, hence the thread."""
        try:
            await asyncio.to_thread(importlib.import_module, "durably.embedded.remote_workers")
            from .remote_workers import LeaderApi, Workers

            await self._has_recovered.wait()
            workers = Workers(self._dispatcher, self._timing, self._sync)
            self._api = await LeaderApi.open(self.engine, workers, self._log, self._network, self._listener)
            self._workers = workers
        except Exception:
            _logger.exception("process %d cannot serve the other processes of the database", os.getpid())
            raise


_body = msgspec.json.encode(ErrorBody(error="the engine starts: repeat the request", status=503))
_STARTING = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 0\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_body), _body)
)


class _StartingProtocol(asyncio.Protocol):
    """Answers a request with 503 while there is no API: the client sees that a leader lives, and repeats it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_answered = False

    def data_received(self, data: bytes) -> None:
        """Read the rest of the request: a socket that is closed with unread data takes the answer back."""
        if not self._is_answered:
            self._is_answered = True
            self._transport.write(_STARTING)
            self._transport.write_eof()
