"""A node: one of the processes that use a database, as its leader or as a follower."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from durably.engine.core.errors import (
    DatabaseBusyError,
    DatabaseLockedError,
    DatabaseLostError,
    DatabaseReplacedError,
    EngineError,
)
from durably.engine.settings import EngineSettings
from durably.engine.sqlite.files import DatabaseFiles, DatabaseLock, make_directory, read_note
from durably.errors import TransportError
from durably.protocol.text import get_logger

from . import sockets
from .errors import MemberClosedError, PlaceLostError
from .follower import Follower
from .leader import LOCK_NOTE, Owner
from .link import Timing
from .operations import OPERATIONS
from .stopped import StoppedWriter
from .worker import LocalWorker

_SEARCH_SECONDS = 0.025
"""Between two looks for an owner, or for the lock."""
_SHY_SECONDS = 0.5
"""How long a process that serves nothing leaves the database to those that do: a shell, or a script."""
_STRANGER_SECONDS = 1.0
"""How long the lock may be held by a process that has not said what it is: one that has only just got it."""
_AGAIN_SECONDS = 1.0
"""Before another try, after the database could not be opened."""

_logger = get_logger("durably.engine")


class Member:
    """Lives on one event loop.

    ``holds_database`` tells that SQLite has it open in this process. A forked child of such a process must never open
    it: SQLite would take the parent's locks for its own. It is made with ``may_own=False``.
    """

    def __init__(
        self,
        database: Path,
        settings: EngineSettings,
        worker: LocalWorker,
        timing: Timing,
        loop: asyncio.AbstractEventLoop,
        *,
        may_own: bool = True,
        kills_stopped_owner: bool = True,
    ) -> None:
        self.loop = loop
        self.holds_database = False
        self._may_own = may_own
        self._kills_stopped_owner = kills_stopped_owner
        self._presence: int | None = None
        self._database = database
        self._directory = sockets.directory_of(database)
        self._settings = settings
        self._worker = worker
        self._timing = timing
        self._is_closed = False
        self._place: asyncio.Future[Owner | Follower] = loop.create_future()
        self._first_try: asyncio.Future[None] = loop.create_future()
        self._life: asyncio.Task[None] | None = None
        self._trouble: Exception | None = None
        self._silent_socket: Path | None = None
        self._files: DatabaseFiles | None = None

    def start(self) -> None:
        """Begin to look for a place; what is asked meanwhile waits until there is one."""
        if not self._is_closed:
            self._life = self.loop.create_task(self._live())

    async def wait_placed(self) -> None:
        """Raises what stands in this process's way, ``EngineError`` or ``OSError``; it is tried again all the same."""
        await asyncio.shield(self._first_try)

    async def ask(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Raises what the operation does, ``MemberClosedError``, and ``TransportError`` where it is unclear whether
        something that must not be repeated has been done."""
        operation = OPERATIONS[name]
        while True:
            if self._is_closed:
                raise MemberClosedError("this process has left the engine")
            place = self._place.result() if self._place.done() else await asyncio.shield(self._place)
            try:
                return await place.ask(operation, arguments)
            except PlaceLostError as error:
                if error.is_unclear and not operation.is_repeatable:
                    raise TransportError(
                        f"the engine's process ended while it carried out {name!r}: whether it did is unclear"
                    ) from None
                await place.wait_lost()
                await asyncio.sleep(0)

    @property
    def trouble(self) -> Exception | None:
        """Why there is no place, where that is known."""
        return self._trouble

    def ask_directly(self, name: str, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        """``ask`` for operations that the engine executes on any event loop. Raises ``PlaceLostError`` if
        this process does not own the database, and the operation's errors."""
        place = self._get_place()
        if not isinstance(place, Owner):
            raise PlaceLostError("this process does not own the database", is_unclear=False)
        return place.ask(OPERATIONS[name], arguments)

    @property
    def runs_nothing(self) -> bool:
        """Whether this process owns the database, and neither it nor another one takes calls."""
        place = self._get_place()
        return isinstance(place, Owner) and place.runs_nothing

    def _get_place(self) -> Owner | Follower | None:
        place = self._place
        return place.result() if place.done() and place.exception() is None else None

    async def update(self) -> None:
        """This process serves other functions than before; what is wrong with them is logged."""
        if not self._place.done():
            return
        try:
            await self._place.result().update()
        except PlaceLostError:
            return  # They are told to the next owner.
        except EngineError as error:
            _logger.error("process %d serves functions that the engine refuses: %s", os.getpid(), error)

    async def close(self) -> None:
        """Let calls under way end for the settings' ``close_grace``; hand the others back."""
        self._is_closed = True
        self._worker.refuse()
        try:
            await self._leave()
            await self._worker.wait_ended()
        finally:
            self._hide()

    async def _leave(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        if not self._place.done():
            self._place.set_exception(MemberClosedError("this process has left the engine"))
            self._place.exception()
            return
        if self._place.exception() is not None:  # it has given up
            return
        place = self._place.result()
        if isinstance(place, Follower):
            with contextlib.suppress(PlaceLostError, EngineError, TimeoutError):
                async with asyncio.timeout(self._timing.beat):
                    await place.update()
            await self._worker.finish(self._settings.close_grace.total_seconds())
        await place.close()
        self.holds_database = False

    def forget(self) -> None:
        """In a forked child: leave everything to the parent, and hold nothing by which others could think it alive."""
        self._hide()
        place = self._get_place()
        if place is None:
            return
        for descriptor in place.descriptors():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if isinstance(place, Owner):
            place.release_lock()

    def _show(self) -> None:
        """Have the directory of sockets open, by which the others tell an app's processes from other programs."""
        if self._presence is None:
            self._presence = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)

    def _hide(self) -> None:
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None

    # places

    async def _live(self) -> None:
        while True:
            try:
                place = await self._find_place()
            except DatabaseReplacedError as error:
                self._give_up(error)
                return
            except Exception as error:
                self._note(error)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            self._trouble = None
            if self._files is None:
                self._files = DatabaseFiles(self._database, parts=("",))
            self._place.set_result(place)
            if not self._first_try.done():
                self._first_try.set_result(None)
            await place.wait_lost()
            self._worker.pulse.lose_contact()
            self.holds_database = False
            self._place = self.loop.create_future()
            if isinstance(place, Follower):
                self._silent_socket = place.socket if place.was_silent else None

    def _give_up(self, error: DatabaseReplacedError) -> None:
        """Stop until the app is restarted: an engine that continued would use an empty or unknown database."""
        _logger.critical(
            "process %d sends and runs nothing any more: %s (%s); put the database back, then restart the app",
            os.getpid(),
            error.message,
            self._database,
        )
        self._trouble = error
        for future in (self._place, self._first_try):
            if not future.done():
                future.set_exception(error)
                future.exception()

    def _note(self, error: Exception) -> None:
        if not self._first_try.done():
            self._first_try.set_exception(error)
            self._first_try.exception()
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        if str(error) != str(self._trouble):
            is_expected = isinstance(error, EngineError | OSError)
            _logger.error(
                "process %d does not get at the engine; it tries again: %s",
                os.getpid(),
                error,
                exc_info=None if is_expected else error,
            )
        self._trouble = error

    async def _find_place(self) -> Owner | Follower:
        """Raises ``EngineError`` and ``OSError``; ``DatabaseReplacedError`` if the database was replaced."""
        make_directory(self._database.parent)
        sockets.make_directory(self._directory)
        self._show()
        waited = 0.0
        while True:
            if self._files is not None:
                self._files.check()
            if (follower := await self._follow()) is not None:
                return follower
            is_due = self._may_own and (self._worker.offer().max_calls > 0 or waited > _SHY_SECONDS)
            if is_due and (lock := self._try_lock()) is not None and (owner := await self._own(lock)) is not None:
                return owner
            is_member = read_note(self._database) == LOCK_NOTE
            if not is_member and waited > _STRANGER_SECONDS:
                raise DatabaseLockedError(
                    f"the database {self._database} belongs to another engine that is running, and that is not in "
                    "the processes of a web app: stop that one, or give this one a database of its own"
                )
            is_silent = self._silent_socket is not None or (is_member and waited > self._timing.lease)
            if is_due and is_silent and (owner := await self._take_over()) is not None:
                return owner
            await asyncio.sleep(_SEARCH_SECONDS)
            waited += _SEARCH_SECONDS

    async def _follow(self) -> Follower | None:
        newest = sockets.newest(self._directory)
        if newest is None or newest == self._silent_socket:
            return None
        try:
            follower = await Follower.connect(newest, self._worker, self._timing)
        except TimeoutError:
            self._silent_socket = newest
            return None
        self._silent_socket = None
        if follower is None:
            return None
        try:
            await follower.update()
        except PlaceLostError:
            return None
        except BaseException:
            await follower.close()
            raise
        _logger.info("process %d follows the one that owns the database %s", os.getpid(), self._database)
        return follower

    def _try_lock(self) -> DatabaseLock | None:
        try:
            return DatabaseLock(self._database, LOCK_NOTE)
        except DatabaseLockedError:
            return None

    async def _take_over(self) -> Owner | None:
        """``None`` where another process was faster."""
        _logger.warning(
            "the process that owns the database %s has shown no sign of life for %s s; process %d tries to take over",
            self._database,
            self._timing.lease,
            os.getpid(),
        )
        if await self._end_stopped_owner():
            return None
        silent, self._silent_socket = self._silent_socket, None
        return await self._own(None, None if silent is None else sockets.epoch_of(silent))

    async def _end_stopped_owner(self) -> bool:
        """Whether it was stopped inside of a transaction, which nobody can take from it; now it has been killed, or has
        gone on, and everything is to be looked at anew.

        It must have been seen so for the lease, by turns of this process's own event loop: if all of an app's
        processes were stopped together, they go on together.
        """
        if not self._kills_stopped_owner or self._worker.offer().max_calls == 0:
            return False
        writer = StoppedWriter.find(self._database, self._directory)
        if writer is None:
            return False
        with contextlib.closing(writer):
            for _ in range(round(self._timing.lease / self._timing.beat)):
                await asyncio.sleep(self._timing.beat)
                if not writer.is_so_still():
                    return True
            if not writer.kill():
                return True
        _logger.error(
            "process %d, which owns the database %s, was stopped inside of a transaction, and did not go on: it was "
            "killed by process %d so that the others can",
            writer.process_id,
            self._database,
            os.getpid(),
        )
        return True

    async def _own(self, lock: DatabaseLock | None, after_epoch: int | None = None) -> Owner | None:
        """``None`` where another process was faster, or is in the way: that is no reason for a server not to start."""
        self.holds_database = True
        try:
            return await Owner.open(self._database, self._settings, self._worker, self._timing, lock, after_epoch)
        except DatabaseLostError:
            self.holds_database = False
            return None
        except DatabaseBusyError as error:
            self.holds_database = False
            self._tell(error)
            await self._end_stopped_owner()
            return None
        except BaseException:
            self.holds_database = False
            raise
