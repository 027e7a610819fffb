"""A node of an app that runs on several machines, which share a commit log.

The process that has the lock of its machine's file is the machine's standby: it follows the log into the file, and
leads when no process has the lease. All others follow the leader: at its Unix socket if it is on this machine, or over
TCP, at the address in the log.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durably.engine.api.counters import read_log_gauges
from durably.engine.api.metrics import Metric
from durably.engine.log.log import CommitLog
from durably.engine.log.standby import follow
from durably.engine.log.store import LogUnavailableError
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.database import refuse_foreign
from durably.engine.sqlite.files import DatabaseLock, check_place
from durably.protocol.engine_errors import DatabaseLockedError, DatabaseLostError, DatabaseUnavailableError
from durably.protocol.text import get_logger

from .leader import LOCK_NOTE, Leader
from .network import Network, RemoteLeader
from .node import RETRY_SECONDS, STARTUP_DELAY_SECONDS, Node
from .process import EngineMovedError
from .worker import LocalWorker
from .worker_resource import Timing

if TYPE_CHECKING:
    from .follower import Follower

_LOOK_SECONDS = 0.1
"""Seconds between two looks for the file's lock, or for the leader in the log."""

_OF_ENTRIES = ("log_sequence", "log_lag_entries")

_logger = get_logger("durably.engine")


