"""``SqliteEngine``, the engine that keeps its state in a SQLite file."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from durably.engine.api.counters import EngineState, read_gauges, read_log_gauges
from durably.engine.api.local import LocalEngine
from durably.engine.api.metrics import Metric
from durably.engine.model.calls import Caller, HttpCaller
from durably.engine.model.channels import Channels
from durably.engine.model.dispatcher import Dispatcher
from durably.engine.model.events import CheckedEvent, IdSeed, check_event
from durably.engine.model.functions import UnmatchedEvents, read_sync
from durably.engine.model.overview import (
    App,
    Changes,
    EngineInfo,
    FunctionInfo,
    FunctionLoad,
    FunctionReport,
    LogState,
    OutboxReport,
    Overview,
    ScheduleInfo,
    SyncResult,
)
from durably.engine.model.questions import LONGEST_ASK_SECONDS, Asked, OpenQuestion, ask_until, make_ask
from durably.engine.model.run_report import RunRows, report_steps
from durably.engine.model.runs import (
    MAX_PROGRESS_TEXT,
    BulkOperation,
    EventFilter,
    EventPage,
    ExportedSpans,
    FromStep,
    InvokeReceipt,
    LogPage,
    MatchCount,
    Progress,
    Run,
    RunCall,
    RunFilter,
    RunMetadata,
    RunPage,
    RunStatus,
    RunUpdate,
    StatusCounts,
    Step,
    StoredEvent,
    to_datetime,
)
from durably.engine.model.settings import EngineSettings
from durably.engine.model.subscriptions import Observer
from durably.engine.sqlite.queries.search import Budget
from durably.engine.sqlite.queries.searches import (
    count_by_status,
    count_matching_runs,
    search_events,
    search_runs,
)
from durably.engine.sqlite.tables.runs import find_run_key
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.channels import PROGRESS_TOPIC, MessageBatch, NewMessage
from durably.protocol.engine_errors import (
    ConfigInvalidError,
    EngineError,
    RunNotFoundError,
    StaleCallError,
)
from durably.protocol.events import Event, EventReceipt
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest

from . import questions
from .overviews import Overviews
from .queries import functions, runs
from .runtime import Runtime
from .transactions import bulk_operations, event_routing, operations
from .transactions.bulk_operations import BulkOperationKind
from .writer import CommitLog, read_log_state

_PROGRESS_SECONDS = 0.2
_DEFAULT = EngineSettings()
_SECOND = 1_000
_HELD_SECONDS = 0.25
"""Seconds after which a waiter looks again for a run that flow control holds back."""
_PORTION_BYTES = 256 * 1024
"""Bytes of event data that are checked at a time, which takes about 1 ms."""


class SqliteEngine(LocalEngine):
    """An engine that keeps its data in one SQLite file.

    Open it with ``await SqliteEngine.open(path)``, close it with ``await engine.close()``. Use it on the event loop
    that opened it; ``receive_events``, ``accept_events`` and ``checkpoint`` may be awaited on any loop. A method
    returns after the commit. While the engine closes, and afterwards, methods that change data raise
    ``EngineClosedError``.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._transactions = runtime.transactions
        self._read = runtime.reader.read
        self._transact = runtime.transactions.transact
        self._dispatcher = runtime.call_dispatcher
        self._settings = runtime.settings
        self.count_followers: Callable[[], int] = lambda: 0
        """The number of other processes that use this engine, set by the leader of in-process mode."""
        self._overviews = Overviews(
            runtime.reader, runtime.transactions, runtime.call_dispatcher, runtime.statistics, runtime.settings.clock
        )
        self._unmatched = UnmatchedEvents()
        self._started_at = self._settings.clock.now()

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        settings: EngineSettings = _DEFAULT,
        *,
        make_caller: Callable[[EngineSettings], Caller] = HttpCaller,
        takes_lock: bool = True,
        after_epoch: int | None = None,
        on_owned: Callable[[int], Awaitable[None]] | None = None,
        log: CommitLog | None = None,
    ) -> "SqliteEngine":
        """Own the database at ``path`` (created if missing), recover its runs, and start.

        - ``make_caller``: Creates the caller of the apps. It is called on the event loop, and closed with the engine.
        - ``takes_lock``: ``False`` if the caller manages the database's lock file.
        - ``after_epoch``: For a process that takes the database over from that epoch's owner.
        - ``on_owned``: Gets the new epoch when the database is owned, before any access to its data.
        - ``log``: Gets each commit before it is acknowledged. Raises ``DatabaseLostError`` if another process leads,
          and the errors of ``CommitLog.open_database``.

        Raises ``DatabaseLockedError``, ``DatabaseLinkedError``, ``DatabaseLostError`` if ``after_epoch`` is over,
        ``DatabaseUnavailableError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``.
        """
        runtime = await Runtime.open(
            Path(path),
            settings,
            make_caller,
            takes_lock=takes_lock,
            after_epoch=after_epoch,
            on_owned=on_owned,
            log=log,
        )
        return cls(runtime)

    async def close(self) -> None:
        """Stop making calls, and close.

        Calls under way may finish within ``close_grace``. The others are given back.
        """
        await self._runtime.close()

    async def wait_closed(self) -> None:
        """Wait until the engine is closed, by ``close`` or by a takeover of the database."""
        await self._runtime.closed.wait()

    @property
    def stop_error(self) -> EngineError | None:
        """The error that stopped the engine.

        Its database was taken over or replaced, or is damaged.
        """
        return self._runtime.stop_error

    async def verify(self) -> None:
        """Check that the database still belongs to this engine.

        Raises ``DatabaseLostError`` if another engine has taken the database over; this engine then closes. With a
        commit log, raises ``DatabaseUnavailableError`` if the lease is not certain.
        """
        await self._transact(lambda transaction: None)
        if self._runtime.log is not None:
            self._runtime.log.check_lease()

    def observe(self, observer: Observer) -> None:
        """Report to ``observer`` what this engine does from now on."""
        self._runtime.observers.add(observer)

    # events

    async def send_events(
        self, events: Sequence[Event], *, seed: str | None = None, sender: str | None = None
    ) -> list[str]:
        """Store events as ``accept_events`` does, and return only their ids."""
        return (await self.accept_events(events, seed=seed, sender=sender)).ids

    async def accept_events(
        self,
        events: Sequence[Event],
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
    ) -> EventReceipt:
        if len(events) == 1:
            checked = [check_event(events[0], self._settings.max_event_bytes)]
        else:
            checked = await self._check_events(events)
        id_seed = IdSeed(seed) if seed else None
        sent = await self._transact(event_routing.send, checked, id_seed, sender, traceparent)
        if not sent.unmatched:
            return EventReceipt(ids=sent.ids)
        awaited = await self._read(runs.awaited_names)
        unmatched = self._unmatched.explain(sent.unmatched, self._transactions.registry.known_names(awaited))
        return EventReceipt(ids=sent.ids, unmatched=unmatched)

    async def _check_events(self, events: Sequence[Event]) -> list[CheckedEvent]:
        """Check the events, and return them checked.

        Between the events of a large batch the event loop does other work. Raises ``EventInvalidError``.
        """
        checked, size = [], 0
        for event in events:
            checked.append(check_event(event, self._settings.max_event_bytes))
            size += len(checked[-1].data)
            if size > _PORTION_BYTES:
                await asyncio.sleep(0)
                size = 0
        return checked

    async def _find_events(self, wanted: EventFilter, limit: int, cursor: str | None) -> EventPage:
        budget, first_call_at = Budget(self._settings.clock.now()), self._dispatcher.first_call_at
        is_triggering = self._transactions.registry.triggers_any
        return await self._read(search_events, wanted, limit, cursor, is_triggering, first_call_at, budget)

    async def get_event(self, event_id: str) -> StoredEvent | None:
        event = await self._read(runs.find_event, event_id)
        return None if event is None else replace(event, notes=await self.explain_event(event))

    async def explain_event(self, event: StoredEvent) -> list[str]:
        """Notes about an event: effects other than runs, and why it started no run."""

        def read(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
            row = connection.execute("SELECT notes FROM events WHERE id = ?", (event.id,)).fetchone()
            notes = msgspec.json.decode(row[0], type=list[str]) if row and row[0] else []
            return notes, runs.awaited_names(connection)

        notes, awaited = await self._read(read)
        return event_routing.explain_event(event, notes, self._transactions.registry, awaited)

    async def event_runs(self, event_id: str) -> list[Run]:
        return await self._read(runs.event_runs, event_id, self._dispatcher.first_call_at)

    # runs

    async def _find_runs(self, wanted: RunFilter, limit: int, cursor: str | None) -> RunPage:
        budget, first_call_at = Budget(self._settings.clock.now()), self._dispatcher.first_call_at
        return await self._read(search_runs, wanted, limit, cursor, first_call_at, budget)

    async def _find_counts(self, wanted: RunFilter) -> StatusCounts:
        return await self._read(count_by_status, wanted, self._dispatcher.first_call_at)

    async def get_run(self, run_id: str) -> Run | None:
        return await self._read(runs.find_run, run_id, self._dispatcher.first_call_at)

    async def wait_for_run(self, run_id: str, *, within: float | None = None) -> Run:
        """Also raises ``EngineClosedError`` if the engine closes first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while (run := await self.get_run(run_id)) is not None and not run.status.has_ended:
                    run_key = await self._read(find_run_key, run.id)
                    if run_key is None:  # Flow control holds it back.
                        await asyncio.sleep(_HELD_SECONDS)
                        continue
                    with self._runtime.completion_waiters.awaiting(run_key) as ended:
                        run = await self.get_run(run.id)
                        if run is not None and not run.status.has_ended:
                            await ended
        run = await self.get_run(run_id)
        if run is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        return run

    async def run_calls(self, run_id: str) -> list[RunCall]:
        return await self._read(runs.run_calls, run_id, self._dispatcher.called_at)

    async def _read_run(self, run_id: str, *, has_context: bool) -> RunRows | None:
        first_call_at, called_at = self._dispatcher.first_call_at, self._dispatcher.called_at
        return await self._read(runs.read_run_rows, run_id, first_call_at, called_at, has_context)

    async def cancel_run(self, run_id: str) -> bool:
        return await self._transact(operations.cancel, run_id)

    async def skip_delays(self, run_id: str, *, step_id: str | None = None) -> int:
        return await self._transact(operations.skip_delays, run_id, step_id)

    async def rerun(self, run_id: str, *, from_step: FromStep | None = None) -> str:
        return await self._transact(operations.rerun, run_id, from_step)

    async def _start_invocation(
        self, function_id: str, event: Event, *, seed: str | None, sender: str | None, traceparent: str | None
    ) -> InvokeReceipt:
        id_seed = IdSeed(seed) if seed else None
        return await self._transact(operations.invoke, function_id, event, id_seed, sender, traceparent)

    async def signal(self, name: str, data: Any = None, *, run_id: str | None = None) -> str | None:
        encoded = msgspec.json.encode(data)
        return await self._transact(operations.signal, name, encoded, run_id)

    async def ask_run(
        self,
        run_id: str,
        name: str,
        data: Any = None,
        *,
        id: str,
        step_id: str | None = None,
        is_only: bool = False,
        needs_reply: bool = True,
        within: float = LONGEST_ASK_SECONDS,
    ) -> Asked:
        ask = make_ask(name, id, data, is_only, self._settings.max_event_bytes)

        async def try_once() -> Asked:
            asked, question = await self._read(questions.look_up, run_id, name, ask, step_id)
            if question is None:
                return asked
            return await self._transact(questions.deliver, run_id, name, ask, step_id)

        with self._runtime.run_watches.watching(run_id) as wait_for_change:
            return await ask_until(run_id, name, try_once, wait_for_change, needs_reply=needs_reply, within=within)

    async def list_questions(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> list[OpenQuestion]:
        return await self._read(questions.list_questions, run_id, function_id, limit, cursor)

    # overviews

    async def describe_engine(self) -> EngineInfo:
        return EngineInfo(kind="SQLite")

    async def overview(self, *, since: datetime | None = None, until: datetime | None = None) -> Overview:
        overview = await self._overviews.overview(since, until)
        return replace(overview, log=await self.read_log())

    async def read_log(self) -> LogState | None:
        log = self._runtime.log
        return None if log is None else await read_log_state(log)

    async def function_loads(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[FunctionLoad]:
        return await self._overviews.function_loads(since, until)

    async def inspect_function(self, function_id: str, *, since: datetime | None = None) -> FunctionReport | None:
        function = next((each for each in await self.list_functions() if each.id == function_id), None)
        return None if function is None else await self._overviews.function_report(function, since)

    async def list_schedules(self) -> list[ScheduleInfo]:
        return await self._overviews.schedules()

    async def _count_selected(self, wanted: RunFilter, statuses: Collection[RunStatus]) -> MatchCount:
        if wanted.function_id not in self._transactions.registry.functions:
            raise self._transactions.registry.not_found(wanted.function_id or "")
        budget, first_call_at = Budget(self._settings.clock.now()), self._dispatcher.first_call_at
        return await self._read(count_matching_runs, wanted, statuses, first_call_at, budget)

    async def list_logs(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        position: int | None = None,
        limit: int = 100,
    ) -> LogPage:
        return await self._read(runs.list_logs, run_id, function_id, position, limit)

    async def wait_for_changes(self, *, after: int | None = None, run_id: str | None = None) -> Changes:
        """Also raises ``EngineClosedError`` if the engine closes first."""
        return await self._runtime.changes.wait(after, run_id)

    # functions and apps

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        try:
            synced = read_sync(request, in_process=in_process)
            result = await self._transact(operations.sync, request, synced)
        except ConfigInvalidError as error:
            refused = error.message
            with contextlib.suppress(EngineError):
                await self._transact(operations.note_refused_sync, request.app_id, refused)
            raise
        self._runtime.statistics.unreached_apps.pop(request.app_id, None)
        return result

    async def list_functions(self) -> list[FunctionInfo]:
        return await self._read(functions.list_functions)

    async def pause_function(self, function_id: str) -> None:
        await self._transact(bulk_operations.pause, function_id)

    async def resume_function(self, function_id: str) -> None:
        await self._transact(bulk_operations.resume, function_id)

    async def list_apps(self) -> list[App]:
        return await self._overviews.list_apps()

    async def list_app_functions(self, app_id: str) -> list[FunctionInfo] | None:
        return await self._read(functions.list_app_functions, app_id)

    # bulk operations

    async def _start_cancellation(self, wanted: RunFilter) -> BulkOperation:
        return functions.to_bulk_operation(await self._transact(bulk_operations.cancel_runs, wanted))

    async def _start_replay(self, wanted: RunFilter, statuses: Collection[RunStatus]) -> BulkOperation:
        return functions.to_bulk_operation(await self._transact(bulk_operations.replay_runs, wanted, statuses))

    async def list_cancellations(self) -> list[BulkOperation]:
        return await self._read(functions.list_bulk_operations, BulkOperationKind.CANCEL)

    async def delete_cancellation(self, cancellation_id: str) -> None:
        await self._transact(bulk_operations.delete_cancellation, cancellation_id)

    async def list_replays(self) -> list[BulkOperation]:
        return await self._read(functions.list_bulk_operations, BulkOperationKind.REPLAY)

    # for SDKs

    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        if not await self._transact(operations.checkpoint, run_id, request):
            raise StaleCallError("the call is stale: its run has failed")

    async def run_batch(self, run_id: str) -> msgspec.Raw | None:
        return _raw(await self._read(runs.run_batch, run_id))

    async def run_actions(self, run_id: str) -> msgspec.Raw | None:
        return _raw(await self._read(runs.run_actions, run_id))

    async def add_run_metadata(self, run_id: str, body: msgspec.Raw) -> bool:
        return await self._transact(operations.add_metadata, run_id, bytes(body))

    async def add_run_logs(self, run_id: str, lines: list[LogLine]) -> bool:
        if self._settings.server_kind is not ServerKind.DEV:
            return False
        kept = await self._transact(operations.add_run_logs, run_id, lines)
        self._runtime.changes.note_run(run_id)
        return kept

    @property
    def connected(self) -> Dispatcher | None:
        return self._runtime.connected

    @property
    def channels(self) -> Channels:
        return self._runtime.channels

    async def report_progress(self, run_id: str, fraction: float, message: str = "") -> float:
        progress = Progress(fraction, message[:MAX_PROGRESS_TEXT], to_datetime(self._settings.clock.now()))
        if await self._transact(operations.report_progress, run_id, progress):
            self._runtime.changes.note_run(run_id)
            self._runtime.channels.add_own(run_id, PROGRESS_TOPIC, progress)
        return _PROGRESS_SECONDS

    async def publish_messages(self, messages: list[NewMessage]) -> None:
        self._runtime.channels.publish(messages)

    async def read_messages(
        self, channels: dict[str, int], *, reader: str | None = None, waits: bool = True
    ) -> MessageBatch:
        """Also raises ``EngineClosedError`` if the engine closes first."""
        return await self._runtime.channels.read(channels, self._load_run, reader=reader, waits=waits)

    async def _load_run(self, run_id: str) -> tuple[Run, list[Step]] | None:
        rows = await self._read_run(run_id, has_context=False)
        return None if rows is None or rows.run.id != run_id else (rows.run, report_steps(rows))

    async def report_outbox(self, name: str, waiting: int, refused: int, oldest: float) -> None:
        at = self._settings.clock.now()
        self._overviews.outboxes[name] = OutboxReport(waiting=waiting, refused=refused, oldest=oldest, at=at)

    async def run_metadata(self, run_id: str) -> list[RunMetadata] | None:
        return await self._read(runs.list_metadata, run_id)

    async def add_traces(self, body: bytes, content_type: str) -> bool:
        return await self._transact(operations.add_traces, content_type, body)

    async def run_traces(self, run_id: str) -> list[ExportedSpans]:
        return await self._read(runs.list_traces, run_id)

    # metrics

    async def read_metrics(self) -> list[Metric]:
        runtime = self._runtime
        state = EngineState(
            runtime.path,
            self._started_at,
            await self._overviews.function_loads(to_datetime(self._settings.clock.now() - _SECOND), None),
            self.count_followers(),
            self._overviews.outboxes,
            self._settings.clock.now(),
        )
        counters = runtime.observers.counters
        gauges = read_gauges(state, counters)
        logged = [] if runtime.log is None else read_log_gauges(await self.read_log())
        return [*counters.read(), *counters.read_store(), *gauges, *logged]

    # updates

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        return self._runtime.subscriptions.watch()


def _raw(body: bytes | None) -> msgspec.Raw | None:
    return None if body is None else msgspec.Raw(body)
