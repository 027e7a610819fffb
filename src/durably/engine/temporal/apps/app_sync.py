"""Syncs of apps: their functions, triggers, and paths of cancelling events."""

import asyncio
import datetime as dt
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from durably.engine.core.flow.config import read_flow
from durably.engine.core.run_state import standard_backoff
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.overview import SyncResult
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.flow.limit_queue import has_leased_slots
from durably.engine.temporal.ids import app_workflow_id, function_workflow_id
from durably.engine.temporal.messages import AppRecord, FunctionRecord, RunPolicy, SyncInput, TriggerRecord
from durably.engine.temporal.records import Records, Restorer
from durably.engine.temporal.routing.wait_keys import path_of
from durably.engine.temporal.routing.waits import Waits
from durably.engine.temporal.workflow_requests import ignoring_not_found, update_with_start
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from .cron import has_schedules, put_schedules
from .record_workflows import (
    APP,
    FUNCTION,
    SYNC_REFUSED,
    AppliedSync,
    AppTriggers,
    AppWorkflow,
    FunctionWorkflow,
    is_same_sync,
    result_of_sync,
)

_logger = get_logger("durably.engine")

_PARALLEL_REQUESTS = 20
_LONGEST_ERROR = 2000
_MILLISECOND = dt.timedelta(milliseconds=1)
_CHECK_SECONDS = 600.0
"""Seconds between two checks of an app. Apps may repeat a sync every few seconds."""


class AppSync:
    def __init__(self, client: Client, settings: EngineSettings) -> None:
        self._client = client
        self._settings = settings
        self._records = Records(client)
        self._waits = Waits(client)
        self._restorer = Restorer(client)
        self._checked_at: dict[str, float] = {}

    async def has_synced(self, app_id: str) -> bool:
        """Whether an app has ever synced, so that events find its triggers."""
        return await self._records.read(app_workflow_id(app_id), APP, AppRecord) is not None

    async def sync(self, request: SyncRequest, functions: Sequence[SyncedFunction], *, in_process: bool) -> SyncResult:
        """Replace the functions of an app. Raises ``ConfigInvalidError``."""
        sync = _sync_input(request, functions, in_process, self._settings)
        is_check_due = self._is_check_due(sync.app_id)
        if is_check_due:
            await self._restorer.restore_all()
        before = await self._records.read(app_workflow_id(sync.app_id), APP, AppRecord)
        if before is not None and is_same_sync(before, sync.app):
            if not is_check_due or await self._is_intact(sync):
                return result_of_sync(sync, before)
            _logger.warning(
                "functions, triggers or schedules of the app %r were deleted on Temporal, and are restored", sync.app_id
            )
            sync = msgspec.structs.replace(sync, restores=True)
        try:
            result: SyncResult = await update_with_start(
                self._client,
                "sync",
                sync,
                workflow=AppWorkflow.run,
                state=[before],
                id=app_workflow_id(sync.app_id),
                summary=sync.app_id,
                result_type=SyncResult,
            )
        except WorkflowUpdateFailedError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == SYNC_REFUSED:
                raise ConfigInvalidError(error.cause.message) from None
            raise
        if before is not None and before.in_process != in_process:
            places = ["at its URL", "in its own processes"]
            _logger.warning(
                "the functions of the app %r are now called %s, and no longer %s: the last sync decides, so serve an "
                "app in one of these ways only",
                sync.app_id,
                places[in_process],
                places[before.in_process],
            )
        return result

    def _is_check_due(self, app_id: str) -> bool:
        """Whether to look for workflows that a user has terminated or deleted."""
        checked_at = self._checked_at.get(app_id)
        if checked_at is not None and time.monotonic() - checked_at < _CHECK_SECONDS:
            return False
        self._checked_at[app_id] = time.monotonic()
        return True

    async def _is_intact(self, sync: SyncInput) -> bool:
        """Whether events find the functions of an app. A user may have deleted workflows."""
        known = await self._records.find_functions(record.config.id for record in sync.functions)
        if any(known.get(record.config.id) is None for record in sync.functions):
            return False
        triggers = _triggers_by_name(sync.functions)
        topics = await self._records.find_topics(triggers)
        wanted = {(name, trigger) for name, each in triggers.items() for trigger in each}
        if wanted - {
            (name, trigger) for name, topic in zip(triggers, topics, strict=True) for trigger in topic.triggers
        }:
            return False
        schedules = [(record.config.id, read_flow(record.config).schedules) for record in sync.functions]
        return all([await has_schedules(self._client, *each) for each in schedules if each[1]])

    # the activity of the app's workflow

    async def apply(self, applied: AppliedSync) -> None:
        """Apply a sync. Repeating it changes nothing.

        Functions are stored before their triggers, so no event is lost.
        """
        sync, before = applied.sync, applied.before
        await self._check_owners(sync)
        wanted = {record.config.id: record for record in sync.functions}
        removed = [each for each in (before.functions if before is not None else ()) if each not in wanted]
        await _each(self._configure, wanted.items())
        schedules = {function_id: read_flow(record.config).schedules for function_id, record in wanted.items()}
        await _each(lambda each: put_schedules(self._client, each, schedules.get(each, ())), [*wanted, *removed])
        names = dict.fromkeys([*sync.app.names, *(before.names if before is not None else ())])
        triggers = _triggers_by_name(sync.functions)
        function_ids = (*wanted, *removed)
        await _each(lambda name: self._set_triggers(name, function_ids, triggers.get(name, ())), names)
        await _each(self._deactivate, removed)

    async def _check_owners(self, sync: SyncInput) -> None:
        found = await self._records.find_functions(record.config.id for record in sync.functions)
        for function_id, record in found.items():
            if record.is_active and record.app_id != sync.app_id:
                raise ApplicationError(
                    f"app {sync.app_id!r}: the function id {function_id!r} is taken by a function of app "
                    f"{record.app_id!r}: an id is the app's id, a hyphen and the function's own, so that two apps may "
                    "have the same id; rename the function",
                    type=SYNC_REFUSED,
                    non_retryable=True,
                )

    async def _configure(self, wanted: tuple[str, FunctionRecord]) -> None:
        function_id, record = wanted
        for cancel in record.config.cancel or ():
            await self._waits.add_path(cancel.event, path_of(cancel.if_exp))
        known = await self._records.find_function(function_id)
        if known is not None and record == msgspec.structs.replace(
            known, is_paused=False, paused_at=None, cancellations=()
        ):
            return
        await self._update_function(function_id, record, "configure", record)

    async def _deactivate(self, function_id: str) -> None:
        known = await self._records.find_function(function_id)
        if known is not None and known.is_active:
            inactive = msgspec.structs.replace(known, is_active=False)
            await self._update_function(function_id, inactive, "configure", inactive)

    async def _set_triggers(self, name: str, function_ids: tuple[str, ...], triggers: Sequence[TriggerRecord]) -> None:
        topic = await self._records.find_topic(name)
        if [each for each in topic.triggers if each.function_id in function_ids] != list(triggers):
            await self._waits.update_topic(name, "set_triggers", AppTriggers(function_ids, tuple(triggers)), topic)

    async def note_refused(self, app_id: str, error: str) -> None:
        """Store the reason why a later sync of an app was refused."""
        handle = self._client.get_workflow_handle(app_workflow_id(app_id))
        with ignoring_not_found():
            await handle.signal("note_refused", error[:_LONGEST_ERROR])

    async def _update_function(self, function_id: str, record: FunctionRecord, update: str, argument: Any) -> None:
        await update_with_start(
            self._client,
            update,
            argument,
            workflow=FunctionWorkflow.run,
            state=[record],
            id=function_workflow_id(function_id),
            summary=function_id,
            memo={FUNCTION: record},
        )


