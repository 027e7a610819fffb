"""Cancellation of runs: by events, by timeouts, in bulk."""

import datetime as dt
from typing import Any

import pytest

from durably import Cancel, Concurrency, Context, Singleton, Timeouts, TriggerEvent
from durably.engine.model.runs import RunStatus

from .conftest import START, World

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)
SAME_ORDER = "async.data.order == event.data.order"
CANCELLED = TriggerEvent(event="inngest/function.cancelled")
FINISHED = TriggerEvent(event="inngest/function.finished")


def sleeping(world: World, fn_id: str, **options: Any) -> None:
    """A function that sleeps for an hour."""

    @world.function(fn_id, **options)
    async def sleep(ctx: Context) -> object:
        await ctx.step.sleep("nap", HOUR)
        return ctx.event.data.get("order")


async def message_of(world: World, fn_id: str, index: int = 0) -> str:
    return str((await world.outputs(fn_id))[index]["message"])


async def test_an_event_cancels_the_runs_it_matches(world: World) -> None:
    sleeping(world, "work", cancel=[Cancel(event="stop", if_exp=SAME_ORDER), Cancel(event="stop-all")])
    await world.open()
    for order in ("a", "b", "b", "c"):
        await world.send("work", order=order)
    await world.rest()
    await world.restart()
    await world.send("stop", order="b")
    await world.rest()
    running, cancelled = RunStatus.RUNNING, RunStatus.CANCELLED
    assert await world.statuses("work") == [running, cancelled, cancelled, running]
    assert "'stop'" in await message_of(world, "work", 1)
    await world.send("stop-all")
    await world.rest()
    assert await world.statuses("work") == [cancelled] * 4
    assert world.rows("cancel_events", "run_states", "waits") == 0


async def test_a_queued_run_is_cancelled_too(world: World) -> None:
    world.gated(
        "work", concurrency=[Concurrency(limit=1)], cancel=[Cancel(event="stop", if_exp="async.data.n == event.data.n")]
    )
    await world.open()
    for n in range(3):
        await world.send("work", n=n)
    await world.limit.wait_for(0)
    await world.send("stop", n=1)
    world.limit.let_go(0)
    await world.limit.wait_for(2)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED, RunStatus.CANCELLED, RunStatus.COMPLETED]


async def test_one_event_cancels_the_old_run_and_starts_the_new(world: World) -> None:
    cancel = [Cancel(event="work", if_exp=SAME_ORDER)]
    sleeping(world, "work", cancel=cancel, singleton=Singleton(mode="skip", key="event.data.order"))
    await world.open()
    for _ in range(3):
        await world.send("work", order="a")
        await world.rest()
    # The place of the singleton is free by the time that the event is admitted.
    assert await world.statuses("work") == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.RUNNING]


async def test_runs_that_cancel_each_other_by_their_ends(world: World) -> None:
    sleeping(world, "work", cancel=[Cancel(event="inngest/function.cancelled"), Cancel(event="stop")])
    await world.open()
    for _ in range(300):
        await world.send("work")
    await world.rest()
    first, *_ = await world.runs("work")
    assert await world.engine.cancel_run(first.id)
    await world.rest()
    assert set(await world.statuses("work")) == {RunStatus.CANCELLED}


@pytest.mark.parametrize(
    ("options", "listeners"),
    [
        ({"singleton": Singleton(mode="cancel")}, 2),
        ({"cancel": [Cancel(event="inngest/function.cancelled")]}, 2),
        ({"singleton": Singleton(mode="cancel"), "trigger": [CANCELLED, FINISHED]}, 5),
    ],
)
async def test_runs_that_a_cancelled_run_starts_end_without_starting_others(
    world: World, options: dict[str, Any], listeners: int
) -> None:
    """All of it would be one transaction, so it has to end by itself."""
    sleeping(world, "work")
    sleeping(world, "listener", **{"trigger": CANCELLED, **options})
    await world.open()
    for _ in range(2):
        await world.send("work")
    await world.rest()
    for run in await world.runs("work"):
        assert await world.engine.cancel_run(run.id)
        await world.rest()
    assert len(await world.runs("listener")) == listeners
    assert (await world.statuses("listener")).count(RunStatus.RUNNING) == 1


