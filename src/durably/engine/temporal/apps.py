"""Syncs of apps: their functions, triggers, cron schedules, and paths of cancelling events."""

import asyncio
import contextlib
import datetime as dt
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import temporalio.client
from cronsim import CronSim
from temporalio import activity, workflow
from temporalio.client import Client, ScheduleAlreadyRunningError, WorkflowUpdateFailedError
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError

from durably.engine.core.backoff import standard_backoff
from durably.engine.core.flow.config import Schedule, read_flow
from durably.engine.model.events import make_internal_event, tick_data
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.overview import App, FunctionInfo, SyncReport, SyncResult
from durably.engine.model.runs import to_datetime, to_milliseconds
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import ignoring_not_found, update_with_start
from durably.engine.temporal.ids import (
    WORKFLOWS_QUEUE,
    app_workflow_id,
    function_workflow_id,
    make_event_id,
    schedule_id,
)
from durably.engine.temporal.messages import AppRecord, EventRecord, FunctionRecord, RunPolicy, SyncInput, TriggerRecord
from durably.engine.temporal.records import (
    APP,
    APPLY_SYNC,
    FUNCTION,
    SYNC_REFUSED,
    AppliedSync,
    AppTriggers,
    AppWorkflow,
    FunctionWorkflow,
    Records,
    is_same_sync,
    result_of_sync,
)
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.routing.waits import Waits
from durably.engine.temporal.routing.workflows import wait_key
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.engine_errors import ConfigInvalidError, FunctionNotFoundError
from durably.protocol.events import InternalEvent
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

_logger = get_logger("durably.engine")

_PARALLEL_REQUESTS = 20
_MILLISECOND = dt.timedelta(milliseconds=1)
_PAUSED, _RESUMED = "the function is paused", "the function is resumed"