async def _each(act: Callable[[Any], Awaitable[None]], items: Iterable[Any]) -> None:
    limit = asyncio.Semaphore(_PARALLEL_REQUESTS)

    async def limited(item: Any) -> None:
        async with limit:
            await act(item)

    await asyncio.gather(*map(limited, items))


def _sync_input(
    request: SyncRequest, functions: Sequence[SyncedFunction], in_process: bool, settings: EngineSettings
) -> SyncInput:
    records = tuple(
        FunctionRecord(
            app_id=function.app_id,
            config=function.config,
            app_version=function.app_version,
            in_process=in_process,
            policy=_policy_of(settings, function.max_attempts),
        )
        for function in functions
    )
    leased = tuple(sorted(each.id for each in functions if has_leased_slots(each.flow)))
    app = AppRecord(
        url=request.url,
        functions={record.config.id: _digest(record) for record in records},
        sdk=request.sdk,
        framework=request.framework,
        version=request.app_version,
        in_process=in_process,
        names=tuple(sorted(_triggers_by_name(records))),
        leased=leased if in_process else (),
        leased_http=() if in_process else leased,
    )
    return SyncInput(app_id=request.app_id, functions=records, app=app)


def _policy_of(settings: EngineSettings, max_attempts: int) -> RunPolicy:
    """The engine's settings for runs that start."""
    delays: list[tuple[int, int]] = []
    if settings.backoff is not standard_backoff:
        for attempt in range(max_attempts - 1):
            least, most = (settings.backoff(attempt, jitter) // _MILLISECOND for jitter in (0.0, 1.0))
            delays.append((least, most - least))
    return RunPolicy(
        retry_delays=tuple(delays),
        max_steps=settings.max_steps,
        max_depth=settings.max_depth,
        call_timeout=settings.call_timeout // _MILLISECOND,
    )


def _digest(record: FunctionRecord) -> str:
    return hashlib.sha256(msgspec.json.encode((record.config, record.policy))).hexdigest()[:16]


def _triggers_by_name(functions: Iterable[FunctionRecord]) -> Mapping[str, list[TriggerRecord]]:
    found: dict[str, list[TriggerRecord]] = {}
    for record in functions:
        for trigger in record.config.triggers:
            if trigger.event:
                triggers = found.setdefault(trigger.event, [])
                triggers.append(TriggerRecord(record.config.id, trigger.expression or None))
    return found
