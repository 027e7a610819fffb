"""Workflows of apps, functions and topics, which keep records permanently.

Records are read by Describe, which is strongly consistent and costs no action. Syncs of one app are applied one after
another, even if the requesting processes end.
"""

import asyncio
import datetime as dt

import msgspec
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from durably.engine.model.overview import SyncResult
from durably.engine.temporal.messages import (
    AppRecord,
    CancellationRecord,
    FunctionRecord,
    SyncInput,
    TopicRecord,
    TriggerRecord,
)
from durably.engine.temporal.workflow_code import now, wait_for_long_history

APP = "app"
"""The memo of an app's workflow with its ``AppRecord``."""
FUNCTION = "function"
"""The memo of a function's workflow with its ``FunctionRecord``."""
TOPIC = "topic"
"""The memo of a topic's workflow with its ``TopicRecord``."""
MAX_PATHS = 50
"""The maximum number of paths of a topic. Each path costs every event of the name a request."""
APPLY_SYNC = "durably.apply_sync"
SYNC_REFUSED = "SyncRefused"
"""The error type of syncs that must not be repeated."""
_LEASED = ("leased", "leased_http")
_COMPARED = ("url", "sdk", "framework", "version", "in_process", "names")


class AppliedSync(msgspec.Struct, frozen=True):
    """A sync to apply, and the app's previous record."""

    sync: SyncInput
    before: AppRecord | None = None


@workflow.defn(name="durably.App", sandboxed=False)
class AppWorkflow:
    """An app: the functions of its last sync."""

    @workflow.init
    def __init__(self, record: AppRecord | None = None) -> None:
        self._record = record
        self._turn = asyncio.Lock()

    @workflow.run
    async def run(self, record: AppRecord | None = None) -> None:
        await wait_for_long_history()
        memo = {} if self._record is None else {APP: self._record}
        workflow.continue_as_new(self._record, memo=memo)

    @workflow.update(name="sync")
    async def sync(self, sync: SyncInput) -> SyncResult:
        async with self._turn:
            before = self._record
            result = result_of_sync(sync, before)
            if before is None or sync.restores or not is_same_sync(before, sync.app):
                await self._apply(sync, before, result)
            return result

    async def _apply(self, sync: SyncInput, before: AppRecord | None, result: SyncResult) -> None:
        try:
            await workflow.execute_local_activity(
                APPLY_SYNC, AppliedSync(sync, before), start_to_close_timeout=dt.timedelta(minutes=1)
            )
        except ActivityError as error:
            if before is not None:
                names = tuple(dict.fromkeys([*sync.app.names, *before.names]))
                self._put(msgspec.structs.replace(before, names=names, error=str(error.cause)))
            raise ApplicationError(str(error.cause), type=SYNC_REFUSED) from error
        synced_at = int(workflow.now().timestamp() * 1000)
        changes = {"added": result.added, "changed": result.changed, "removed": result.removed}
        if before is not None:
            changes |= {field: tuple(sorted({*getattr(sync.app, field), *getattr(before, field)})) for field in _LEASED}
        self._put(msgspec.structs.replace(sync.app, synced_at=synced_at, **changes))

    @workflow.signal(name="note_refused")
    def note_refused(self, error: str) -> None:
        """Store the reason why a sync was refused before it was applied."""
        if self._record is not None:
            self._put(msgspec.structs.replace(self._record, error=error))

    def _put(self, record: AppRecord) -> None:
        self._record = record
        workflow.upsert_memo({APP: record})


def is_same_sync(before: AppRecord, now: AppRecord) -> bool:
    """Whether a sync would change nothing."""
    has_same_functions = list(before.functions.items()) == list(now.functions.items())
    is_same = all(getattr(before, field) == getattr(now, field) for field in _COMPARED)
    has_same_leases = all(set(getattr(now, field)) <= set(getattr(before, field)) for field in _LEASED)
    return before.error is None and has_same_functions and has_same_leases and is_same


def result_of_sync(sync: SyncInput, before: AppRecord | None) -> SyncResult:
    """The result of a sync: its differences from the previous record."""
    old = {} if before is None else before.functions
    new, url = sync.app.functions, None if before is None else before.url
    return SyncResult(
        app_id=sync.app_id,
        modified=list(old.items()) != list(new.items()),
        added=tuple(each for each in new if each not in old),
        changed=tuple(each for each, digest in new.items() if old.get(each, digest) != digest),
        removed=tuple(each for each in old if each not in new),
        version=sync.app.version,
        previous_version=None if before is None else before.version,
        previous_url=url if url != sync.app.url else None,
    )


@workflow.defn(name="durably.Function", sandboxed=False)
class FunctionWorkflow:
    """A function: its synced configuration."""

    @workflow.init
    def __init__(self, record: FunctionRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: FunctionRecord) -> None:
        await wait_for_long_history()
        workflow.continue_as_new(self._record, memo={FUNCTION: self._record})

    @workflow.update(name="configure")
    def configure(self, record: FunctionRecord) -> None:
        """Replace the configuration. Pause and cancellations stay: apps do not sync them."""
        before = self._record
        kept = {"is_paused": before.is_paused, "paused_at": before.paused_at, "cancellations": before.cancellations}
        self._put(msgspec.structs.replace(record, **kept))

    @workflow.update(name="set_paused")
    def set_paused(self, is_paused: bool) -> None:
        paused_at = (self._record.paused_at or now()) if is_paused else None
        self._put(msgspec.structs.replace(self._record, is_paused=is_paused, paused_at=paused_at))

    @workflow.update(name="add_cancellation")
    def add_cancellation(self, cancellation: CancellationRecord) -> int:
        """Apply a bulk cancellation to new runs. Repeating this changes nothing.

        Returns the start time of the cancellation.
        """
        for known in self._record.cancellations:
            if known.id == cancellation.id:
                return known.created_at
        present = [each for each in self._record.cancellations if not each.is_over(now())]
        added = msgspec.structs.replace(cancellation, created_at=now())
        self._put(msgspec.structs.replace(self._record, cancellations=(*present, added)))
        return added.created_at

    def _put(self, record: FunctionRecord) -> None:
        if record != self._record:
            self._record = record
            workflow.upsert_memo({FUNCTION: record})


class AppTriggers(msgspec.Struct, frozen=True):
    """The new triggers of some functions.

    A function without triggers is missing in ``triggers``.
    """

    function_ids: tuple[str, ...]
    triggers: tuple[TriggerRecord, ...]


@workflow.defn(name="durably.Topic", sandboxed=False)
class TopicWorkflow:
    """The triggers of an event name, and the paths of waits for it."""

    @workflow.init
    def __init__(self, record: TopicRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: TopicRecord) -> None:
        await wait_for_long_history()
        workflow.continue_as_new(self._record, memo={TOPIC: self._record})

    @workflow.update(name="set_triggers")
    def set_triggers(self, change: AppTriggers) -> None:
        kept = [each for each in self._record.triggers if each.function_id not in change.function_ids]
        self._put(msgspec.structs.replace(self._record, triggers=(*kept, *change.triggers)))

    @workflow.update(name="add_path")
    def add_path(self, path: str | None) -> bool:
        """Add a path. Returns false if the topic has too many paths."""
        if path in self._record.paths:
            return True
        if path is not None and len(self._record.paths) >= MAX_PATHS:
            return False
        self._put(msgspec.structs.replace(self._record, paths=(*self._record.paths, path)))
        return True

    def _put(self, record: TopicRecord) -> None:
        self._record = record
        workflow.upsert_memo({TOPIC: record})
