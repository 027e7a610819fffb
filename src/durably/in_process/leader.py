"""The leader: the node that runs the engine and accepts followers at a socket."""

import asyncio
import contextvars
import os
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.core.errors import (
    DatabaseLockedError,
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineClosedError,
)
from durably.engine.engine import EmbeddedEngine
from durably.engine.http.connections import Acceptor
from durably.engine.settings import EngineSettings
from durably.engine.sqlite.files import DatabaseLock
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from . import sockets
from .calls import HandedAnswer, HandedCall
from .dispatcher import Offer, Roster, Seat
from .errors import CallHandedBackError, PlaceLostError, WorkerLostError
from .in_flight import InFlightCalls
from .link import AnswerError, Link, LinkLostError, Timing
from .operations import OPERATIONS, Operation
from .sockets import ApiSocket
from .worker import LocalWorker

LOCK_NOTE = "in-process"
"""In the lock file, it says that the owner has a socket."""

_LOCK_SECONDS = 0.1
"""How often an owner without the lock tries to get it: its predecessor is stopped, and may end."""

_logger = get_logger("durably.engine")


class JoinRequest(msgspec.Struct, frozen=True):
    """What a member tells the owner at first, and whenever it changes."""

    offer: Offer
    syncs: list[SyncRequest] = []


class LinkWorker:
    """Another process, at the other end of a link."""

    def __init__(self, link: Link, process_id: int) -> None:
        self._link = link
        self._process_id = process_id

    async def answer(self, call: HandedCall) -> HandedAnswer:
        try:
            return msgspec.msgpack.decode(await self._link.ask("call", msgspec.msgpack.encode(call)), type=HandedAnswer)
        except LinkLostError:
            raise WorkerLostError(f"process {self._process_id} was lost while it ran the function") from None
        except AnswerError as error:
            if error.error_name == CallHandedBackError.__name__:
                raise CallHandedBackError(str(error)) from None
            raise WorkerLostError(f"process {self._process_id} could not run the function: {error}") from None


