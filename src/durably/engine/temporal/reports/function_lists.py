"""Functions, apps and schedules, from the memos of their workflows.

Temporal's index, which lags, lists them. Each is read by Describe, which is consistent.
"""

import asyncio
import itertools

import msgspec
from temporalio.client import Client
from ulid import ULID

from durably.engine.model.functions import SyncedFunction
from durably.engine.model.overview import App, FunctionInfo, ScheduleInfo, SyncReport
from durably.engine.model.runs import Run, to_datetime
from durably.engine.temporal.apps import tick_name
from durably.engine.temporal.ids import app_workflow_id, make_event_id
from durably.engine.temporal.messages import AppRecord, FunctionRecord
from durably.engine.temporal.records import APP, Records
from durably.engine.temporal.reports.lists import RunLists, RunQuery, memo_of
from durably.protocol.engine_errors import FunctionNotFoundError
from durably.protocol.events import InternalEvent
from durably.protocol.text import redact_url

_MOST_AT_ONCE = 16
_MOST_TICKS = 5
_MOST_CRON_RUNS = 5
_CRON_RUNS_LOOKED_AT = 30


class FunctionLists:
    def __init__(self, client: Client, records: Records, lists: RunLists) -> None:
        self._client = client
        self._records = records
        self._lists = lists
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

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
            function_view(function_id, record)
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

    async def schedules(self, now: int) -> list[ScheduleInfo]:
        """The schedules of active functions, by function."""
        views: list[ScheduleInfo] = []
        for view in await self.functions():
            function = SyncedFunction.from_config(view.config, view.app_id)
            if not function.flow.schedules:
                continue
            runs = await self._cron_runs(function)
            for schedule in function.flow.schedules:
                ticks = itertools.islice(schedule.ticks_after(now), _MOST_TICKS)
                views.append(
                    ScheduleInfo(
                        function_id=view.id,
                        schedule=schedule.text,
                        next_ticks=[to_datetime(tick) for tick in ticks],
                        last_runs=runs.get(schedule.text, [])[:_MOST_CRON_RUNS],
                        is_paused=view.is_paused,
                    )
                )
        return sorted(views, key=lambda view: (view.function_id, view.schedule))

    async def _cron_runs(self, function: SyncedFunction) -> dict[str, list[Run]]:
        """The last runs that schedules of a function started, by schedule."""
        found: dict[str, list[Run]] = {}
        seen = 0
        async for each in self._lists.walk(RunQuery(function_id=function.id, event_name=InternalEvent.SCHEDULED_TIMER)):
            event_id = (await memo_of(each)).event_ids[0]
            at = ULID.from_str(event_id).milliseconds
            for schedule in function.flow.schedules:
                if make_event_id(at, tick_name(function.id, schedule.text, at)) == event_id:
                    found.setdefault(schedule.text, []).append(await self._lists.link(each, has_relation=False))
            seen += 1
            if seen == _CRON_RUNS_LOOKED_AT:
                break
        return found


def function_view(function_id: str, record: FunctionRecord) -> FunctionInfo:
    config = record.config
    # URLs may contain an app's password.
    steps = {
        name: msgspec.structs.replace(
            step, runtime=msgspec.structs.replace(step.runtime, url=redact_url(step.runtime.url))
        )
        for name, step in config.steps.items()
    }
    return FunctionInfo(
        id=function_id,
        name=config.name or function_id,
        app_id=record.app_id,
        config=msgspec.structs.replace(config, steps=steps),
        is_paused=record.is_paused,
    )


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
