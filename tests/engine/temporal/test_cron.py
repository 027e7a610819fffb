"""Cron schedules on the engine on Temporal."""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator

import msgspec
import pytest
from temporalio.client import ScheduleBackfill, ScheduleHandle, ScheduleOverlapPolicy
from temporalio.service import RPCError

from durably.engine.core.flow.config import Schedule
from durably.engine.temporal.apps import CronActivities, CronSchedule, CronTick, temporal_schedule
from durably.engine.temporal.ids import schedule_id

from ...temporal.dev_server import DevServer
from ..small_app import Steps
from .routed_app import RoutedApp, data_of, routed_app

HOUR = 3_600_000


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


def serve(app: RoutedApp, *crons: str) -> None:
    app.functions.clear()

    @app.function("f", triggers=[{"cron": cron} for cron in crons] or [{"event": app.event("go")}])
    def f(steps: Steps) -> object:
        return dict(data_of(steps))


def schedule_of(app: RoutedApp, cron: str) -> ScheduleHandle:
    return app.client.get_schedule_handle(schedule_id(app.id_of("f"), cron, 0))


async def exists(handle: ScheduleHandle) -> bool:
    with contextlib.suppress(RPCError):
        await handle.describe()
        return True
    return False


async def test_schedules_are_created_paused_and_deleted_with_their_functions(app: RoutedApp) -> None:
    one, two = (schedule_of(app, cron) for cron in ("0 1 * * *", "TZ=Europe/Paris 0 2 * * *"))
    serve(app, "0 1 * * *", "TZ=Europe/Paris 0 2 * * *")
    await app.sync()
    described = await two.describe()
    assert described.schedule.policy.overlap is ScheduleOverlapPolicy.ALLOW_ALL
    assert {each.minute for each in described.info.next_action_times} == {0}
    assert described.schedule.spec.time_zone_name == "Europe/Paris"
    serve(app, "0 1 * * *")
    await app.sync()
    assert (await exists(one), await exists(two)) == (True, False)
    await app.engine.pause_function(app.id_of("f"))
    assert (await one.describe()).schedule.state.paused
    serve(app, "0 1 * * *", "0 3 * * *")
    await app.sync()
    assert (await schedule_of(app, "0 3 * * *").describe()).schedule.state.paused
    await app.engine.resume_function(app.id_of("f"))
    assert not (await one.describe()).schedule.state.paused
    serve(app)
    await app.sync()
    assert not await exists(one)


async def test_a_tick_starts_one_run_with_the_data_of_other_engines(app: RoutedApp) -> None:
    cron = "30 2 * * *"
    serve(app, cron)
    await app.sync()
    day = dt.datetime(2026, 3, 28, tzinfo=dt.UTC)
    backfill = ScheduleBackfill(day, day + dt.timedelta(days=1), overlap=ScheduleOverlapPolicy.ALLOW_ALL)
    await schedule_of(app, cron).backfill(backfill)
    await app.wait_for_calls(1)
    tick = CronTick(CronSchedule(app.id_of("f"), cron), round((day.timestamp() + 9000) * 1000), 0)
    now = round(dt.datetime.now(dt.UTC).timestamp() * 1000)
    await CronActivities(app.engine._router).fire(msgspec.structs.replace(tick, due=now))
    (call,) = app.calls
    assert call.event is not None
    assert call.event.data["cron"] == cron
    assert call.event.data["scheduledAt"] == "2026-03-28T02:30:00Z"


async def test_only_the_latest_of_missed_ticks_starts_a_run_and_none_of_a_paused_function(app: RoutedApp) -> None:
    cron = "0 * * * *"
    serve(app, cron)
    await app.sync()
    activities = CronActivities(app.engine._router)
    now = round(dt.datetime.now(dt.UTC).timestamp() * 1000)
    latest = now - now % HOUR
    ticks = [CronTick(CronSchedule(app.id_of("f"), cron), at, at) for at in (latest - 2 * HOUR, latest - HOUR, latest)]
    await app.engine.pause_function(app.id_of("f"))
    await activities.fire(ticks[-1])
    await app.engine.resume_function(app.id_of("f"))
    for tick in ticks * 2:
        await activities.fire(tick)
    await app.wait_for_calls(1)
    assert len(app.calls) == 1


@pytest.mark.parametrize(
    ("fields", "jitter"),
    [
        ("0 0 13 * FRI", 0),
        ("0 0 1-31/2 * 1", 0),
        ("*/20 1,2 * JAN-MAR *", 0),
        ("5 4 * * 7", 60_000),
    ],
)
async def test_a_schedule_ticks_at_the_times_of_other_engines(server: DevServer, fields: str, jitter: int) -> None:
    async with routed_app(server.address) as app:
        schedule = Schedule(fields, fields, "UTC", jitter)
        handle = await app.client.create_schedule(
            f"{app.app_id}/{fields}", temporal_schedule(app.id_of("f"), schedule, is_paused=True)
        )
        described = await handle.describe()
        await handle.delete()
    assert described.schedule.spec.jitter == (dt.timedelta(milliseconds=jitter) if jitter else None)
    times = [round(each.timestamp() * 1000) for each in described.info.next_action_times]
    ticks = schedule.ticks_after(round(described.info.created_at.timestamp() * 1000))
    assert len(times) > 3
    for time, tick in zip(times, ticks, strict=False):
        assert tick <= time <= tick + jitter