class _Guest:
    """A follower, as the owner knows it."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.seat: Seat | None = None


class Owner:
    """Made by ``open``."""

    def __init__(
        self, database: Path, settings: EngineSettings, worker: LocalWorker, timing: Timing, lock: DatabaseLock | None
    ) -> None:
        self._database = database
        self._directory = sockets.directory_of(database)
        self._worker = worker
        self._timing = timing
        self._lock = lock
        self._roster = Roster(settings)
        self._seat: Seat | None = None
        self._guests: set[_Guest] = set()
        self._server: Acceptor | None = None
        self._api: ApiSocket | None = None
        self._socket = Path()
        self._engine: asyncio.Future[EmbeddedEngine] = asyncio.get_running_loop().create_future()
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
    ) -> "Owner":
        """``lock`` is the database's, or ``None`` where its holder shows no sign of life: then the database is taken
        over by ending that one's epoch alone, and the lock as soon as it is free. Raises what ``EmbeddedEngine.open``
        does, and ``ConfigInvalidError`` for what this process serves."""
        owner = cls(database, settings, worker, timing, lock)
        owner._seat = owner._roster.add(worker, worker.offer())
        try:
            engine = await EmbeddedEngine.open(
                database,
                settings,
                make_caller=lambda _: owner._roster,
                takes_lock=False,
                after_epoch=after_epoch,
                on_owned=owner._let_in,
            )
        except BaseException:
            owner._engine.cancel()
            await owner._leave()
            raise
        owner._engine.set_result(engine)
        owner._tasks = [asyncio.create_task(owner._watch(engine))]
        if lock is None:
            owner._tasks.append(asyncio.create_task(owner._get_lock()))
        try:
            owner._api = await ApiSocket.open(engine, sockets.api_path_of(owner._socket))
            await owner.update()
        except BaseException:
            await owner.close()
            raise
        return owner

    async def ask(self, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        """Raises ``PlaceLostError``, and what the operation does."""
        try:
            return await operation.carry_out(self._engine.result(), *arguments)
        except (EngineClosedError, DatabaseLostError) as error:
            raise PlaceLostError(error.message, is_unclear=False) from None

    @property
    def runs_nothing(self) -> bool:
        """Whether no process takes calls."""
        return not self._roster.takes_calls

    async def update(self) -> None:
        """This process serves other functions than before, or no more. Raises ``ConfigInvalidError``."""
        assert self._seat is not None
        self._roster.change(self._seat, self._worker.offer())
        engine = await self._get_engine()
        for sync in self._worker.syncs():
            await engine.sync_app(sync, in_process=True)

    async def wait_lost(self) -> None:
        await (await self._get_engine()).wait_closed()
        await self._leave()

    async def close(self) -> None:
        """Stop making calls, let those under way end, whichever process they are in, and let go of the database."""
        engine = await self._get_engine()
        await engine.close()
        await self._leave()

    def descriptors(self) -> list[int]:
        """What a forked child must close, so that this process's end is seen."""
        listening = [self._server.fileno()] if self._server else []
        return [*listening, *(guest.link.descriptor for guest in self._guests if guest.link is not None)]

    def release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _get_engine(self) -> EmbeddedEngine:
        return await asyncio.shield(self._engine)

    async def _leave(self) -> None:
        """Several may ask for it at once, none of whom takes it away from the others by giving up the wait."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._let_go(), context=contextvars.Context())
        await asyncio.shield(self._leaving)

    async def _let_go(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.close()
            self._socket.unlink(missing_ok=True)
        for guest in list(self._guests):
            if guest.link is not None:
                guest.link.close()
        if self._roster.in_flight is not None:
            self._roster.in_flight.close()
        self.release_lock()
        if self._api is not None:
            await self._api.close()

    # keeping the database

    async def _watch(self, engine: EmbeddedEngine) -> None:
        """After this process was stopped for long, it may have lost the database without having noticed."""
        loop = asyncio.get_running_loop()
        while True:
            self._worker.pulse.beat()
            before = loop.time()
            await asyncio.sleep(self._timing.beat)
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

    # the other processes

    async def _let_in(self, epoch: int) -> None:
        """Before the engine recovers what there is, which may take long: those who wait shall know that it is done."""
        self._socket = sockets.path_of(self._directory, epoch)
        listener = sockets.listen(self._socket)
        self._server = Acceptor(listener, self._meet, name="the database's owner", logger=_logger)
        self._roster.in_flight = InFlightCalls(self._directory, epoch)
        sockets.remove_older(self._directory, epoch)
        _logger.info("process %d owns the database %s from now on (epoch %d)", os.getpid(), self._database, epoch)

    def _meet(self) -> Link:
        guest = _Guest()
        guest.link = Link(
            lambda name, payload: self._answer(guest, name, payload), self._timing, lambda: self._see_off(guest)
        )
        self._guests.add(guest)
        return guest.link

    def _see_off(self, guest: _Guest) -> None:
        self._guests.discard(guest)
        if guest.seat is None:
            return
        if guest.link is not None and guest.link.was_silent:
            process_id, lease = guest.seat.offer.process_id, self._timing.lease
            _logger.warning("process %d has shown no sign of life for %s s: its calls are given up", process_id, lease)
        self._roster.remove(guest.seat)

    async def _answer(self, guest: _Guest, name: str, payload: bytes) -> bytes:
        if name == "join":
            await self._join(guest, msgspec.json.decode(payload, type=JoinRequest))
            return b""
        return await OPERATIONS[name].answer(await self._get_engine(), payload)

    async def _join(self, guest: _Guest, request: JoinRequest) -> None:
        """Raises ``ConfigInvalidError``; then the process gets no calls."""
        assert guest.link is not None
        engine = await self._get_engine()
        for sync in request.syncs:
            await engine.sync_app(sync, in_process=True)
        if guest.link.lost.is_set():
            return
        if guest.seat is None:
            guest.seat = self._roster.add(LinkWorker(guest.link, request.offer.process_id), request.offer)
        else:
            self._roster.change(guest.seat, request.offer)