class AppSync:
    def __init__(self, client: Client, settings: EngineSettings) -> None:
        self._client = client
        self._settings = settings
        self._records = Records(client)
        self._waits = Waits(client)
        self._synced: set[str] = set()

    async def has_synced(self, app_id: str) -> bool:
        """Whether an app has ever synced, so that events find its triggers."""
        return await self._records.read(app_workflow_id(app_id), APP, AppRecord) is not None

    async def sync(self, request: SyncRequest, functions: Sequence[SyncedFunction], *, in_process: bool) -> SyncResult:
        """Replace the functions of an app. Raises ``ConfigInvalidError``."""
        sync = _sync_input(request, functions, in_process, self._settings)
        before = await self._records.read(app_workflow_id(sync.app_id), APP, AppRecord)
        if sync.app_id not in self._synced:
            # The first sync of a process restores what a user has deleted on Temporal.
            sync = msgspec.structs.replace(sync, restores=True)
        elif before is not None and is_same_sync(before, sync.app):
            return result_of_sync(sync, before)
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
        self._synced.add(sync.app_id)
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

    @activity.defn(name=APPLY_SYNC)
    async def apply(self, applied: AppliedSync) -> None:
        """Apply a sync. Repeating it changes nothing.

        Functions are stored before their triggers, so no event is lost.
        """
        sync, before = applied.sync, applied.before
        await self._check_owners(sync)
        wanted = {record.config.id: record for record in sync.functions}
        removed = [each for each in (before.functions if before is not None else ()) if each not in wanted]
        await _each(self._configure, wanted.items())
        schedules = _schedules_of(sync.functions)
        await _each(self._create_schedule, schedules.values())
        outdated = {*sync.app.schedules, *(before.schedules if before is not None else ())} - {*schedules}
        await _each(self._delete_schedule, outdated)
        names = dict.fromkeys([*sync.app.names, *(before.names if before is not None else ())])
        triggers = _triggers_by_name(sync.functions)
        function_ids = (*wanted, *removed)
        await _each(lambda name: self._set_triggers(name, function_ids, triggers.get(name, ())), names)
        for function_id in removed:
            known = await self._records.find_function(function_id)
            if known is not None and known.is_active:
                inactive = msgspec.structs.replace(known, is_active=False)
                await self._store(function_id, inactive)

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
            await self._waits.add_path(cancel.event, wait_key(cancel.if_exp, {}).path)
        known = await self._records.find_function(function_id)
        if known is not None and record == msgspec.structs.replace(known, is_paused=False, paused_at=None):
            return
        await self._store(function_id, record)

    async def _set_triggers(self, name: str, function_ids: tuple[str, ...], triggers: Sequence[TriggerRecord]) -> None:
        topic = await self._records.find_topic(name)
        if [each for each in topic.triggers if each.function_id in function_ids] != list(triggers):
            await self._waits.update_topic(name, "set_triggers", AppTriggers(function_ids, tuple(triggers)), topic)

    async def _create_schedule(self, wanted: tuple[str, Schedule]) -> None:
        function_id, schedule = wanted
        record = await self._records.find_function(function_id)
        with contextlib.suppress(ScheduleAlreadyRunningError):  # A Schedule never changes: its id has a digest of it.
            await self._client.create_schedule(
                schedule_id(function_id, schedule.text, schedule.jitter),
                temporal_schedule(function_id, schedule, is_paused=record is not None and record.is_paused),
            )

    async def _delete_schedule(self, each: str) -> None:
        with ignoring_not_found():
            await self._client.get_schedule_handle(each).delete()

    async def set_paused(self, function_id: str, record: FunctionRecord, is_paused: bool) -> None:
        """Pause or resume a function and its Schedules. Repeating it changes nothing."""

        async def update(each: str) -> None:
            handle = self._client.get_schedule_handle(each)
            with ignoring_not_found():
                await (handle.pause(note=_PAUSED) if is_paused else handle.unpause(note=_RESUMED))

        schedules = _schedules_of([record])
        if not is_paused:  # Before the function: a tick of a paused function starts no run, but one of a paused
            await _each(update, schedules)  # Schedule would be lost if this process ended here.
        handle = self._client.get_workflow_handle(function_workflow_id(function_id))
        await handle.execute_update("set_paused", is_paused)
        if is_paused:
            await _each(update, schedules)

    async def _store(self, function_id: str, record: FunctionRecord) -> None:
        await update_with_start(
            self._client,
            "configure",
            record,
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
    app = AppRecord(
        url=request.url,
        functions={
            record.config.id: hashlib.sha256(msgspec.json.encode((record.config, record.policy))).hexdigest()[:16]
            for record in records
        },
        sdk=request.sdk,
        framework=request.framework,
        version=request.app_version,
        in_process=in_process,
        names=tuple(sorted(_triggers_by_name(records))),
        schedules=tuple(sorted(_schedules_of(records))),
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


def _triggers_by_name(functions: Iterable[FunctionRecord]) -> Mapping[str, list[TriggerRecord]]:
    found: dict[str, list[TriggerRecord]] = {}
    for record in functions:
        for trigger in record.config.triggers:
            if trigger.event:
                triggers = found.setdefault(trigger.event, [])
                triggers.append(TriggerRecord(record.config.id, trigger.expression or None))
    return found


def _schedules_of(functions: Iterable[FunctionRecord]) -> dict[str, tuple[str, Schedule]]:
    """Cron schedules with their functions' ids, by the ids of their Schedules."""
    found = {}
    for record in functions:
        for schedule in read_flow(record.config).schedules:
            found[schedule_id(record.config.id, schedule.text, schedule.jitter)] = record.config.id, schedule
    return found


# lists


class FunctionLists:
    """The functions and apps that have synced. Temporal's index, which lags, lists the apps."""

    def __init__(self, client: Client, records: Records) -> None:
        self._client = client
        self._records = records
        self._slots = asyncio.Semaphore(_PARALLEL_REQUESTS)

    async def functions(self) -> list[FunctionInfo]:
        """The active functions, ordered by app and by position in the app."""
        apps = await self.app_records()
        found = await asyncio.gather(*(self._of_app(app_id, record) for app_id, record in apps))
        return list(itertools.chain.from_iterable(found))

    async def of_app(self, app_id: str) -> list[FunctionInfo] | None:
        record = await self._records.read(app_workflow_id(app_id), APP, AppRecord)
        return None if record is None else await self._of_app(app_id, record)

    async def _of_app(self, app_id: str, app: AppRecord) -> list[FunctionInfo]:
        records = await asyncio.gather(*(self._function(function_id) for function_id in app.functions))
        return [
            FunctionInfo.of(function_id, record.app_id, record.config, record.is_paused)
            for function_id, record in zip(app.functions, records, strict=True)
            if record is not None and record.is_active and record.app_id == app_id
        ]

    async def _function(self, function_id: str) -> FunctionRecord | None:
        async with self._slots:
            return await self._records.find_function(function_id)

    async def get(self, function_id: str) -> FunctionRecord:
        """An active function. Raises ``FunctionNotFoundError``."""
        record = await self._records.find_function(function_id)
        if record is None or not record.is_active:
            raise FunctionNotFoundError(
                f"no app has synced a function with the id {function_id!r}: its id is its app's id, a hyphen, and its "
                "own"
            )
        return record

    async def app_records(self) -> list[tuple[str, AppRecord]]:
        """The apps that have synced, by id."""
        query = "WorkflowType = 'durably.App' AND ExecutionStatus = 'Running'"
        ids = [each.id.removeprefix(app_workflow_id("")) async for each in self._client.list_workflows(query)]
        records = await asyncio.gather(*(self._app(app_id) for app_id in ids))
        return sorted((app_id, record) for app_id, record in zip(ids, records, strict=True) if record is not None)

    async def _app(self, app_id: str) -> AppRecord | None:
        async with self._slots:
            return await self._records.read(app_workflow_id(app_id), APP, AppRecord)

    async def apps(self) -> list[App]:
        return [app_view(app_id, record) for app_id, record in await self.app_records()]


def app_view(app_id: str, record: AppRecord) -> App:
    return App(
        id=app_id,
        url=record.url,
        sdk=record.sdk,
        framework=record.framework,
        version=record.version,
        synced_at=to_datetime(record.synced_at),
        function_count=len(record.functions),
        last_sync=SyncReport(
            at=to_datetime(record.synced_at),
            error=record.error,
            added=record.added,
            changed=record.changed,
            removed=record.removed,
        ),
    )


# cron schedules

FIRE_TICK = "durably.fire_tick"
_TICK_TIMEOUT = dt.timedelta(seconds=30)
_SCHEDULED_AT = SearchAttributeKey.for_datetime("TemporalScheduledStartTime")
_LATE = 60_000
"""Milliseconds after which a tick that no worker has executed counts as missed."""
_CATCHUP_WINDOW = dt.timedelta(hours=1)
"""Ticks that were due longer ago when the server starts again are not fired."""


class CronSchedule(msgspec.Struct, frozen=True):
    """A cron schedule of a function. ``text`` is as the app wrote it."""

    function_id: str
    text: str


class CronTick(msgspec.Struct, frozen=True):
    """A tick. ``at`` is its scheduled time, ``due`` later by the jitter. Both are milliseconds since the epoch."""

    schedule: CronSchedule
    at: int
    due: int


@workflow.defn(name="durably.CronTick", sandboxed=False)
class CronTickWorkflow:
    """A tick, which a Schedule of Temporal has started."""

    @workflow.run
    async def run(self, schedule: CronSchedule) -> None:
        info = workflow.info()
        at = info.typed_search_attributes.get(_SCHEDULED_AT) or info.start_time
        tick = CronTick(schedule, to_milliseconds(at), to_milliseconds(info.start_time))
        await workflow.execute_local_activity(FIRE_TICK, tick, start_to_close_timeout=_TICK_TIMEOUT)


class CronActivities:
    def __init__(self, router: Router) -> None:
        self._router = router

    @activity.defn(name=FIRE_TICK)
    async def fire(self, tick: CronTick) -> None:
        """Start a run, unless the function is paused. Repeating it changes nothing.

        If ticks were missed because no worker ran, only the latest starts a run.
        """
        function_id, text = tick.schedule.function_id, tick.schedule.text
        record = await self._router.records.find_function(function_id)
        if record is None or not record.is_active or record.is_paused:
            return
        schedule = next((each for each in read_flow(record.config).schedules if each.text == text), None)
        if schedule is None:
            return
        now = wall_clock()
        if now - tick.due > _LATE and next(schedule.ticks_after(tick.at), now) + schedule.jitter < now:
            return
        event_id = make_event_id(tick.at, tick_name(function_id, text, tick.at))
        data = tick_data(text, tick.at, tick.due)
        event = make_internal_event(InternalEvent.SCHEDULED_TIMER, data, event_id, tick.due)
        await self._router.route_to(
            function_id, EventRecord(id=event_id, name=event.name, body=msgspec.Raw(event.body), at=tick.at)
        )


def tick_name(function_id: str, text: str, at: int) -> str:
    """What the id of a tick's event is made from, with its time."""
    return f"{function_id}\n{text}\n{at}"


def temporal_schedule(function_id: str, schedule: Schedule, *, is_paused: bool = False) -> temporalio.client.Schedule:
    """The Schedule of Temporal for a cron schedule. It has all numbers of its fields, because notations differ."""
    fields = CronSim(schedule.fields, dt.datetime.now(dt.UTC))
    days, weekdays = set(fields.days), {each % 7 for each in fields.weekdays if isinstance(each, int)}
    matches = [(days, weekdays)] if fields.day_and else [(days, set(range(7))), (set(range(1, 32)), weekdays)]
    calendars = [
        temporalio.client.ScheduleCalendarSpec(
            minute=_ranges(fields.minutes),
            hour=_ranges(fields.hours),
            day_of_month=_ranges(days),
            month=_ranges(fields.months),
            day_of_week=_ranges(weekdays),
            comment=schedule.text,
        )
        for days, weekdays in matches
    ]
    return temporalio.client.Schedule(
        action=temporalio.client.ScheduleActionStartWorkflow(
            CronTickWorkflow.run,
            CronSchedule(function_id, schedule.text),
            id=schedule_id(function_id, schedule.text, schedule.jitter).replace("/cron/", "/tick/", 1),
            task_queue=WORKFLOWS_QUEUE,
            static_summary=f"{schedule.text} of {function_id}",
        ),
        spec=temporalio.client.ScheduleSpec(
            calendars=calendars,
            time_zone_name=schedule.zone,
            jitter=schedule.jitter * _MILLISECOND if schedule.jitter else None,
        ),
        policy=temporalio.client.SchedulePolicy(
            overlap=temporalio.client.ScheduleOverlapPolicy.ALLOW_ALL, catchup_window=_CATCHUP_WINDOW
        ),
        state=temporalio.client.ScheduleState(paused=is_paused, note=_PAUSED if is_paused else None),
    )


def _ranges(numbers: Iterable[int]) -> list[temporalio.client.ScheduleRange]:
    return [temporalio.client.ScheduleRange(each) for each in sorted(numbers)]
