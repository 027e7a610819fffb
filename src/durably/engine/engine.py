"""The embedded engine's interface: everything that its HTTP API, its command line and tests do with it."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.core.errors import EngineError, EventInvalidError, RunNotFoundError, StaleCallError
from durably.engine.scheduling.bulk_operations import Selection, check_selection, check_statuses
from durably.engine.scheduling.event_routing import EventOutcomes, UnmatchedEvents
from durably.engine.scheduling.events import CheckedEvent, IdSeed, check_content, check_event
from durably.engine.scheduling.registry import read_sync
from durably.engine.scheduling.requests.http_call import Caller, HttpCaller
from durably.engine.scheduling.reruns import FromStep
from durably.engine.sqlite.app_tables import BulkOperationKind
from durably.engine.sqlite.run_tables import find_run_key
from durably.engine.views import (
    AppView,
    AttemptView,
    BulkOperationView,
    CallView,
    EventView,
    FunctionView,
    InvokeReceipt,
    MetadataView,
    RunStatus,
    RunUpdate,
    RunView,
    StepView,
    SyncResult,
    TracesView,
)
from durably.protocol.call import CheckpointRequest
from durably.protocol.events import Event, EventReceipt, InternalEvent
from durably.protocol.sync import FunctionConfig, SyncRequest

from .runtime import Runtime
from .scheduling import annotations, bulk_operations, event_routing, operations
from .settings import EngineSettings
from .sqlite import queries

_DEFAULT = EngineSettings()
_PORTION_BYTES = 256 * 1024
"""Data of events that are checked at a time: about 1 ms."""


class EmbeddedEngine:
    """Open with ``await EmbeddedEngine.open(path)``, close with ``await engine.close()``.

    Use it on the event loop that opened it; only ``send_events`` and ``checkpoint`` may be awaited on any loop. A
    method returns after the commit. After the engine is closed, or while it closes, methods that change data raise
    ``EngineClosedError``.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._transactions = runtime.transactions
        self._reader = runtime.reader
        self._settings = runtime.settings
        self._unmatched = UnmatchedEvents()
        self._outcomes = EventOutcomes(self._settings.clock.now())

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
    ) -> "EmbeddedEngine":
        """Own the database at ``path`` (created if missing), recover its runs, and start.

        ``make_caller`` makes the caller of the apps; it is called on the event loop, and closed with the engine.
        ``takes_lock=False`` is for a caller that manages the database's lock file, and ``after_epoch`` for a process
        that takes the database over from that epoch's owner. ``on_owned`` gets the new epoch when the database is
        owned, before any access to its data.
        Raises ``DatabaseLockedError``, ``DatabaseLinkedError``, ``DatabaseLostError`` if ``after_epoch`` is over,
        ``DatabaseUnavailableError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``.
        """
        runtime = await Runtime.open(
            Path(path), settings, make_caller, takes_lock=takes_lock, after_epoch=after_epoch, on_owned=on_owned
        )
        return cls(runtime)

    async def close(self) -> None:
        """Stop making calls, let those under way finish for ``close_grace``, hand the others back, close."""
        await self._runtime.close()

    async def wait_closed(self) -> None:
        """Returns once the engine is closed: by ``close``, or because another has taken the database over."""
        await self._runtime.closed.wait()

    @property
    def stop_error(self) -> EngineError | None:
        """The reason why the engine has stopped by itself: its database was taken over or replaced, or is damaged."""
        return self._runtime.stop_error

    async def verify(self) -> None:
        """Raises ``DatabaseLostError`` where another engine has taken the database over; this one then closes."""
        await self._transactions.transact(lambda transaction: None)

    # events

    @property
    def max_event_bytes(self) -> int:
        return self._settings.max_event_bytes

    async def send_events(
        self, events: Sequence[Event], *, seed: str | None = None, sender: str | None = None
    ) -> list[str]:
        """Store events and start the runs they trigger. Returns their ids, in order, after the commit.

        ``seed`` is the value of ``x-inngest-event-id-seed``: the same seed gives the same ids, so a repeated send
        changes nothing. ``sender`` is the id of the run that sends them, if any. Raises
        ``EventInvalidError`` without storing any.
        """
        return (await self.accept_events(events, seed=seed, sender=sender)).ids

    async def accept_events(
        self, events: Sequence[Event], *, seed: str | None = None, sender: str | None = None
    ) -> EventReceipt:
        """``send_events``, which also returns the events that match nothing."""
        checked = await self._check_events(events)
        id_seed = IdSeed(seed) if seed else None
        sent = await self._transactions.transact(
            lambda transaction: event_routing.send(transaction, checked, id_seed, sender)
        )
        self._outcomes.note(sent.outcomes)
        if not sent.unmatched:
            return EventReceipt(ids=sent.ids)
        awaited = await self._reader.read(queries.awaited_names)
        unmatched = self._unmatched.explain(sent.unmatched, self._transactions.registry, awaited)
        return EventReceipt(ids=sent.ids, unmatched=unmatched)

    async def _check_events(self, events: Sequence[Event]) -> list[CheckedEvent]:
        """Raises ``EventInvalidError``. Between the events of a large batch the event loop does other work."""
        checked, size = [], 0
        for event in events:
            checked.append(check_event(event, self._settings.max_event_bytes))
            size += len(checked[-1].data)
            if size > _PORTION_BYTES:
                await asyncio.sleep(0)
                size = 0
        return checked

    async def explain_event(self, event: EventView) -> list[str]:
        """Sentences on what the event did besides starting runs, and on why it started none."""
        awaited = await self._reader.read(queries.awaited_names)
        return self._outcomes.explain(event, self._transactions.registry, awaited)

    async def get_event(self, event_id: str) -> EventView | None:
        return await self._reader.read(lambda connection: queries.find_event(connection, event_id))

    async def list_events(
        self,
        *,
        name: str | None = None,
        received_after: datetime | None = None,
        received_before: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        id_suffix: str | None = None,
    ) -> list[EventView]:
        """Newest first; ``cursor`` is the id of the last one seen, ``id_suffix`` the end of ids."""
        return await self._reader.read(
            lambda connection: queries.list_events(
                connection, name, received_after, received_before, limit, cursor, id_suffix
            )
        )

    async def event_runs(self, event_id: str) -> list[RunView]:
        """The runs that an event triggered, in the order in which they were."""
        first_call_at = self._runtime.executor.first_call_at
        return await self._reader.read(lambda connection: queries.event_runs(connection, event_id, first_call_at))

    # apps

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        """``in_process`` says that the app is called by other means than HTTP: then its URLs only name it.

        Raises ``ConfigInvalidError``, which names the function and the option.
        """
        functions = read_sync(request, in_process=in_process)
        return await self._transactions.transact(lambda transaction: operations.sync(transaction, request, functions))

    async def list_apps(self) -> list[AppView]:
        return await self._reader.read(queries.list_apps)

    async def list_functions(self, app_id: str) -> list[FunctionConfig] | None:
        """``None`` where no such app has synced."""
        return await self._reader.read(lambda connection: queries.list_functions(connection, app_id))

    async def list_all_functions(self) -> list[FunctionView]:
        """The functions that apps have, in the order of apps and of functions within them."""
        return await self._reader.read(queries.list_all_functions)

    async def pause_function(self, function_id: str) -> None:
        """Let the function start no more runs: what triggers it is shown as skipped. Runs under way go on.

        Raises ``FunctionNotFoundError``.
        """
        await self._transactions.transact(
            lambda transaction: bulk_operations.pause(transaction, transaction.registry.get_active(function_id).id)
        )

    async def resume_function(self, function_id: str) -> None:
        """Let a paused function start runs again. Raises ``FunctionNotFoundError``."""
        await self._transactions.transact(
            lambda transaction: bulk_operations.resume(transaction, transaction.registry.get_active(function_id).id)
        )

    # many runs at once

    async def cancel_runs(self, selection: Selection) -> BulkOperationView:
        """Begin to cancel runs of a function: those that there are, and those that start until ``started_before``.

        Raises ``FunctionNotFoundError``, ``SelectionInvalidError``.
        """
        check_selection(selection)
        return queries.bulk_operation_view(
            await self._transactions.transact(lambda transaction: bulk_operations.cancel_runs(transaction, selection))
        )

    async def list_cancellations(self) -> list[BulkOperationView]:
        """Newest first."""
        return await self._reader.read(
            lambda connection: queries.list_bulk_operations(connection, BulkOperationKind.CANCEL)
        )

    async def delete_cancellation(self, cancellation_id: str) -> None:
        """Let it cancel no more runs. Raises ``CancellationNotFoundError``."""
        await self._transactions.transact(
            lambda transaction: bulk_operations.delete_cancellation(transaction, cancellation_id)
        )

    async def replay_runs(self, selection: Selection, statuses: Collection[RunStatus]) -> BulkOperationView:
        """Begin to run again those runs of a function that have ended with one of the statuses.

        Raises ``FunctionNotFoundError``, ``FunctionPausedError``, ``SelectionInvalidError``.
        """
        check_selection(selection)
        check_statuses(statuses)
        return queries.bulk_operation_view(
            await self._transactions.transact(
                lambda transaction: bulk_operations.replay_runs(transaction, selection, statuses)
            )
        )

    async def list_replays(self) -> list[BulkOperationView]:
        """Newest first."""
        return await self._reader.read(
            lambda connection: queries.list_bulk_operations(connection, BulkOperationKind.REPLAY)
        )

    # runs

    async def get_run(self, run_id: str) -> RunView | None:
        first_call_at = self._runtime.executor.first_call_at
        return await self._reader.read(lambda connection: queries.find_run(connection, run_id, first_call_at))

    async def wait_for_run(self, run_id: str) -> RunView:
        """The run, once it has ended. Raises ``RunNotFoundError``, and ``EngineClosedError`` where the engine closes
        before."""
        run_key = await self._reader.read(lambda connection: find_run_key(connection, run_id))
        if run_key is not None:
            with self._runtime.completion_waiters.awaiting(run_key) as ended:
                run = await self.get_run(run_id)
                if run is not None and not run.status.has_ended:
                    await ended
                    run = await self.get_run(run_id)
                if run is not None:
                    return run
        raise RunNotFoundError(f"there is no run with the id {run_id!r}")

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        started_after: datetime | None = None,
        id_suffix: str | None = None,
    ) -> list[RunView]:
        """Runs, newest first. ``cursor`` is the id of the last run seen, ``id_suffix`` the end of ids."""
        first_call_at = self._runtime.executor.first_call_at
        return await self._reader.read(
            lambda connection: queries.list_runs(
                connection, status, function_id, limit, cursor, first_call_at, started_after, id_suffix
            )
        )

    async def run_steps(self, run_id: str) -> list[StepView]:
        """Finished steps in the order of their memos, then those outstanding."""
        is_under_way = self._runtime.executor.is_under_way
        return await self._reader.read(lambda connection: queries.run_steps(connection, run_id, is_under_way))

    async def run_attempts(self, run_id: str) -> list[AttemptView]:
        """Attempts that failed and were repeated, the earliest first."""
        return await self._reader.read(lambda connection: queries.run_attempts(connection, run_id))

    async def add_run_metadata(self, run_id: str, body: bytes) -> bool:
        """Store an SDK's metadata of a run, JSON; false if it is too much. Raises ``RunNotFoundError``."""
        return await self._transactions.transact(
            lambda transaction: annotations.add_metadata(transaction, run_id, body)
        )

    async def run_metadata(self, run_id: str) -> list[MetadataView] | None:
        """``None`` if the run does not exist."""
        return await self._reader.read(lambda connection: annotations.list_metadata(connection, run_id))

    async def add_traces(self, content_type: str, body: bytes) -> bool:
        """Store spans that an SDK has exported; false if they are too large."""
        return await self._transactions.transact(
            lambda transaction: annotations.add_traces(transaction, content_type, body)
        )

    async def run_traces(self, run_id: str) -> list[TracesView]:
        """The exports that name a run. They may contain spans of other runs."""
        return await self._reader.read(lambda connection: annotations.list_traces(connection, run_id))

    async def run_calls(self, run_id: str) -> list[CallView]:
        """The calls that are scheduled or under way."""
        is_under_way = self._runtime.executor.is_under_way
        return await self._reader.read(lambda connection: queries.run_calls(connection, run_id, is_under_way))

    async def run_batch(self, run_id: str) -> bytes | None:
        """A JSON array of the run's events (``GET /v0/runs/{run}/batch``)."""
        return await self._reader.read(lambda connection: queries.run_batch(connection, run_id))

    async def run_actions(self, run_id: str) -> bytes | None:
        """A JSON object of the run's memos by hashed step id (``GET /v0/runs/{run}/actions``)."""
        return await self._reader.read(lambda connection: queries.run_actions(connection, run_id))

    async def cancel_run(self, run_id: str) -> bool:
        """False where the run has ended already. Raises ``RunNotFoundError``."""
        return await self._transactions.transact(lambda transaction: operations.cancel(transaction, run_id))

    async def rerun(self, run_id: str, *, from_step: FromStep | None = None) -> str:
        """Run the same function again with the same events; the new run's id. From a step: with the memos that were
        made before that step's.

        Raises ``RunNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, ``StepNotFoundError``.
        """
        return await self._transactions.transact(lambda transaction: operations.rerun(transaction, run_id, from_step))

    async def invoke(self, function_id: str, *, data: Any, user: Any = None, v: str | None = None) -> InvokeReceipt:
        """Start a run of one function. Raises ``FunctionNotFoundError``, ``EventInvalidError``."""
        if data is not None and not isinstance(data, dict):
            raise EventInvalidError(f"function {function_id!r} is invoked with data that is no object")
        event = Event(name=InternalEvent.FUNCTION_INVOKED, data=data or {}, user=user, v=v)
        check_content(event, self._settings.max_event_bytes)
        return await self._transactions.transact(lambda transaction: operations.invoke(transaction, function_id, event))

    async def signal(self, name: str, data: Any) -> str | None:
        """Wake the run that waits for a signal, and answer with its id; ``None`` where none waits."""
        encoded = msgspec.json.encode(data)
        return await self._transactions.transact(lambda transaction: operations.signal(transaction, name, encoded))

    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        """Store steps that a call has finished while it goes on.

        Raises ``StaleCallError`` (409), ``CheckpointInvalidError`` (400), ``TooLargeError`` (413),
        ``RunNotFoundError`` (404).
        """
        if not await self._transactions.transact(functools.partial(operations.checkpoint, run_id, request)):
            raise StaleCallError("the call is stale: its run has failed")

    # watching

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        """What happens to runs from now on, for people to read: a slow reader loses the oldest updates."""
        return self._runtime.subscriptions.watch()
