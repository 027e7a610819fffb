"""Options that act on events before a run starts: rate limit, idempotency, debounce, batches, singleton."""

import datetime as dt
from typing import Any

from durably import Batch, Context, Debounce, RateLimit, Singleton
from durably.engine.model.runs import RunStatus

from .conftest import World

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)


async def test_rate_limit_drops_excess_events(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, rate_limit=RateLimit(limit=2, period=MINUTE, key="event.data.user"))
    await world.open()
    for n, user in enumerate(["a", "a", "b"]):
        await world.send("work", n=n, user=user)
    await world.rest()
    assert sorted(seen) == [0, 2]
    await world.restart()
    await world.send("work", n=3, user="a")
    await world.let_pass(seconds=30)
    await world.send("work", n=4, user="a")
    await world.let_pass(minutes=2)
    assert sorted(seen) == [0, 2, 4]


async def test_idempotency_holds_for_a_day_and_over_restarts(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, idempotency="event.data.order")
    await world.open()
    await world.send("work", n=1, order="a")
    await world.send("work", n=2, order="a")
    await world.send("work", n=3, order="b")
    await world.rest()
    await world.restart(after=dt.timedelta(hours=23))
    await world.send("work", n=4, order="a")
    await world.let_pass(hours=1)
    await world.send("work", n=5, order="a")
    await world.rest()
    assert sorted(seen) == [1, 3, 5]


async def test_a_debounce_survives_restarts(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, debounce=Debounce(period=10 * SECOND))
    await world.open()
    await world.send("work", n=1)
    await world.restart()
    await world.send("work", n=2)
    await world.restart(after=3 * SECOND)
    await world.let_pass(seconds=6)
    assert seen == []
    await world.let_pass(seconds=1)
    assert seen == [2]
    await world.send("work", n=3)
    await world.restart(after=HOUR)
    await world.rest()
    assert seen == [2, 3]
    assert world.rows("buckets", "pending_events") == 0


async def test_a_pending_debounce_starts_its_run_though_the_option_is_gone(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, debounce=Debounce(period=10 * SECOND))
    await world.open()
    await world.send("work", n=1)
    world.recording("work", seen)
    await world.sync()
    await world.send("work", n=2)
    await world.let_pass(seconds=10)
    assert seen == [2, 1]


async def test_batches_close_when_they_are_full_or_their_time_is_up(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, batch_events=Batch(max_size=3, timeout=MINUTE))
    await world.open()
    ids = [await world.send("work", n=n) for n in range(5)]
    await world.rest()
    assert seen == [[0, 1, 2]]
    await world.let_pass(minutes=1)
    assert seen == [[0, 1, 2], [3, 4]]
    first, second = await world.runs("work")
    assert (first.event_ids, second.event_ids) == (ids[:3], ids[3:])
    assert [run.id for run in await world.engine.event_runs(ids[1])] == [first.id]
    assert await world.engine.run_batch(second.id) is not None
    again = await world.engine.rerun(first.id)
    await world.rest()
    assert seen[-1] == [0, 1, 2]
    assert (await world.engine.get_run(again)).event_ids == ids[:3]  # type: ignore[union-attr]


async def test_an_open_batch_survives_restarts(world: World) -> None:
    seen: list[Any] = []
    world.recording("work", seen, batch_events=Batch(max_size=4, timeout=MINUTE))
    await world.open()
    await world.send("work", n=0)
    await world.restart(after=30 * SECOND)
    await world.send("work", n=1)
    await world.let_pass(seconds=29)
    assert seen == []
    await world.let_pass(seconds=1)
    assert seen == [[0, 1]]
    await world.send("work", n=2)
    await world.send("work", n=3)
    await world.restart(after=HOUR)
    await world.rest()
    assert seen == [[0, 1], [2, 3]]
    assert world.rows("buckets", "pending_events") == 0


