"""The planning and firing of cron ticks."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus

from durably.engine.core.flow.config import read_flow
from durably.engine.core.flow.cron import Schedule, Tick, fire, plan_tick
from durably.engine.scheduling.events import make_internal_event, tick_data
from durably.engine.temporal.ids import cron_workflow_id, make_event_id
from durably.engine.temporal.long_lived import describe, update_with_start
from durably.engine.temporal.messages import EventRecord
from durably.engine.temporal.routing.router import Router
from durably.protocol.events import InternalEvent

from .cron_workflow import CRON, FIRE_TICK, PLAN_TICKS, CronRecord, CronWorkflow, FireInput, PlanInput


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
    """Make these the schedules of a function. Repeating it changes nothing."""
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
    """``None`` if the workflow has just been started."""
    described = await describe(client, workflow_id)
    if described is None or described.status is not WorkflowExecutionStatus.RUNNING:
        return ()
    record: CronRecord | None = await described.memo_value(CRON, None, type_hint=CronRecord)
    return None if record is None else record.schedules
