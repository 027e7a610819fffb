"""A node: one of the processes that use a database.

It is the database's leader or a follower.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durably.engine.api.interface import OPERATIONS
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.database import refuse_foreign
from durably.engine.sqlite.files import DatabaseFiles, DatabaseLock, check_place, make_directory, read_note
from durably.errors import TransportError
from durably.protocol.engine_errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseLockedError,
    DatabaseLostError,
    DatabasePathError,
    DatabaseReplacedError,
    EngineError,
    LogDamagedError,
    LogRefusedError,
)
from durably.protocol.text import get_logger

from . import sockets
from .leader import LOCK_NOTE, Leader
from .network import RemoteLeader
from .process import EngineMovedError, NodeClosedError
from .worker import LocalWorker
from .worker_resource import Timing

if TYPE_CHECKING:
    from .follower import Follower

_SEARCH_SECONDS = 0.025
"""Seconds between two attempts to find a leader or get the lock."""
STARTUP_DELAY_SECONDS = 0.5
"""Seconds a process without functions, such as a shell, waits before it becomes leader."""
_UNKNOWN_HOLDER_SECONDS = 1.0
"""Seconds the lock may exist without a note. Its owner writes the note just after it gets the lock."""
RETRY_SECONDS = 1.0
"""Seconds before another attempt after an error."""
_UNUSABLE = (DatabasePathError, DatabaseCorruptError, LogRefusedError, LogDamagedError)
"""Errors that only a user can fix. Requests fail with them immediately; the node still tries again."""

_logger = get_logger("durably.engine")


class Node:
    """This process's part in the engine: it finds a leader or becomes one.

    It repeats this after each loss. It belongs to one event loop.

    ``holds_database``: SQLite has the database open in this process. A forked child of such a process must never open
    it, because SQLite would take the parent's locks for the child's. The child's node has ``may_lead=False``.
    """

    def __init__(
        self,
        database: Path,
        settings: EngineSettings,
        worker: LocalWorker,
        timing: Timing,
        loop: asyncio.AbstractEventLoop,
        *,
        may_lead: bool = True,
    ) -> None:
        self.loop = loop
        self.holds_database = False
        self._may_lead = may_lead
        self._database = database
        self._directory = sockets.directory_of(database)
        self._settings = settings
        self._worker = worker
        self._timing = timing
        self._is_closed = False
        self._role: asyncio.Future[Leader | Follower] = loop.create_future()
        self._first_attempt: asyncio.Future[None] = loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self.last_error: Exception | None = None
        """The error that prevents the start."""
        self._silent_socket: Path | None = None
        self._files: DatabaseFiles | None = None

    def start(self) -> None:
        """Start the search for a leader.

        Requests wait until this process is leader or follower.
        """
        if not self._is_closed:
            self._task = self.loop.create_task(self._run())

    async def wait_started(self) -> None:
        """Wait for the end of the first attempt to start.

        Raises the error that prevents the start, ``EngineError`` or ``OSError``. The node tries again.
        """
        await asyncio.shield(self._first_attempt)

    async def request(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Execute an operation of ``Engine`` in the leader.

        Raises its errors, ``NodeClosedError``, those of ``_UNUSABLE``, and ``TransportError`` if an operation that must
        not be repeated may have been executed.
        """
        operation = OPERATIONS[name]
        while True:
            if self._is_closed:
                raise NodeClosedError("the node of this process is closed")
            if not self._role.done() and isinstance(self.last_error, _UNUSABLE):
                raise self.last_error
            role = await asyncio.shield(self._role)
            try:
                return await role.request(operation, arguments)
            except EngineMovedError as error:
                if error.is_unclear and not operation.may_repeat(arguments):
                    raise TransportError(
                        f"the leader ended during {name!r}: it is unclear whether the operation was executed"
                    ) from None
                await role.wait_lost()
                await asyncio.sleep(0)

    @property
    def leader(self) -> Leader | None:
        """The leader, if this process is it."""
        role = self._get_role()
        return role if isinstance(role, Leader) else None

    @property
    def _follower(self) -> "Follower | None":
        """The connection to the leader, if this process is a follower."""
        role = self._get_role()
        return None if isinstance(role, Leader) else role

    def _get_role(self) -> "Leader | Follower | None":
        role = self._role
        return role.result() if role.done() and role.exception() is None else None

    async def update(self) -> None:
        """Report the functions that this process serves. Logs errors in their options."""
        try:
            if (role := self._get_role()) is not None:
                await role.update()
        except EngineMovedError:
            return  # The next leader gets them.
        except EngineError as error:
            _logger.error("process %d serves functions that the engine refuses: %s", os.getpid(), error)

    async def close(self) -> None:
        """Accept no more calls, and wait for running ones.

        The wait is at most the settings' ``close_grace``. Calls that have not ended by then are returned.
        """
        self._is_closed = True
        self._worker.refuse()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if not self._role.done():
            _fail(self._role, NodeClosedError("the node of this process is closed"))
        elif (role := self._get_role()) is not None:
            if (follower := self._follower) is not None:
                with contextlib.suppress(EngineMovedError, EngineError, TimeoutError):
                    async with asyncio.timeout(self._timing.heartbeat):
                        await follower.update()
                await self._worker.finish(self._settings.close_grace.total_seconds())
            await role.close()
            self.holds_database = False
        await self._worker.wait_ended()

    def forget(self) -> None:
        """In a forked child, leave the role to the parent.

        Closes descriptors that would keep the parent's lock and its connections open.
        """
        if (leader := self.leader) is not None:
            for descriptor in leader.descriptors():
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            leader.release_lock()

    # roles

    async def _run(self) -> None:
        while True:
            try:
                role = await self._find_role()
            except DatabaseReplacedError as error:
                self._give_up(error)
                return
            except Exception as error:
                self._report_error(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.last_error = None
            if self._files is None:
                self._files = DatabaseFiles(self._database, parts=("",))
            self._worker.checkpoints.engine = role.engine if isinstance(role, Leader) else None
            self._role.set_result(role)
            if not self._first_attempt.done():
                self._first_attempt.set_result(None)
            await role.wait_lost()
            self._worker.checkpoints.engine = None
            self._worker.heartbeat.lose_contact()
            self._role = self.loop.create_future()
            if isinstance(role, Leader):
                self.holds_database = False
            elif isinstance(role.leader, Path):
                self._silent_socket = role.leader if role.was_silent else None

    def _give_up(self, error: DatabaseReplacedError) -> None:
        """Stop until the app is restarted.

        If the engine continued, it would use an empty or unknown database.
        """
        _logger.critical(
            "process %d no longer sends events or runs functions: %s (%s); put the database back, then restart the app",
            os.getpid(),
            error.message,
            self._database,
        )
        self.last_error = error
        _fail(self._role, error)
        _fail(self._first_attempt, error)

    def _report_error(self, error: Exception) -> None:
        _fail(self._first_attempt, error)
        self._log_error(error)
        if isinstance(error, _UNUSABLE):  # Waiting requests would wait until a user acts.
            _fail(self._role, error)
            self._role = self.loop.create_future()

    def _log_error(self, error: Exception) -> None:
        if str(error) != str(self.last_error):
            is_expected = isinstance(error, EngineError | EngineMovedError | OSError)
            _logger.error(
                "process %d cannot reach the engine; it tries again: %s",
                os.getpid(),
                error,
                exc_info=None if is_expected else error,
            )
        self.last_error = error

    async def _find_role(self) -> "Leader | Follower":
        """Find a leader, or become one.

        A leader that answers is never replaced, even if it refuses this process: then the attempt fails, and ``_run``
        repeats it.

        Raises ``EngineError`` and ``OSError``; ``DatabaseReplacedError`` if the database was replaced.
        """
        if self._files is None:
            check_place(self._database)
            refuse_foreign(self._database)
        self._make_directories()
        waited = 0.0
        while True:
            if self._files is not None:
                self._files.check()
            try:
                if (follower := await self._follow()) is not None:
                    return follower
            except EngineMovedError as error:  # The leader was there just now.
                self._log_error(error)
                waited = 0.0
            may_lead = self._may_lead and (self._worker.capacity().max_calls > 0 or waited > STARTUP_DELAY_SECONDS)
            if may_lead:
                with contextlib.suppress(DatabaseLockedError):
                    lock = DatabaseLock(self._database, LOCK_NOTE)
                    if (leader := await self._lead(lock)) is not None:
                        return leader
            is_node = self._check_holder(waited)
            if may_lead and (self._silent_socket is not None or (is_node and waited > self._timing.lease)):
                _logger.warning(
                    "the leader of the database %s has sent no heartbeat for %s s; process %d tries to take over",
                    self._database,
                    self._timing.lease,
                    os.getpid(),
                )
                silent, self._silent_socket = self._silent_socket, None
                epoch = None if silent is None else sockets.epoch_of(silent)
                if (leader := await self._lead(None, epoch)) is not None:
                    return leader
            await asyncio.sleep(_SEARCH_SECONDS)
            waited += _SEARCH_SECONDS

    def _make_directories(self) -> None:
        make_directory(self._database.parent)
        sockets.make_directory(self._directory)

    def _check_holder(self, waited: float) -> bool:
        """Whether a node has the lock.

        Raises ``DatabaseLockedError`` if another engine has it.
        """
        is_node = read_note(self._database) == LOCK_NOTE
        if not is_node and waited > _UNKNOWN_HOLDER_SECONDS:
            raise DatabaseLockedError(
                f"the database {self._database} belongs to another engine that is running, which is not in the "
                "processes of a web app: stop that engine, or use another database"
            )
        return is_node

    async def _follow(self) -> "Follower | None":
        """Raises ``EngineMovedError`` if the connection breaks, and ``EngineError`` if the leader refuses it."""
        newest = sockets.newest(self._directory)
        if newest is None or newest == self._silent_socket:
            return None
        try:
            follower = await self._connect(newest)
        except TimeoutError:
            self._silent_socket = newest
            return None
        self._silent_socket = None
        return follower

    async def _connect(self, leader: Path | RemoteLeader) -> "Follower | None":
        """Raises as ``Follower.connect`` does."""
        # It has an HTTP client, which takes more time and memory than the engine. An app in one process does without.
        from .follower import Follower

        follower = await Follower.connect(leader, self._worker, self._timing)
        if follower is not None:
            place = leader.address if isinstance(leader, RemoteLeader) else leader
            _logger.info("process %d follows the leader of the database %s at %s", os.getpid(), self._database, place)
        return follower

    async def _lead(self, lock: DatabaseLock | None, after_epoch: int | None = None) -> Leader | None:
        """Become the leader, if possible.

        Returns ``None`` if another process became leader first, or has SQLite's write lock. Neither prevents a server's
        start.
        """
        self.holds_database = True
        leader: Leader | None = None
        try:
            leader = await Leader.open(self._database, self._settings, self._worker, self._timing, lock, after_epoch)
        except DatabaseLostError:
            pass
        except DatabaseBusyError as error:
            self._log_error(error)
        finally:
            self.holds_database = leader is not None
        return leader


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # It is no mistake if nothing waits for it.
