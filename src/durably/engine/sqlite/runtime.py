"""A running engine.

It opens the database, connects the parts, dispatches what follows commits, and closes.
"""

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from durably.engine.api.counters import RunObservers
from durably.engine.model.calls import Caller, HttpCaller, TracedCaller
from durably.engine.model.channels import Channels
from durably.engine.model.functions import Registry
from durably.engine.model.settings import EndedRun, EngineSettings, make_policy
from durably.engine.model.subscriptions import CompletionWaiters, RunChange, RunWatches, Subscriptions
from durably.engine.sqlite.database import explain, is_busy, open_database, refuse_foreign, take_ownership
from durably.engine.sqlite.files import DatabaseFiles, DatabaseLock, find_file
from durably.engine.sqlite.reader import Reader
from durably.engine.sqlite.tables.flow import FlowStore
from durably.engine.sqlite.tables.runs import RunStore
from durably.engine.sqlite.writer import CommitLog, Transactions, Writer
from durably.protocol.engine_errors import (
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseLostError,
    DatabaseReplacedError,
    DatabaseUnavailableError,
    EngineError,
    LogRefusedError,
)
from durably.protocol.text import get_logger

from .after_commit import (
    AfterCommit,
    ContinueBulkOperation,
    ControlsChanged,
    EventsStored,
    RunEnded,
    ScheduledCall,
    ScheduledRequest,
    StepTimer,
    StoredTimer,
    Synced,
)
from .call_dispatch import CallDispatcher, StepRequests
from .changes import ChangeFeed
from .retention import PurgeStore, Retention
from .statistics import Statistics
from .timers import Loaded, Timers, load_timers
from .transactions import bulk_operations, operations, runs
from .transactions.bulk_operations import open_bulk_operations, read_controls
from .transactions.transaction import RunCache, TransactionContext

P = ParamSpec("P")
T = TypeVar("T")

_LOAD_LIMIT = 10_000
"""Number of timers and delayed calls that are read at a time."""
_RECOVERED_TOGETHER = 100
_CHECK_SECONDS = 1.0
"""Seconds between an idle engine's checks that its database still exists. A busy engine checks at each commit."""

_logger = get_logger("durably.engine")

_Due = ScheduledCall | StoredTimer | ScheduledRequest