async def test_singleton_skips_an_event_while_a_run_is_live(world: World) -> None:
    @world.function("work", singleton=Singleton(mode="skip", key="event.data.user"))
    async def work(ctx: Context) -> object:
        await ctx.step.sleep("nap", MINUTE)
        return ctx.event.data["n"]

    await world.open()
    for n, user in enumerate(["a", "a", "b"]):
        await world.send("work", n=n, user=user)
    await world.let_pass(seconds=30)
    await world.restart()
    await world.send("work", n=3, user="a")
    await world.let_pass(minutes=2)
    await world.send("work", n=4, user="a")
    await world.let_pass(minutes=2)
    done, skipped = RunStatus.COMPLETED, RunStatus.SKIPPED
    assert await world.statuses("work") == [done, skipped, done, skipped, done]
    reason = (await world.outputs("work"))[1]
    assert reason["name"] == "FunctionSkippedError"
    assert "singleton" in reason["message"]


async def test_singleton_cancels_the_live_run(world: World) -> None:
    @world.function("work", singleton=Singleton(mode="cancel"))
    async def work(ctx: Context) -> object:
        await ctx.step.sleep("nap", MINUTE)
        return ctx.event.data["n"]

    await world.open()
    for n in range(3):
        await world.send("work", n=n)
        await world.let_pass(seconds=30)
    await world.let_pass(minutes=2)
    assert await world.statuses("work") == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.COMPLETED]
    assert "singleton" in (await world.outputs("work"))[0]["message"]


async def test_singleton_can_start_its_next_run_itself(world: World) -> None:
    @world.function("work", singleton=Singleton(mode="cancel"))
    async def work(ctx: Context) -> object:
        if ctx.event.data["n"]:
            await ctx.step.invoke("again", function=work, data={"n": ctx.event.data["n"] - 1})
        return ctx.event.data["n"]

    await world.open()
    await world.send("work", n=2)
    await world.rest()
    assert await world.statuses("work") == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.COMPLETED]
    assert world.rows("buckets", "run_states", "waits") == 0


async def test_invoking_step_gets_the_reason_of_a_skipped_run(world: World) -> None:
    skipping = {
        "limited": {"rate_limit": RateLimit(limit=1, period=HOUR)},
        "once": {"idempotency": "event.data.n"},
        "single": {"singleton": Singleton(mode="skip")},
        "late": {"debounce": Debounce(period=10 * SECOND)},
    }
    targets = {}
    for name, options in skipping.items():

        @world.function(name, **options)
        async def target(ctx: Context) -> object:
            await ctx.step.sleep("nap", MINUTE)
            return ctx.event.data["n"]

        targets[name] = target

    @world.function("invoker")
    async def invoker(ctx: Context) -> object:
        target = targets[ctx.event.data["target"]]
        return await ctx.step.invoke("it", function=target, data={"n": 1})

    await world.open()
    for name in skipping:
        for _ in range(2):
            await world.send("invoker", target=name)
            await world.rest()
    await world.let_pass(minutes=2)
    runs, outputs = await world.runs("invoker"), await world.outputs("invoker")
    by_target = [
        (runs[index].status, runs[index + 1].status, outputs[index : index + 2]) for index in range(0, len(runs), 2)
    ]
    for first, second, (result, failure) in by_target[:3]:
        assert (first, second, result) == (RunStatus.COMPLETED, RunStatus.FAILED, 1)
        assert "no run of the function" in failure["message"]
    first, second, (failure, result) = by_target[3]
    assert (first, second, result) == (RunStatus.FAILED, RunStatus.COMPLETED, 1)
    assert "debounce" in failure["message"]


async def test_each_invoker_of_a_batch_gets_the_result(world: World) -> None:
    batched = world.recording("batched", [], batch_events=Batch(max_size=2, timeout=MINUTE))

    @world.function("invoker")
    async def invoker(ctx: Context) -> object:
        return await ctx.step.invoke("it", function=batched, data={"n": ctx.event.data["n"]})

    await world.open()
    for n in range(3):
        await world.send("invoker", n=n)
        await world.rest()  # or their invocations might come in another order
    await world.let_pass(minutes=2)
    assert await world.outputs("invoker") == [[0, 1], [0, 1], 2]
