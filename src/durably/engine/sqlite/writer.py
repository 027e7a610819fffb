"""The thread that writes, with group commit, and transactions from the event loop.

Units of work that wait at the same time share one commit, so one flush to disk serves many. If a unit fails after a
change, its group is rolled back, and each unit runs again with a savepoint of its own. A unit's future is resolved
after the commit, never before. The writer only assumes that a unit may run more than once.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import msgspec

from durably.engine.model.functions import Registry
from durably.engine.model.overview import LogState
from durably.engine.model.settings import Clock, Durability
from durably.engine.model.subscriptions import Group
from durably.engine.sqlite.after_commit import AfterCommit
from durably.engine.sqlite.database import explain
from durably.engine.sqlite.transactions import runs
from durably.engine.sqlite.transactions.transaction import Transaction, TransactionContext
from durably.protocol.engine_errors import (
    DatabaseCorruptError,
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineClosedError,
    EngineError,
)
from durably.protocol.text import get_logger

_logger = get_logger("durably.engine")

_MAX_GROUP = 512
"""Number of units after which a transaction accepts no further submissions, so that the first unit does not wait long
for the last. A submission has at most as many.
"""


class _QueuedTransaction(msgspec.Struct, eq=False):
    """A unit that is submitted to the writer, and its result.

    ``future`` belongs to ``loop``, the event loop that submitted the unit, and is resolved there. ``outcome`` is for
    ``on_commit``.
    """

    unit: Any
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    outcome: Any = None
    error: Exception | None = None

    def resolve(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class CommitLog(Protocol):
    """Where commits go, outside the machine, before they are acknowledged: see ``durably.engine.log``.

    Methods block, and raise the errors of ``durably.engine.log.log.CommitLog``.
    """

    lease: float

    def open_database(self, path: Path, durability: Durability) -> sqlite3.Connection: ...
    def take_over(self, connection: Any, on_lost: Callable[[EngineError], None]) -> int: ...
    def append(self, connection: Any) -> None: ...
    def state(self) -> LogState: ...
    def check_lease(self) -> None: ...
    def stop_waiting(self) -> None: ...
    def release(self) -> None: ...


async def read_log_state(log: CommitLog) -> LogState | None:
    """The state of the log, ``None`` if its store cannot be reached."""
    with contextlib.suppress(DatabaseUnavailableError):
        return await asyncio.to_thread(log.state)
    return None


class Writer:
    """Writes to the database, in a thread of its own.

    It owns ``connection`` from ``start`` to ``close``, and belongs to the event loop that creates it. Units may be
    submitted on any event loop.

    - ``on_lost``: Called with the reason, on the writer's event loop, if the database must no longer be written:
      another engine has taken it over, it was replaced, or it is damaged.
    - ``on_rollback``: Called in the writer's thread after a rollback of units' changes.
    - ``log``: Gets what each group has written, before its commit.
    - ``check_files``: Raises ``DatabaseReplacedError`` if the file that SQLite has open is no longer at the database's
      path. Commits to it would be lost.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        epoch: int,
        on_lost: Callable[[EngineError], None],
        on_rollback: Callable[[], None] = lambda: None,
        check_files: Callable[[], None] = lambda: None,
        log: CommitLog | None = None,
    ) -> None:
        self._connection = connection
        self._log = log
        self._epoch = epoch
        self._on_lost = on_lost
        self._on_rollback = on_rollback
        self._check_files = check_files
        self._groups: queue.SimpleQueue[list[_QueuedTransaction] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._own: list[_QueuedTransaction] = []
        self._others: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_QueuedTransaction]] = (
            weakref.WeakKeyDictionary()
        )
        """Units that one iteration of another event loop submits."""
        self._lock = threading.Lock()
        """Whether the writer is closed. A closed writer accepts no units, from any thread."""
        self._is_closed = False
        self._execute: Callable[[Any], tuple[Any, Any]]
        self._on_commit: Callable[[Any], None]
        self._on_group: Callable[[Group], None]
        self._thread = threading.Thread(target=self._work, name="durably-writer", daemon=True)

    def start(
        self,
        execute: Callable[[Any], tuple[Any, Any]],
        on_commit: Callable[[Any], None],
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> None:
        """Run submitted units from now on.

        - ``execute``: Runs a unit in the writer's thread, and returns its result and its outcome.
        - ``on_commit``: Gets the outcome on the writer's event loop, in the order of the commits, even if the unit's
          future was abandoned.
        - ``on_group``: Called there too, after the outcomes of a commit, and before the units' results arrive.
        """
        self._execute = execute
        self._on_commit = on_commit
        self._on_group = on_group
        self._thread.start()

    def submit(self, unit: Any) -> asyncio.Future[Any]:
        """Run a unit in the writer's thread. The future belongs to the running event loop.

        All units that one iteration of an event loop submits wake the thread once. Raises ``EngineClosedError``.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        loop = asyncio.get_running_loop()
        jobs = self._own if loop is self._loop else self._others.get(loop)
        if jobs is None:
            with self._lock:
                jobs = self._others.setdefault(loop, [])
        if not jobs:
            loop.call_soon(self._hand_over, jobs)
        job = _QueuedTransaction(unit, loop, loop.create_future())
        jobs.append(job)
        return job.future

    def _hand_over(self, submitted: list[_QueuedTransaction]) -> None:
        jobs = submitted.copy()
        submitted.clear()
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                for start in range(0, len(jobs), _MAX_GROUP):
                    self._groups.put(jobs[start : start + _MAX_GROUP])
        if is_closed:
            for job in jobs:
                job.error = EngineClosedError("the engine is closed")
                job.resolve()

    async def close(self) -> None:
        """Finish the submitted units, and stop."""
        if not self._is_closed:
            self._hand_over(self._own)
            with self._lock:
                self._is_closed = True
                self._groups.put(None)
        await asyncio.to_thread(self._thread.join)
        # Let the last group's results arrive on the loop.
        await asyncio.sleep(0)

    # in the writer's thread

    def _work(self) -> None:
        while True:
            group, is_last = self._next_group()
            if group:
                began = time.perf_counter()
                self._commit(group)
                self._loop.call_soon_threadsafe(self._deliver, group, time.perf_counter() - began)
                if self._others:
                    self._deliver_elsewhere(group)
            if is_last:
                return
            del group  # its objects would live until the next group is full, and the garbage collector would visit them

    def _next_group(self) -> tuple[list[_QueuedTransaction], bool]:
        jobs = self._groups.get()
        group: list[_QueuedTransaction] = []
        while jobs is not None:
            group += jobs
            if len(group) >= _MAX_GROUP:
                return group, False
            try:
                jobs = self._groups.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_QueuedTransaction]) -> None:
        is_in_log = False
        try:
            self._begin()
            for job in group:
                if not self._run(job):
                    self._run_apart(group)
                    break
            if self._log is not None:
                self._log.append(self._connection)
                is_in_log = True
            self._connection.execute("COMMIT")
        except Exception as error:
            self._on_rollback()
            if self._connection.in_transaction:  # otherwise SQLite has already rolled back
                self._connection.execute("ROLLBACK")
            reason = explain(error)
            if is_in_log:  # So this file lacks what the log has, until it is opened again.
                reason = DatabaseLostError(f"a commit that is in the log failed on this machine: {error}")
            for job in group:
                job.error = reason

    def _begin(self) -> None:
        self._check_files()
        self._connection.execute("BEGIN IMMEDIATE")
        (epoch,) = self._connection.execute("SELECT epoch FROM owner").fetchone()
        if epoch != self._epoch:
            raise DatabaseLostError("another engine has taken over the database")

    def _run(self, job: _QueuedTransaction) -> bool:
        """Run a unit. Returns ``False`` if it failed after a change."""
        job.error = None
        changes = self._connection.total_changes
        try:
            job.result, job.outcome = self._execute(job.unit)
        except Exception as error:
            job.error = explain(error)
            if not self._connection.in_transaction or isinstance(job.error, DatabaseCorruptError):
                # SQLite has rolled back the whole group; or the database is damaged, and must not be written.
                raise
            return self._connection.total_changes == changes
        return True

    def _run_apart(self, group: list[_QueuedTransaction]) -> None:
        """Roll the group back, and run each unit with a savepoint of its own."""
        self._on_rollback()
        self._connection.execute("ROLLBACK")
        self._begin()
        for job in group:
            self._connection.execute("SAVEPOINT unit")
            if not self._run(job):
                self._on_rollback()
                self._connection.execute("ROLLBACK TO unit")
            self._connection.execute("RELEASE unit")

    # after the commit

    def _deliver(self, group: list[_QueuedTransaction], seconds: float) -> None:
        failed = 0
        for job in group:
            if job.error is None:
                try:
                    self._on_commit(job.outcome)
                except Exception:
                    # The results of the other units must arrive.
                    _logger.exception("an action after a commit failed")
            else:
                failed += 1
                if isinstance(job.error, DatabaseLostError | DatabaseCorruptError):
                    self._on_lost(job.error)
        # After the calls that the commit has started, which are tasks, and before those who wait for the units.
        self._loop.call_soon(self._on_group, Group(len(group) - failed, failed, seconds))
        for job in group:
            if job.loop is self._loop:
                job.resolve()

    def _deliver_elsewhere(self, group: list[_QueuedTransaction]) -> None:
        """Resolve futures of other event loops. A closed event loop has no waiters."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_QueuedTransaction]] = {}
        for job in group:
            if job.loop is not self._loop:
                by_loop.setdefault(job.loop, []).append(job)
        for loop, jobs in by_loop.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, jobs)


