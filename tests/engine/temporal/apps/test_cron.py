"""Cron schedules on the engine on Temporal."""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from durably.engine.core.flow.config import Schedule, Tick, fire, plan_tick
from durably.engine.temporal.apps.cron import (
    FIRE_TICK,
    PLAN_TICKS,
    CronActivities,
    CronRecord,
    CronWorkflow,
    FireInput,
    PlanInput,
)
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.ids import cron_workflow_id
from durably.temporal.errors import find_program

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ...small_app import Steps
from ..routed_app import RoutedApp, data_of, routed_app

MINUTE = 60_000


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


def at(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


async def test_a_tick_starts_a_run_with_the_data_of_other_engines(app: RoutedApp) -> None:
    @app.function("nightly", triggers=[{"cron": "TZ=Europe/Paris 30 2 * * *"}])
    def nightly(steps: Steps) -> object:
        return dict(data_of(steps))

    await app.sync()
    activities = CronActivities(app.engine._router)
    schedule = Schedule("TZ=Europe/Paris 30 2 * * *", "30 2 * * *", "Europe/Paris")
    # On this day, the clocks of Paris skip 02:30.
    tick = plan_tick(schedule, app.id_of("nightly"), at("2026-03-28T12:00:00+00:00"))
    assert tick is not None
    due = FireInput(app.id_of("nightly"), schedule, tick, tick.due)
    assert await activities.fire(due) == await activities.fire(due) == fire(schedule, due.function_id, tick, due.now)[1]
    await app.wait_for_calls(1)
    assert [dict(call.event.data) for call in app.calls if call.event] == [
        {"cron": schedule.text, "fireAt": "2026-03-29T01:00:00Z", "scheduledAt": "2026-03-29T01:00:00Z"}
    ]
    await app.engine.pause_function(app.id_of("nightly"))
    await activities.fire(msgspec.structs.replace(due, now=due.now + 48 * 60 * MINUTE))
    assert len(app.calls) == 1


async def test_schedules_are_added_and_removed_with_their_triggers(app: RoutedApp) -> None:
    handle = app.client.get_workflow_handle(cron_workflow_id(app.id_of("f")))

    def serve(*crons: str) -> None:
        app.functions.clear()

        @app.function("f", triggers=[{"cron": cron} for cron in crons] or [{"event": app.event("go")}])
        def f(steps: Steps) -> object:
            return None

    async def schedules() -> Sequence[str]:
        record = await (await handle.describe()).memo_value("cron", type_hint=CronRecord)
        return [schedule.text for schedule in record.schedules]

    serve("0 1 * * *", "0 2 * * *")
    await app.sync()
    assert await schedules() == ["0 1 * * *", "0 2 * * *"]
    length = await app.history_length(handle.id)
    await app.sync()
    assert await app.history_length(handle.id) == length
    serve("0 2 * * *")
    await app.sync()
    assert await schedules() == ["0 2 * * *"]
    serve()
    await app.sync()

    async def has_ended() -> bool:
        return (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED

    await async_eventually(has_ended, "the schedule's workflow has ended")
    serve("0 3 * * *")
    await app.sync()
    assert await schedules() == ["0 3 * * *"]


class Firing:
    """Records fired ticks, without functions."""

    def __init__(self) -> None:
        self.fired: list[int] = []
        self.late: list[int] = []

    @activity.defn(name=PLAN_TICKS)
    async def plan(self, plan: PlanInput) -> dict[str, Tick | None]:
        return {each.text: plan_tick(each, plan.function_id, plan.after) for each in plan.schedules}

    @activity.defn(name=FIRE_TICK)
    async def fire(self, due: FireInput) -> Tick | None:
        fired = fire(due.schedule, due.function_id, due.tick, due.now)
        self.fired.append(fired.tick.at)
        self.late.append(due.now - due.tick.due)
        return fired.upcoming


async def test_each_tick_of_a_day_is_fired_once_at_its_time() -> None:
    firing = Firing()
    every = Schedule("0 * * * *", "0 * * * *", "UTC", jitter=10 * MINUTE)
    server = str(find_program("temporal-test-server"))
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=DATA_CONVERTER, test_server_existing_path=server
    ) as environment:
        client: Any = environment.client
        async with Worker(client, task_queue="cron", workflows=[CronWorkflow], activities=[firing.plan, firing.fire]):
            handle = await client.start_workflow(
                CronWorkflow.run, CronRecord("f", (every,)), id="cron", task_queue="cron"
            )
            began = round((await environment.get_current_time()).timestamp() * 1000)
            await environment.sleep(dt.timedelta(hours=12))
            await handle.terminate()
    ticks = []
    for tick in every.ticks_after(began):
        if len(ticks) == 11:
            break
        ticks.append(tick)
    assert firing.fired[:11] == ticks
    assert max(firing.late) < MINUTE
