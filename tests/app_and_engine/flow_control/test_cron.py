"""Cron: runs by the clock, once for each tick, whatever stops when."""

import datetime as dt
from typing import Any

from durably import Context, TriggerCron, TriggerEvent
from durably.engine.model.runs import RunStatus

from .conftest import World

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)


def ticking(world: World, cron: str, **options: Any) -> list[float]:
    """A function that notes when it is called, in seconds since the test began."""
    ticks: list[float] = []

    @world.function("tick", trigger=TriggerCron(cron=cron, **options))
    async def tick(ctx: Context) -> object:
        ticks.append(world.seconds(dt.datetime.fromtimestamp(world.clock.now() / 1000, dt.UTC)))
        return dict(ctx.event.data)

    return ticks


async def test_cron_starts_one_run_for_each_tick(world: World) -> None:
    ticks = ticking(world, "*/10 * * * *")
    await world.open()
    await world.let_pass(minutes=35)
    assert ticks == [600, 1200, 1800]
    (first, *_) = await world.outputs("tick")
    assert first == {"cron": "*/10 * * * *", "scheduledAt": "2026-03-02T12:10:00Z", "fireAt": "2026-03-02T12:10:00Z"}
    (event, *_) = await world.engine.list_events(name="inngest/scheduled.timer")
    assert event.event.ts == world.clock.now() - 5 * 60_000


async def test_a_tick_fires_once_over_restarts_and_of_missed_ones_the_latest(world: World) -> None:
    ticks = ticking(world, "*/10 * * * *")
    await world.open()
    await world.let_pass(minutes=10)
    await world.restart()
    await world.rest()
    assert ticks == [600]
    await world.restart(after=45 * MINUTE)
    await world.rest()
    assert ticks == [600, 3300]
    assert (await world.outputs("tick"))[1]["scheduledAt"] == "2026-03-02T12:50:00Z"
    await world.let_pass(minutes=5)
    assert ticks == [600, 3300, 3600]


async def test_sync_replaces_schedules(world: World) -> None:
    first = ticking(world, "0 * * * *")
    await world.open()
    await world.sync()
    second = ticking(world, "30 * * * *")
    await world.sync()
    await world.let_pass(hours=1)
    assert (first, second) == ([], [1800])
    world.recording("tick", [])
    await world.sync()
    await world.let_pass(hours=2)
    assert second == [1800]
    assert world.rows("schedules") == 0


async def test_a_function_may_have_schedules_and_events(world: World) -> None:
    seen: list[str] = []
    triggers = [TriggerCron(cron="0 * * * *"), TriggerCron(cron="30 * * * *"), TriggerEvent(event="now")]

    @world.function("both", trigger=triggers)
    async def both(ctx: Context) -> None:
        seen.append(ctx.event.name)

    await world.open()
    await world.send("now")
    await world.let_pass(hours=1)
    assert seen == ["now", "inngest/scheduled.timer", "inngest/scheduled.timer"]


async def test_a_paused_function_misses_its_ticks(world: World) -> None:
    ticks = ticking(world, "*/10 * * * *")
    await world.open()
    await world.engine.pause_function("shop-tick")
    await world.let_pass(minutes=25)
    await world.engine.resume_function("shop-tick")
    await world.let_pass(minutes=10)
    assert ticks == [1800]
    assert await world.statuses("tick") == [RunStatus.COMPLETED]