def _resolve(jobs: list[_QueuedTransaction]) -> None:
    for job in jobs:
        job.resolve()


P = ParamSpec("P")
T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0

_logger = get_logger("durably.engine")


class Transactions:
    """Runs functions as transactions in the writer's thread. ``registry`` is replaced when an app syncs."""

    def __init__(self, writer: Writer, context: TransactionContext, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self._writer = writer
        self._context = context
        self._clock = clock
        self._retrying: set[asyncio.Task[None]] = set()

    def start(self, dispatch: Callable[[AfterCommit], None], on_group: Callable[[Group], None]) -> None:
        """Start the writer.

        ``dispatch`` gets the actions of each transaction after its commit, in the order of the commits. ``on_group``
        is called after those of a commit.
        """
        self._writer.start(self._execute, dispatch, on_group)

    def _execute(self, unit: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> tuple[Any, AfterCommit]:
        """Run a unit in the writer's thread."""
        work, args, kwargs = unit
        transaction = Transaction(self._context, self.registry, self._clock.now())
        result = work(transaction, *args, **kwargs)
        return result, runs.finish(transaction)

    def transact(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Run ``work`` with a transaction and the other arguments in the writer's thread.

        The future resolves after the commit. It raises the exceptions of ``work``, and ``DatabaseUnavailableError``.
        Raises ``EngineClosedError``.
        """
        return self._writer.submit((work, args, kwargs))

    async def transact_with_retry(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``transact``, repeated while the database is unavailable."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await self.transact(work, *args, **kwargs)
            except DatabaseUnavailableError as error:
                _logger.error("%s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_RETRY_SECONDS)

    def transact_in_background(self, work: Callable[..., object], *args: Any, run_key: int | None = None) -> None:
        """Commit in the background. An error is logged, and fails the run ``run_key``, if given."""
        try:
            future = self.transact(work, *args)
        except EngineClosedError:
            return
        self._clock.begin_work()

        def check(future: asyncio.Future[object]) -> None:
            if future.cancelled() or future.exception() is None:
                self._clock.end_work()
                return
            task = asyncio.get_running_loop().create_task(self._insist(future, work, args, run_key))
            self._retrying.add(task)
            task.add_done_callback(self._retried)

        future.add_done_callback(check)

    async def _insist(
        self, failed: asyncio.Future[Any], work: Callable[..., object], args: tuple[Any, ...], run_key: int | None
    ) -> None:
        try:
            try:
                await failed
            except DatabaseUnavailableError:
                await self.transact_with_retry(work, *args)
        except (EngineClosedError, DatabaseLostError):
            return
        except Exception as error:
            _logger.exception("a change of a run could not be stored")
            if run_key is not None:
                await self.transact_with_retry(runs.fail, run_key, error)

    def _retried(self, task: asyncio.Task[None]) -> None:
        self._retrying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("the failure of a run could not be stored: %s", error)
        self._clock.end_work()

    def close(self) -> None:
        """Cancel the retries."""
        for task in self._retrying:
            task.cancel()