async def test_cancelling_events_are_found_by_index(world: World) -> None:
    sleeping(world, "work", cancel=[Cancel(event="stop", if_exp=SAME_ORDER)])
    await world.open()
    for order in range(50):
        await world.send("work", order=order)
    await world.rest()
    assert world.rows("cancel_events") == 50
    assert "cancel_events_by_event" in world.plan(
        "SELECT * FROM cancel_events WHERE event = 'a' AND path IS 'b' AND value IS 'c'"
    )


async def test_a_run_that_does_not_start_in_time(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)], timeouts=Timeouts(start=MINUTE))
    await world.open()
    for n in range(2):
        await world.send("work", n=n)
    await world.limit.wait_for(0)
    await world.restart(after=2 * MINUTE)
    await world.limit.wait_for(0)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED, RunStatus.CANCELLED]
    assert "timeouts.start" in await message_of(world, "work", 1)
    assert world.rows("deadlines", "queued_calls", "concurrency_keys") == 0


async def test_a_run_that_does_not_end_in_time(world: World) -> None:
    sleeping(world, "work", timeouts=Timeouts(finish=MINUTE))
    sleeping(world, "quick", timeouts=Timeouts(finish=2 * HOUR, start=SECOND))
    await world.open()
    await world.send("work")
    await world.send("quick", order=1)
    await world.let_pass(seconds=59)
    assert await world.statuses("work") == [RunStatus.RUNNING]
    await world.let_pass(seconds=1)
    assert await world.statuses("work") == [RunStatus.CANCELLED]
    assert "timeouts.finish" in await message_of(world, "work")
    await world.let_pass(hours=3)
    assert await world.outputs("quick") == [1]


async def test_time_to_end_is_counted_from_the_first_call(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)], timeouts=Timeouts(finish=MINUTE))
    await world.open()
    await world.send("work", n=0)
    await world.send("work", n=1)
    await world.limit.wait_for(0)
    await world.let_pass_while_busy(seconds=50)
    world.limit.let_go(0)
    await world.limit.wait_for(1)
    await world.let_pass_while_busy(seconds=50)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED] * 2


# in bulk


async def test_runs_are_cancelled_in_bulk(world: World) -> None:
    sleeping(world, "work")
    sleeping(world, "other")
    await world.open()
    for minute in range(4):
        await world.send("work", order=minute)
        await world.send("other")
        await world.let_pass(minutes=1)
    operation = await world.engine.cancel_runs(
        "shop-work",
        started_after=START + MINUTE,
        started_before=START + 4 * MINUTE,
        if_exp="event.data.order != 2",
    )
    await world.rest()
    running, cancelled = RunStatus.RUNNING, RunStatus.CANCELLED
    assert await world.statuses("work") == [running, cancelled, running, cancelled]
    assert set(await world.statuses("other")) == {running}
    (listed,) = await world.engine.list_cancellations()
    assert (listed.id, listed.affected, listed.ended_at is not None) == (operation.id, 2, True)


async def test_a_bulk_cancellation_holds_for_runs_to_come(world: World) -> None:
    sleeping(world, "work")
    await world.open()
    until = START + HOUR
    await world.engine.cancel_runs(function_id="shop-work", started_before=until, if_exp="event.data.order == 1")
    kept = await world.engine.cancel_runs(function_id="shop-work", started_before=until, if_exp="event.data.order == 2")
    await world.restart()
    await world.engine.delete_cancellation(kept.id)
    for order in range(3):
        await world.send("work", order=order)
    await world.let_pass(hours=1)
    await world.send("work", order=1)
    await world.rest()
    statuses = await world.statuses("work")
    assert statuses == [RunStatus.COMPLETED, RunStatus.CANCELLED, RunStatus.COMPLETED, RunStatus.RUNNING]