class LogNode(Node):
    """The node of a process that shares a commit log with other machines.

    A stopped process is replaced by another machine, never on its own: only the owner of the lock opens the file.
    """

    def __init__(
        self,
        database: Path,
        settings: EngineSettings,
        worker: LocalWorker,
        timing: Timing,
        loop: asyncio.AbstractEventLoop,
        network: Network,
        *,
        may_lead: bool = True,
    ) -> None:
        super().__init__(database, settings, worker, timing, loop, may_lead=may_lead)
        self._network = network
        self._log = CommitLog(network.url, lease=network.lease)
        self._lock: DatabaseLock | None = None
        """The file's lock, while this process is a standby. Later the leader has it."""
        self._elected: asyncio.Future[Leader | None] | None = None
        """The leader in this process, before it is this node's role. ``None`` if it could not start."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        super().start()
        if not self._is_closed:
            parts: list[Coroutine[Any, Any, None]] = [self._leave_former_leaders()]
            parts += [self._stand_by()] if self._may_lead else []
            self._tasks = [self.loop.create_task(part) for part in parts]

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close()
        if self._elected is not None and self._elected.done() and (leader := self._elected.result()) is not None:
            await leader.close()
        self._log.interrupt()
        await asyncio.to_thread(self._log.close)

    def forget(self) -> None:
        super().forget()
        if self._lock is not None:
            self._lock.release()
        for descriptor in self._log.descriptors():
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @property
    def log_key(self) -> str | None:
        """The key that the log holds; ``None`` until it has been read."""
        return self._log.key if self._log.has_key else None

    def read_log_metrics(self) -> list[Metric]:
        """The log's gauges as this process has them; ``Engine.read_metrics`` has those of the leader. Blocks.

        A process that is neither leader nor standby has no entries.
        """
        try:
            metrics = read_log_gauges(self._log.state())
        except DatabaseUnavailableError:
            return read_log_gauges(None)
        return [each for each in metrics if self.holds_database or each.name not in _OF_ENTRIES]

    # the role

    async def _find_role(self) -> "Leader | Follower":
        check_place(self._database)
        refuse_foreign(self._database)
        self._make_directories()
        waited, began = 0.0, self.loop.time()
        while True:
            if self._elected is not None:
                leader, self._elected = await asyncio.shield(self._elected), None
                if leader is not None:
                    return leader
            try:
                follower = await self._follow_leader()
            except EngineMovedError as error:
                if self.loop.time() - began > 2 * self._log.lease:  # The lease of a leader that has ended is over.
                    raise
                self._log_error(error)
            else:
                if follower is not None and self._elected is None:
                    return follower
                if follower is not None:
                    await follower.lose()
                    continue
                began = self.loop.time()
            self._check_holder(waited)
            await asyncio.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS

    async def _follow_leader(self) -> "Follower | None":
        """Follow the leader in the log. Raises as ``Follower.connect`` does, and ``LogUnavailableError``."""
        leader = await asyncio.to_thread(self._log.find_leader)
        if leader is None or leader.node == self._node_here():
            self._silent_socket = None  # It may only have paused.
            return await self._follow()
        remote = RemoteLeader(leader.node, leader.address, self._log.key, self._network.client_tls)
        patience = asyncio.timeout(None)
        try:
            async with patience:
                watching = self.loop.create_task(self._end_patience(patience, leader.node))
                try:
                    return await self._connect(remote)
                finally:
                    watching.cancel()
        except (TimeoutError, EngineMovedError) as error:
            if patience.expired():  # It no longer leads, so it does not matter why it does not answer.
                return None
            why = str(error) or "it does not answer"
            raise EngineMovedError(
                f"the leader at {leader.address} cannot be reached ({why}): if it runs, let this machine connect to "
                "that address, or give Embedded another address there",
                is_unclear=False,
            ) from None

    async def _end_patience(self, patience: asyncio.Timeout, node: str) -> None:
        """Let ``patience`` expire when the process ``node`` no longer leads."""
        with contextlib.suppress(LogUnavailableError):
            while self._elected is None:
                leader = await asyncio.to_thread(self._log.find_leader)
                if leader is None or leader.node != node:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        patience.reschedule(self.loop.time())

    async def _leave_former_leaders(self) -> None:
        """Leave a leader that does not know that it was replaced, because it does not reach the log."""
        while True:
            await asyncio.sleep(self._log.lease)
            if (follower := self._follower) is not None:
                with contextlib.suppress(LogUnavailableError):
                    leader = await asyncio.to_thread(self._log.find_leader)
                    followed = follower.leader
                    node = followed.node if isinstance(followed, RemoteLeader) else self._node_here()
                    if leader is not None and leader.node != node:
                        await follower.lose()

    # the standby

    async def _stand_by(self) -> None:
        """Have the file's lock, follow the log, and lead when no process does. Again after each loss."""
        pause = waited = 0.0
        while True:
            await asyncio.sleep(pause)
            pause = _LOOK_SECONDS
            waited = 0.0 if self._role.done() else waited + pause
            if self._worker.capacity().max_calls == 0 and waited <= STARTUP_DELAY_SECONDS:
                continue
            try:
                leader = await self._take_over()
            except (DatabaseLockedError, DatabaseLostError):
                continue
            except Exception as error:
                if self._role.done():
                    self._log_error(error)
                else:
                    self._report_error(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await leader.wait_lost()
            finally:
                self.holds_database = False

    async def _take_over(self) -> Leader:
        """Follow the log until this process leads.

        Raises ``DatabaseLockedError`` if another process is the standby, ``DatabaseLostError`` if another machine was
        faster, and the errors of ``follow`` and of ``Leader.open``.
        """
        self._make_directories()
        self._lock = DatabaseLock(self._database, LOCK_NOTE)
        self.holds_database = True
        try:
            await asyncio.to_thread(self._replace_former)
            await follow(self._log, self._database, self._settings.durability)
        except BaseException:
            self._lock.release()
            self._lock = None
            raise
        lock, self._lock = self._lock, None
        self._elected = elected = self.loop.create_future()
        leader: Leader | None = None
        try:
            if (follower := self._follower) is not None:  # Its leader makes no calls now.
                await follower.lose()
            leader = await Leader.open(
                self._database, self._settings, self._worker, self._timing, lock, None, self._log, self._network
            )
            return leader
        finally:
            elected.set_result(leader)

    def _replace_former(self) -> None:
        """End the lease of the process that had the lock before: that process has ended, so nobody waits for it."""
        former, path = self._node_here(), self._directory / "node"
        with contextlib.suppress(LogUnavailableError):
            if former:
                self._log.end_lease_of(former)
        path.write_text(self._log.node)

    def _node_here(self) -> str:
        """The id in the log of this machine's standby or leader."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / "node").read_text()
        return ""
