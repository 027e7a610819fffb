"""Apps: the functions that each synced last.

Syncs of one app are applied one after another, even if the processes that asked for them end.
"""

import asyncio
import datetime as dt

import msgspec
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from durably.engine.temporal.messages import AppRecord, SyncInput
from durably.engine.views import SyncResult

APP = "app"
"""The memo with the record."""
APPLY_SYNC = "durably.apply_sync"
SYNC_REFUSED = "SyncRefused"
"""The type of errors of syncs that must not be repeated."""


class AppliedSync(msgspec.Struct, frozen=True):
    """A sync to apply, and the record of the app before it."""

    sync: SyncInput
    before: AppRecord | None = None


@workflow.defn(name="durably.App", sandboxed=False)
class AppWorkflow:
    @workflow.init
    def __init__(self, record: AppRecord | None = None) -> None:
        self._record = record
        self._turn = asyncio.Lock()

    @workflow.run
    async def run(self, record: AppRecord | None = None) -> None:
        await workflow.wait_condition(lambda: workflow.info().is_continue_as_new_suggested())
        await workflow.wait_condition(workflow.all_handlers_finished)
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
        """Keep the reason why a sync was refused before it was applied."""
        if self._record is not None:
            self._put(msgspec.structs.replace(self._record, error=error))

    def _put(self, record: AppRecord) -> None:
        self._record = record
        workflow.upsert_memo({APP: record})


_LEASED = ("leased", "leased_http")
_COMPARED = ("url", "sdk", "framework", "version", "in_process", "names")


def is_same_sync(before: AppRecord, now: AppRecord) -> bool:
    """Whether a sync would change nothing."""
    has_same_functions = list(before.functions.items()) == list(now.functions.items())
    is_same = all(getattr(before, field) == getattr(now, field) for field in _COMPARED)
    has_same_leases = all(set(getattr(now, field)) <= set(getattr(before, field)) for field in _LEASED)
    return before.error is None and has_same_functions and has_same_leases and is_same


def result_of_sync(sync: SyncInput, before: AppRecord | None) -> SyncResult:
    """The result of a sync: its differences from the record before."""
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