class Runtime:
    """A running engine. Use ``open`` to create it."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        connection: sqlite3.Connection,
        epoch: int,
        lock: DatabaseLock | None,
        make_caller: Callable[[EngineSettings], Caller],
        log: CommitLog | None = None,
    ) -> None:
        self.settings = settings
        self._connection = connection
        self._lock = lock
        self.log = log
        self.path = path
        self._closing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self.stop_error: EngineError | None = None
        """The error that stopped the engine, unless ``close`` stopped it."""
        self.closed = asyncio.Event()
        store = RunStore(connection)
        self._files = DatabaseFiles(path)
        self.reader = Reader(path, self._give_up, self._files.check)
        cache = RunCache()
        self._writer = Writer(connection, epoch, self._give_up, cache.clear, self._files.check, log)
        self.transactions = Transactions(
            self._writer,
            TransactionContext(
                store,
                FlowStore(connection),
                make_policy(settings),
                settings.max_event_bytes,
                settings.entropy,
                cache,
                runs.cancel,
                settings.tracing,
            ),
            Registry.from_rows(operations.read_functions(connection), read_controls(connection, settings.clock.now())),
            settings.clock,
        )
        self.observers = RunObservers(settings)
        self.changes = ChangeFeed(settings.clock.now(), asyncio.get_running_loop())
        self.statistics = Statistics(path, self.transactions, settings.clock)
        self.run_watches = RunWatches()
        self.observers.add(self.changes)
        self.observers.add(self.run_watches)
        self.observers.add(self.statistics)
        self._caller = make_caller(settings)
        self.connected = self._caller.connected if isinstance(self._caller, HttpCaller) else None
        if self.connected is not None:
            self.connected.on_served = functools.partial(self.transactions.transact_in_background, operations.reach)
        if settings.tracing is not None:
            self._caller = TracedCaller(self._caller, settings.tracing)
        self.call_dispatcher = CallDispatcher(
            self._caller,
            self.reader,
            self.transactions,
            settings.clock,
            self.observers,
            max_calls=settings.max_calls,
            max_steps=settings.max_steps,
        )
        self.channels = Channels(settings.clock.now, asyncio.get_running_loop())
        self._requests = StepRequests(settings, self.transactions, self.channels)
        self._timers: Timers[_Due] = Timers(settings.clock, self._load_timers, self._fire, self._check_all_throttles)
        self._retention: Retention | None = None
        if settings.retention is not None:
            self._retention = Retention(PurgeStore(connection), self.transactions, settings.clock, settings.retention)
        self.subscriptions = Subscriptions()
        self.completion_waiters = CompletionWaiters()
        self._store = store

    @classmethod
    async def open(
        cls,
        path: Path,
        settings: EngineSettings,
        make_caller: Callable[[EngineSettings], Caller] = HttpCaller,
        *,
        takes_lock: bool = True,
        after_epoch: int | None = None,
        on_owned: Callable[[int], Awaitable[None]] | None = None,
        log: CommitLog | None = None,
    ) -> "Runtime":
        """Open an engine, as ``SqliteEngine.open`` does."""
        path = find_file(path)
        refuse_foreign(path)
        lock = DatabaseLock(path) if takes_lock else None
        connection: sqlite3.Connection | None = None
        runtime: Runtime | None = None
        try:
            lost: list[EngineError] = []
            if log is None:
                connection = await asyncio.to_thread(open_database, path, settings.durability)
                _refuse_copy_of_log(path, connection)
                epoch = await _take_ownership(path, connection, after_epoch)
            else:
                connection = await asyncio.to_thread(log.open_database, path, settings.durability)
                on_lost = _calls_on_loop(
                    lambda error: lost.append(error) if runtime is None else runtime._give_up(error)
                )
                epoch = await _to_its_end(log.take_over, connection, on_lost)
            if on_owned is not None:
                await on_owned(epoch)
            runtime = cls(path, settings, connection, epoch, lock, make_caller, log)
            if lost:
                raise lost[0]
        except BaseException:
            if log is not None:
                await asyncio.to_thread(log.release)
            if connection is not None:
                connection.close()
            if lock is not None:
                lock.release()
            raise
        try:
            try:
                await runtime.statistics.open()
            finally:
                runtime.transactions.start(runtime._dispatch_after_commit, runtime.observers.on_commit)
            runtime.statistics.start()
            await runtime._recover()
        except BaseException:
            await runtime.close()
            raise
        runtime._timers.start()
        runtime._checking = asyncio.get_running_loop().create_task(runtime._check_files())
        if runtime._retention is not None:
            runtime._retention.start()
        return runtime

    async def close(self) -> None:
        """Close the engine. Further calls have no effect."""
        if self._closing is None:
            grace = self.settings.close_grace.total_seconds()
            self._closing = asyncio.get_running_loop().create_task(self._close(grace))
        await asyncio.shield(self._closing)

    async def _close(self, grace_seconds: float) -> None:
        self._timers.close()
        if self._checking is not None:
            self._checking.cancel()
        if self._retention is not None:
            await self._retention.close()
        await self.call_dispatcher.close(grace_seconds)
        await self._requests.close()
        self.transactions.close()
        if self.log is None:
            await self._writer.close()
        else:
            gives_up = asyncio.get_running_loop().call_later(self.log.lease, self.log.stop_waiting)
            await self._writer.close()
            gives_up.cancel()
            await asyncio.to_thread(self.log.release)
        await self.statistics.close()
        await self.reader.close()
        await self._caller.close()
        await asyncio.to_thread(self._connection.close)
        if self._lock is not None:
            self._lock.release()
        self.changes.close()
        self.run_watches.close()
        self.subscriptions.close()
        self.channels.close()
        self.completion_waiters.close()
        self.closed.set()

    async def _check_files(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                self._files.check()
            except DatabaseReplacedError as error:
                self._give_up(error)

    def _give_up(self, error: EngineError) -> None:
        if self._closing is None:
            self.stop_error = error
            _logger.critical("%s; this engine stops (its database is %s)", error.message, self.path)
            # Answers of calls under way cannot be stored.
            self._closing = asyncio.get_running_loop().create_task(self._close(grace_seconds=0))

    async def _recover(self) -> None:
        """Repeat the calls that were under way when the engine stopped.

        They are repeated under new generations.
        """
        lost, operation_ids = self._store.runnable_runs(), open_bulk_operations(self._connection)
        groups = [lost[start : start + _RECOVERED_TOGETHER] for start in range(0, len(lost), _RECOVERED_TOGETHER)]
        await asyncio.gather(*(self._recover_together(group) for group in groups))
        for operation_id in operation_ids:
            self.transactions.transact_in_background(bulk_operations.continue_operation, operation_id)

    async def _recover_together(self, run_keys: list[int]) -> None:
        """Recover runs. A run that cannot be recovered does not affect the others."""
        try:
            await self.transactions.transact(operations.recover, run_keys)
        except (DatabaseCorruptError, DatabaseLostError, DatabaseUnavailableError):
            raise
        except Exception as error:
            if len(run_keys) > 1:
                for run_key in run_keys:
                    await self._recover_together([run_key])
            else:
                _logger.exception("a run could not be recovered")
                self.transactions.transact_in_background(runs.fail, run_keys[0], error)

    # actions after commits, and timers

    def _dispatch_after_commit(self, actions: AfterCommit) -> None:
        """Dispatch what follows a transaction, after its commit."""
        calls: list[ScheduledCall] = []
        for message in actions:
            match message:
                case RunChange():
                    self.observers.changes.append(message)
                    self.channels.note(message)
                    if self.subscriptions.listeners:
                        self.subscriptions.publish(message)
                case ScheduledCall():
                    if not message.call.is_made(self.settings.clock.now()):
                        self._timers.add(message.call.due, message)
                    elif message.has_to_queue:
                        self._join_queue(message)
                    else:
                        calls.append(message)
                case RunEnded():
                    self._requests.forget(message.run_key)
                    self.completion_waiters.resolve(message.run_key)
                case EventsStored():
                    self.observers.counters.received += len(message.names)
                    if message.unmatched:
                        self.observers.on_unmatched([name for name in message.names if name in message.unmatched])
                case ScheduledRequest():
                    self._requests.note(message)
                    self._timers.add(message.request.scheduled_at, message, is_stored=False)
                case Synced():
                    self.transactions.registry = self.transactions.registry.with_app(message.app_id, message.functions)
                case ControlsChanged():
                    self.transactions.registry = self.transactions.registry.with_controls(
                        message.function_id, message.controls
                    )
                case EndedRun():
                    if self.settings.tracing is not None:
                        self.settings.tracing.run_ended(message)
                case ContinueBulkOperation():
                    self.transactions.transact_in_background(bulk_operations.continue_operation, message.operation_id)
                case _:
                    self._timers.add(message.due, message)
        if calls:
            self.call_dispatcher.make(calls)

    async def _load_timers(self, after: int, until: int) -> Loaded[_Due]:
        loaded = await self.reader.read(load_timers, after, until, _LOAD_LIMIT)
        return Loaded([*loaded.items], loaded.reached, loaded.next_due)

    def _fire(self, due: list[_Due]) -> None:
        """Act on timers that are due."""
        now = self.settings.clock.now()
        self.observers.on_timers([max(0, now - _due_of(item)) for item in due])
        self.call_dispatcher.make([item for item in due if isinstance(item, ScheduledCall) and not item.has_to_queue])
        for item in due:
            if isinstance(item, ScheduledCall):
                if item.has_to_queue:
                    self._join_queue(item)
            elif isinstance(item, ScheduledRequest):
                self._requests.make(item)
            else:
                run_key = item.run_key if isinstance(item, StepTimer) else None
                self.transactions.transact_in_background(operations.fire_timer, item, run_key=run_key)

    def _check_all_throttles(self) -> None:
        """Check throttles after the clock was set back.

        The stored times at which they are ready may be far away.
        """
        self.transactions.transact_in_background(lambda transaction: transaction.queue.check_all_throttles())

    def _join_queue(self, call: ScheduledCall) -> None:
        self.transactions.transact_in_background(
            runs.join_queue, call.run_key, call.call.generation, run_key=call.run_key
        )


def _refuse_copy_of_log(path: Path, connection: sqlite3.Connection) -> None:
    """Without the log, two engines would continue the same runs."""
    if connection.execute("SELECT log_token FROM owner").fetchone() != (None,):
        raise LogRefusedError(
            f"the database {path} is a copy of a commit log: start the engine with that log. `durably backup` makes a "
            "copy that belongs to none"
        )


def _calls_on_loop(action: Callable[[EngineError], None]) -> Callable[[EngineError], None]:
    """The action, to be called in any thread, while this event loop runs."""
    loop = asyncio.get_running_loop()

    def call(error: EngineError) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(action, error)

    return call


def _due_of(item: _Due) -> int:
    match item:
        case ScheduledCall():
            return item.call.due
        case ScheduledRequest():
            return item.request.scheduled_at
        case _:
            return item.due


async def _to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread. A cancelled caller waits for it too: it uses what the caller then releases."""
    calling = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait({calling})
        raise


async def _take_ownership(path: Path, connection: sqlite3.Connection, after_epoch: int | None) -> int:
    """Begin a new epoch of the database, and return it.

    Raises ``DatabaseUnavailableError`` if the database cannot be written, ``DatabaseBusyError`` if another process
    holds its lock.
    """
    try:
        return await _to_its_end(take_ownership, connection, after_epoch)
    except sqlite3.OperationalError as error:
        kind = DatabaseBusyError if is_busy(error) else DatabaseUnavailableError
        raise kind(f"the database {path} cannot be written: {error}") from error
    except sqlite3.Error as error:
        raise explain(error) from error
