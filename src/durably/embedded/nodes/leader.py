"""The leader: the node that runs the engine and accepts followers at a socket."""

import asyncio
import contextvars
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from durably.embedded.dispatcher import Dispatcher, WorkerSlots
from durably.embedded.worker import LocalWorker
from durably.engine.api.http.access import ApiKeys
from durably.engine.api.http.application import create_api
from durably.engine.api.http.connections import Acceptor
from durably.engine.api.http.messages import SERVER_LOGGER
from durably.engine.api.operations import Operation
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
from durably.protocol.text import get_logger

from . import sockets
from .follower import OPERATIONS, EngineMovedError, FollowerWorker, JoinRequest, answer_operation
from .in_flight import InFlightCalls
from .link import Link, Timing
from .sockets import ProtocolDetector

LOCK_NOTE = "in-process"
"""The note in the lock file. It means that the leader has a socket."""

_LOCK_SECONDS = 0.1
"""Interval of lock attempts while a stopped former leader has the lock file. That leader may end."""
_API_CLOSE_SECONDS = 0.5
"""Seconds for HTTP requests to end before the leader closes."""

_logger = get_logger("durably.engine")


class Leader:
    """Runs the engine and accepts followers. Use ``open``."""

    def __init__(
        self, database: Path, settings: EngineSettings, worker: LocalWorker, timing: Timing, lock: DatabaseLock | None
    ) -> None:
        self._database = database
        self._directory = sockets.directory_of(database)
        self._worker = worker
        self._timing = timing
        self._lock = lock
        self._dispatcher = Dispatcher(settings)
        self._slots: WorkerSlots | None = None
        self._followers: set[FollowerWorker] = set()
        self._server: Acceptor | None = None
        self._api: web.AppRunner | None = None
        self._pending: set[ProtocolDetector] = set()
        self._make_http: asyncio.Future[Callable[[], asyncio.Protocol]] = asyncio.get_running_loop().create_future()
        self._socket = Path()
        self._engine: asyncio.Future[SqliteEngine] = asyncio.get_running_loop().create_future()
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
    ) -> "Leader":
        """Start the engine on the database, and accept followers.

        ``lock`` is the database's lock file, or ``None`` if its owner sends no heartbeat. Without the lock, a new epoch
        takes over the database, and the leader locks the file when it is free.

        Raises the errors of ``SqliteEngine.open``, and ``ConfigInvalidError`` for a function of this process.
        """
        leader = cls(database, settings, worker, timing, lock)
        leader._slots = leader._dispatcher.add(worker, worker.capacity())
        try:
            engine = await SqliteEngine.open(
                database,
                settings,
                make_caller=lambda _: leader._dispatcher,
                takes_lock=False,
                after_epoch=after_epoch,
                on_owned=leader._accept_followers,
            )
        except BaseException:
            leader._engine.cancel()
            await leader._leave()
            raise
        engine.count_followers = leader._count_followers
        leader._engine.set_result(engine)
        leader._tasks = [asyncio.create_task(leader._watch(engine))]
        if lock is None:
            leader._tasks.append(asyncio.create_task(leader._get_lock()))
        try:
            await leader._serve_api(engine)
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
    def engine(self) -> SqliteEngine:
        return self._engine.result()

    @property
    def runs_nothing(self) -> bool:
        """Whether no process accepts calls."""
        return not self._dispatcher.takes_calls

    def _count_followers(self) -> int:
        return sum(follower.link is not None for follower in self._followers)

    async def update(self) -> None:
        """Report the functions that this process serves. Raises ``ConfigInvalidError``."""
        assert self._slots is not None
        self._dispatcher.change(self._slots, self._worker.capacity())
        engine = await self._get_engine()
        for sync in self._worker.syncs():
            await engine.sync_app(sync, in_process=True)

    async def wait_lost(self) -> None:
        await (await self._get_engine()).wait_closed()
        await self._leave()

    async def close(self) -> None:
        """Stop making calls, wait for running ones, and release the database.

        It waits for calls in all processes.
        """
        engine = await self._get_engine()
        await engine.close()
        await self._leave()

    def descriptors(self) -> list[int]:
        """Descriptors that a forked child must close.

        Otherwise other processes do not notice the end of this process.
        """
        listening = [self._server.fileno()] if self._server else []
        return [*listening, *(follower.link.descriptor for follower in self._followers if follower.link is not None)]

    def release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _get_engine(self) -> SqliteEngine:
        return await asyncio.shield(self._engine)

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
        if self._server is not None:
            await self._server.close()
            self._socket.unlink(missing_ok=True)
        for connection in list(self._pending):
            connection.close()
        for follower in list(self._followers):
            if follower.link is not None:
                follower.link.close()
        if self._dispatcher.in_flight is not None:
            self._dispatcher.in_flight.close()
        self.release_lock()
        self._make_http.cancel()
        if self._api is not None:
            await self._api.cleanup()

    # heartbeat and lock

    async def _watch(self, engine: SqliteEngine) -> None:
        """Check the epoch after a long pause of this process.

        Another process may have taken over the database.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._worker.heartbeat.beat()
            before = loop.time()
            await asyncio.sleep(self._timing.heartbeat)
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

    # followers

    async def _accept_followers(self, epoch: int) -> None:
        """Listen for followers before the engine recovers its runs.

        The recovery may be slow. Followers can connect and wait.
        """
        self._socket = sockets.path_of(self._directory, epoch)
        listener = sockets.listen(self._socket)
        self._server = Acceptor(
            listener,
            lambda: ProtocolDetector(self._make_link, self._make_http, self._pending),
            name="the leader of the database",
            logger=_logger,
        )
        self._dispatcher.in_flight = InFlightCalls(self._directory, epoch)
        sockets.remove_older(self._directory, epoch)
        _logger.info("process %d is now the leader of the database %s (epoch %d)", os.getpid(), self._database, epoch)

    async def _serve_api(self, engine: SqliteEngine) -> None:
        """Serve HTTP at the socket.

        Only this user can connect, so connections need no limits.
        """
        self._api = web.AppRunner(
            create_api(engine, ApiKeys(server_kind=ServerKind.DEV)),
            access_log=None,
            logger=SERVER_LOGGER,
            shutdown_timeout=_API_CLOSE_SECONDS,
            handle_signals=False,
            auto_decompress=False,
        )
        await self._api.setup()
        assert self._api.server is not None
        self._make_http.set_result(self._api.server)

    def _make_link(self) -> Link:
        follower = FollowerWorker()
        follower.link = Link(
            lambda name, payload: self._answer(follower, name, payload),
            self._timing,
            lambda: self._remove_follower(follower),
        )
        self._followers.add(follower)
        return follower.link

    def _remove_follower(self, follower: FollowerWorker) -> None:
        self._followers.discard(follower)
        if follower.slots is None:
            return
        if follower.link is not None and follower.link.was_silent:
            process_id, lease = follower.slots.capacity.process_id, self._timing.lease
            _logger.warning("process %d has sent no heartbeat for %s s: its calls are made again", process_id, lease)
        self._dispatcher.remove(follower.slots)

    async def _answer(self, follower: FollowerWorker, name: str, payload: bytes) -> bytes:
        if name == "join":
            await self._join(follower, msgspec.json.decode(payload, type=JoinRequest))
            return b""
        return await answer_operation(OPERATIONS[name], await self._get_engine(), payload)

    async def _join(self, follower: FollowerWorker, request: JoinRequest) -> None:
        """Add a follower. Raises ``ConfigInvalidError``; the follower then gets no calls."""
        assert follower.link is not None
        engine = await self._get_engine()
        for sync in request.syncs:
            await engine.sync_app(sync, in_process=True)
        if follower.link.lost.is_set():
            return
        if follower.slots is None:
            follower.slots = self._dispatcher.add(follower, request.capacity)
        else:
            self._dispatcher.change(follower.slots, request.capacity)
