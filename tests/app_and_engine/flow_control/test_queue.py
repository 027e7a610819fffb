"""Concurrency, throttle and priority: which calls are made when."""

import datetime as dt

from durably import Concurrency, Context, Priority, Throttle
from durably.engine.model.runs import RunStatus

from .conftest import World

MINUTE = dt.timedelta(minutes=1)


async def test_concurrency_limits_executing_steps(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.open()
    for n in range(5):
        await world.send("work", n=n)
    await world.limit.wait_for(0, 1)
    assert await world.statuses("work") == [RunStatus.RUNNING] * 2 + [RunStatus.SCHEDULED] * 3
    world.limit.let_go(1)
    await world.limit.wait_for(0, 2)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED] * 5
    assert world.limit.most_inside == 2


async def test_a_run_that_sleeps_or_waits_holds_no_room(world: World) -> None:
    @world.function("nap", concurrency=[Concurrency(limit=1)])
    async def nap(ctx: Context) -> object:
        n = await ctx.step.run("before", lambda: ctx.event.data["n"])
        await ctx.step.sleep("nap", MINUTE)
        await ctx.step.wait_for_event("wait", event="go", timeout=MINUTE)
        return n

    await world.open()
    for n in range(3):
        await world.send("nap", n=n)
    await world.rest()
    for run in await world.runs("nap"):
        (before, asleep) = await world.engine.run_steps(run.id)
        assert (before.status, asleep.status) == ("completed", "sleeping")
    await world.let_pass(seconds=61)
    await world.send("go")
    await world.rest()
    assert await world.outputs("nap") == [0, 1, 2]


async def test_each_key_has_its_own_room_and_both_limits_hold(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=3), Concurrency(limit=1, key="event.data.user")])
    await world.open()
    for n, user in enumerate(["a", "a", "b", "c", "d"]):
        await world.send("work", n=n, user=user)
    await world.limit.wait_for(0, 2, 3)
    world.limit.let_go(2)
    await world.limit.wait_for(0, 3, 4)
    world.limit.let_go(0)
    await world.limit.wait_for(1, 3, 4)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED] * 5


async def test_a_shared_scope_is_shared_by_functions(world: World) -> None:
    for name in ("one", "two"):
        world.gated(name, concurrency=[Concurrency(limit=1, scope="account", key='"payments"')])
    await world.open()
    await world.send("one", n=1)
    await world.send("two", n=2)
    await world.limit.wait_for(1)
    world.limit.let_go(1)
    await world.limit.wait_for(2)
    assert world.limit.most_inside == 1


async def test_a_cancelled_run_leaves_its_place_to_the_next(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    for n in range(3):
        await world.send("work", n=n)
    await world.limit.wait_for(0)
    first, second, _ = await world.runs("work")
    assert await world.engine.cancel_run(second.id)
    assert await world.engine.cancel_run(first.id)
    # The room of a call is free once nothing depends on it any more, whatever it still does.
    await world.limit.wait_for(0, 2)
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.COMPLETED]


async def test_waiting_retry_frees_its_slot(world: World) -> None:
    attempts: list[int] = []

    @world.function("work", concurrency=[Concurrency(limit=1)], retries=1)
    async def work(ctx: Context) -> object:
        attempts.append(ctx.event.data["n"])
        if ctx.attempt == 0 and ctx.event.data["n"] == 0:
            raise ValueError("not yet")
        return ctx.event.data["n"]

    await world.open()
    await world.send("work", n=0)
    await world.send("work", n=1)
    await world.rest()
    assert attempts == [0, 1]
    await world.let_pass(seconds=10)
    assert attempts == [0, 1, 0]
    assert await world.outputs("work") == [0, 1]


async def test_priority_goes_first_among_those_that_wait(world: World) -> None:
    world.gated(
        "work", concurrency=[Concurrency(limit=1)], priority=Priority(run="event.data.plan == 'paid' ? 120 : 0")
    )
    await world.open()
    await world.send("work", n=0, plan="free")
    await world.limit.wait_for(0)
    await world.send("work", n=1, plan="free")
    await world.let_pass_while_busy(minutes=1)
    await world.send("work", n=2, plan="paid")
    world.limit.let_go(0)
    await world.limit.wait_for(2)
    world.limit.let_go(2)
    await world.limit.wait_for(1)


async def test_new_numbers_hold_at_once(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    for n in range(3):
        await world.send("work", n=n)
    await world.limit.wait_for(0)
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.sync()
    await world.limit.wait_for(0, 1)
    world.gated("work")
    await world.sync()
    await world.limit.wait_for(0, 1, 2)


async def test_queued_and_executing_calls_survive_a_restart(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.open()
    for n in range(5):
        await world.send("work", n=n)
    await world.limit.wait_for(0, 1)
    await world.restart()
    await world.limit.wait_for(0, 1)
    assert await world.statuses("work") == [RunStatus.RUNNING] * 2 + [RunStatus.SCHEDULED] * 3
    world.limit.open()
    await world.rest()
    assert await world.statuses("work") == [RunStatus.COMPLETED] * 5
    assert world.limit.most_inside == 2


async def test_throttle_continues_after_a_restart(world: World) -> None:
    world.recording("work", [], throttle=Throttle(limit=1, period=MINUTE))
    await world.open()
    for n in range(4):
        await world.send("work", n=n)
    await world.rest()
    await world.restart(after=dt.timedelta(seconds=90))
    await world.rest()
    assert [run.status for run in await world.runs("work")].count(RunStatus.COMPLETED) == 2
    await world.let_pass(minutes=3)
    starts = [round(world.seconds(run.started_at)) for run in await world.runs("work")]
    assert starts == [0, 90, 150, 210]


async def test_a_run_without_options_touches_nothing_of_flow_control(world: World) -> None:
    world.recording("plain", [])
    await world.open()
    await world.send("plain", n=1)
    await world.rest()
    assert await world.outputs("plain") == [1]
    assert await world.engine.list_runs(function_id="shop-plain")
    assert (
        world.rows(
            "buckets",
            "concurrency_keys",
            "queued_calls",
            "slots",
            "throttle_levels",
            "throttle_times",
            "cancel_events",
            "deadlines",
        )
        == 0
    )
