"""The one thread that writes, and group commit.

Work is submitted as units. Whatever waits at one moment shares one transaction, so that one flush to disk serves
many. A unit that fails spoils no other: where it has changed anything by then, its group is rolled back and carried
out again, each unit with a savepoint of its own. A unit's future is resolved after the commit, never before. What a
unit is, the writer does not know, but that it may be carried out more than once.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from durably.engine.core.errors import DatabaseCorruptError, DatabaseLostError, EngineClosedError, EngineError
from durably.protocol.text import get_logger

from .database import explain

T = TypeVar("T")
Unit = Callable[[], T]

_logger = get_logger("durably.engine")

_MAX_GROUP = 512
"""The number of units after which a transaction takes no further submissions: the first unit should not wait long for
the last. A submission has at most as many."""


class _Job:
    """``future`` belongs to ``loop``, the event loop that submitted the unit, and is resolved there."""

    __slots__ = ("error", "future", "loop", "on_commit", "result", "unit")

    def __init__(
        self, unit: Unit[Any], loop: asyncio.AbstractEventLoop, on_commit: Callable[[Any], None] | None
    ) -> None:
        self.unit = unit
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.on_commit = on_commit
        self.result: Any = None
        self.error: Exception | None = None


class _Submissions:
    """All units that one iteration of an event loop submits are one group, and wake the writer's thread once."""

    __slots__ = ("_accept", "_jobs", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, accept: Callable[[list[_Job]], None]) -> None:
        self.loop = loop
        self._accept = accept
        self._jobs: list[_Job] = []

    def add(self, job: _Job) -> None:
        if not self._jobs:
            self.loop.call_soon(self.hand_over)
        self._jobs.append(job)

    def hand_over(self) -> None:
        jobs, self._jobs = self._jobs, []
        self._accept(jobs)


class Writer:
    """Owns ``connection`` from ``start`` to ``close``, and belongs to the event loop that makes it. Units may be
    submitted on any event loop.

    ``on_lost`` is called with the reason, on the writer's event loop, if the database must not be written any more:
    another engine has taken it over, it was replaced, or it is damaged. ``on_rollback`` is called in the writer's
    thread after a rollback of units' changes. ``check_files`` raises ``DatabaseReplacedError`` if the file that SQLite
    has open is no longer at the database's path: commits to it would be lost.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        epoch: int,
        on_lost: Callable[[EngineError], None],
        on_rollback: Callable[[], None] = lambda: None,
        check_files: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._epoch = epoch
        self._on_lost = on_lost
        self._on_rollback = on_rollback
        self._check_files = check_files
        self._jobs: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._own = _Submissions(self._loop, self._accept)
        self._others: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Submissions] = weakref.WeakKeyDictionary()
        self._thread = threading.Thread(target=self._work, name="durably-writer", daemon=True)
        self._lock = threading.Lock()
        """A closed writer accepts no units, from any thread."""
        self._is_closed = False

    def start(self) -> None:
        self._thread.start()

    def submit(self, unit: Unit[T], on_commit: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Run ``unit`` in the writer's thread; the future belongs to the running event loop.

        ``on_commit`` gets its result on the writer's event loop, in the order of the commits, even if the future was
        abandoned. Raises ``EngineClosedError``.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        loop = asyncio.get_running_loop()
        submissions = self._own if loop is self._loop else self._others.get(loop) or self._new_submissions(loop)
        job = _Job(unit, loop, on_commit)
        submissions.add(job)
        return job.future

    def _new_submissions(self, loop: asyncio.AbstractEventLoop) -> _Submissions:
        with self._lock:
            submissions = self._others[loop] = _Submissions(loop, self._accept)
            return submissions

    def _accept(self, jobs: list[_Job]) -> None:
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                for start in range(0, len(jobs), _MAX_GROUP):
                    self._jobs.put(jobs[start : start + _MAX_GROUP])
        if is_closed:
            for job in jobs:
                job.error = EngineClosedError("the engine is closed")
            _resolve(jobs)

    async def close(self) -> None:
        """Finish what was submitted, and stop."""
        if not self._is_closed:
            self._own.hand_over()
            with self._lock:
                self._is_closed = True
                self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        # The last group's results are on their way to the loop: let them arrive.
        await asyncio.sleep(0)

    def _work(self) -> None:
        while True:
            group, is_last = self._next_group()
            if group:
                self._commit(group)
                self._loop.call_soon_threadsafe(self._deliver, group)
                self._deliver_elsewhere(group)
            if is_last:
                return
            del group  # or all that belongs to it would live until the next is full, for the garbage collector to visit

    def _next_group(self) -> tuple[list[_Job], bool]:
        jobs = self._jobs.get()
        group: list[_Job] = []
        while jobs is not None:
            group += jobs
            if len(group) >= _MAX_GROUP:
                return group, False
            try:
                jobs = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Job]) -> None:
        try:
            self._begin()
            if not all(self._run(job) for job in group):
                self._roll_back("ROLLBACK")
                self._begin()
                for job in group:
                    self._run_apart(job)
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back("ROLLBACK" if self._connection.in_transaction else None)
            for job in group:
                job.error = explain(error)

    def _begin(self) -> None:
        self._check_files()
        self._connection.execute("BEGIN IMMEDIATE")
        (epoch,) = self._connection.execute("SELECT epoch FROM owner").fetchone()
        if epoch != self._epoch:
            raise DatabaseLostError("another engine has taken over the database")

    def _roll_back(self, statement: str | None) -> None:
        """``None`` where SQLite has done so itself."""
        self._on_rollback()
        if statement is not None:
            self._connection.execute(statement)

    def _run(self, job: _Job) -> bool:
        """False where something has to be undone."""
        job.error = None
        changes = self._connection.total_changes
        try:
            job.result = job.unit()
        except Exception as error:
            job.error = explain(error)
            if not self._connection.in_transaction or isinstance(job.error, DatabaseCorruptError):
                # SQLite has rolled back all of it, and so the group's other units too; or nothing should be
                # added to what is damaged.
                raise
            return self._connection.total_changes == changes
        return True

    def _run_apart(self, job: _Job) -> None:
        self._connection.execute("SAVEPOINT unit")
        if not self._run(job):
            self._roll_back("ROLLBACK TO unit")
        self._connection.execute("RELEASE unit")

    def _deliver(self, group: list[_Job]) -> None:
        for job in group:
            if job.error is None:
                if job.on_commit is not None:
                    self._call_on_commit(job.on_commit, job.result)
            elif isinstance(job.error, DatabaseLostError | DatabaseCorruptError):
                self._on_lost(job.error)
            if job.loop is self._loop:
                _resolve_one(job)

    def _deliver_elsewhere(self, group: list[_Job]) -> None:
        """Resolve futures of other event loops. A closed event loop has no waiters."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        for job in group:
            if job.loop is not self._loop:
                by_loop.setdefault(job.loop, []).append(job)
        for loop, jobs in by_loop.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, jobs)

    def _call_on_commit(self, on_commit: Callable[[Any], None], result: object) -> None:
        try:
            on_commit(result)
        except Exception:
            # Of one unit; the others' results must arrive all the same.
            _logger.exception("what follows from a commit could not be done")


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        _resolve_one(job)


def _resolve_one(job: _Job) -> None:
    if job.future.done():
        return
    if job.error is None:
        job.future.set_result(job.result)
    else:
        job.future.set_exception(job.error)
