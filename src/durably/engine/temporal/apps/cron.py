"""Cron schedules of a function: the workflow, and the activities of its ticks.

Each tick is planned and fired as on other engines. A Temporal Schedule would skip or repeat ticks around clock changes,
and would fire every missed tick. Activities do the planning, because it reads time zones, and these change.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus

from durably.engine.core.flow.config import Schedule, Tick, fire, plan_tick, read_flow
from durably.engine.model.events import make_internal_event, tick_data
from durably.engine.temporal.ids import cron_workflow_id, make_event_id
from durably.engine.temporal.messages import EventRecord
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.workflow_code import history_is_long, now
from durably.engine.temporal.workflow_requests import describe, update_with_start
from durably.protocol.events import InternalEvent

CRON = "cron"
"""The memo with the record."""
PLAN_TICKS = "durably.plan_ticks"
FIRE_TICK = "durably.fire_tick"
_TIMEOUT = dt.timedelta(seconds=30)
_UPCOMING: Any = Tick | None
_MILLISECOND = dt.timedelta(milliseconds=1)


class CronRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The schedules of a function, and their planned ticks by cron expression.

    The tick is ``None`` if the schedule has no further tick.
    """

    function_id: str
    schedules: tuple[Schedule, ...] = ()
    planned: dict[str, Tick | None] = {}


class PlanInput(msgspec.Struct, frozen=True):
    function_id: str
    schedules: tuple[Schedule, ...]
    after: int


class FireInput(msgspec.Struct, frozen=True):
    """A due tick. ``now`` is milliseconds since the epoch."""

    function_id: str
    schedule: Schedule
    tick: Tick
    now: int


@workflow.defn(name="durably.Cron", sandboxed=False)
class CronWorkflow:
    @workflow.init
    def __init__(self, record: CronRecord) -> None:
        self._function_id = record.function_id
        self._schedules = {schedule.text: schedule for schedule in record.schedules}
        self._planned = dict(record.planned)
        self._is_changed = False

    @workflow.run
    async def run(self, record: CronRecord) -> None:
        await workflow.wait_condition(lambda: bool(self._schedules) or self._is_changed)
        while self._schedules:
            if history_is_long():
                workflow.continue_as_new(self._record, memo={CRON: self._record})
            await self._plan()
            await self._fire()
            await self._sleep()

    @workflow.update(name="configure")
    def configure(self, schedules: tuple[Schedule, ...]) -> None:
        """Replace the schedules. Unchanged schedules keep their planned ticks."""
        self._schedules = {schedule.text: schedule for schedule in schedules}
        self._planned = {text: tick for text, tick in self._planned.items() if text in self._schedules}
        self._is_changed = True
        workflow.upsert_memo({CRON: msgspec.structs.replace(self._record, planned={})})

    @property
    def _record(self) -> CronRecord:
        return CronRecord(self._function_id, tuple(self._schedules.values()), self._planned)

    async def _plan(self) -> None:
        new = tuple(schedule for text, schedule in self._schedules.items() if text not in self._planned)
        if new:
            ticks: dict[str, Tick | None] = await workflow.execute_local_activity(
                PLAN_TICKS,
                PlanInput(self._function_id, new, now()),
                result_type=dict[str, Tick | None],
                start_to_close_timeout=_TIMEOUT,
            )
            self._planned.update({text: tick for text, tick in ticks.items() if text in self._schedules})

    async def _fire(self) -> None:
        for text, tick in [*self._planned.items()]:
            schedule = self._schedules.get(text)
            if schedule is None or tick is None or tick.due > now():
                continue
            upcoming: Tick | None = await workflow.execute_local_activity(
                FIRE_TICK,
                FireInput(self._function_id, schedule, tick, now()),
                result_type=_UPCOMING,
                start_to_close_timeout=_TIMEOUT,
                summary=text,
            )
            if text in self._planned:
                self._planned[text] = upcoming

    async def _sleep(self) -> None:
        due = min((tick.due for tick in self._planned.values() if tick is not None), default=None)
        timeout = None if due is None else max(due - now(), 0) * _MILLISECOND
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._is_changed, timeout=timeout, timeout_summary="next tick")
        self._is_changed = False


class CronActivities:
    def __init__(self, router: Router) -> None:
        self._router = router

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [self.plan, self.fire]

    @activity.defn(name=PLAN_TICKS)
    async def plan(self, plan: PlanInput) -> dict[str, Tick | None]:
        return {each.text: plan_tick(each, plan.function_id, plan.after) for each in plan.schedules}

    @activity.defn(name=FIRE_TICK)
    async def fire(self, due: FireInput) -> Tick | None:
        """Start a run, unless the function is paused. Returns the next tick."""
        fired = fire(due.schedule, due.function_id, due.tick, due.now)
        record = await self._router.records.find_function(due.function_id)
        if record is not None and record.is_active and not record.is_paused:
            schedules = read_flow(record.config).schedules
            if any(each.text == due.schedule.text for each in schedules):
                await self._router.route_to(due.function_id, _event_of(due, fired.tick))
        return fired.upcoming


def _event_of(due: FireInput, tick: Tick) -> EventRecord:
    event_id = make_event_id(tick.due, f"{due.function_id}\n{due.schedule.text}\n{tick.at}")
    data = tick_data(due.schedule.text, tick.at, tick.due)
    event = make_internal_event(InternalEvent.SCHEDULED_TIMER, data, event_id, tick.due)
    return EventRecord(id=event_id, name=event.name, body=msgspec.Raw(event.body), at=tick.due)


async def put_schedules(client: Client, function_id: str, schedules: tuple[Schedule, ...]) -> None:
    """Replace the schedules of a function. Repeating it changes nothing."""
    workflow_id = cron_workflow_id(function_id)
    if await _read_schedules(client, workflow_id) == schedules:
        return
    await update_with_start(
        client,
        "configure",
        schedules,
        workflow=CronWorkflow.run,
        state=[CronRecord(function_id)],
        id=workflow_id,
        summary=f"schedules of {function_id}",
    )


async def has_schedules(client: Client, function_id: str, schedules: tuple[Schedule, ...]) -> bool:
    return await _read_schedules(client, cron_workflow_id(function_id)) in (schedules, None)


async def _read_schedules(client: Client, workflow_id: str) -> tuple[Schedule, ...] | None:
    """Return the schedules, or ``None`` if the workflow has just started."""
    described = await describe(client, workflow_id)
    if described is None or described.status is not WorkflowExecutionStatus.RUNNING:
        return ()
    record: CronRecord | None = await described.memo_value(CRON, None, type_hint=CronRecord)
    return None if record is None else record.schedules
