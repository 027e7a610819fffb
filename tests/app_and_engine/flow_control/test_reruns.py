"""Running again: one run from its start or from a step, many at once; and functions that pause."""

import datetime as dt
from collections import Counter
from typing import Any

import pytest

from durably import Batch, Concurrency, Context, Debounce, Singleton
from durably.engine.model.runs import FromStep, RunStatus
from durably.protocol.engine_errors import (
    FunctionPausedError,
    StepNotFoundError,
)

from .conftest import START, World

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)


def three_steps(world: World, executed: Counter[str], **options: Any) -> None:
    """A function of three steps. The last one fails if the event says so."""

    def execute(step: str, value: int) -> int:
        executed[step] += 1
        if step == "three" and value > 100:
            raise ValueError("too much")
        return value

    @world.function("work", **options)
    async def work(ctx: Context) -> object:
        one = await ctx.step.run("one", execute, "one", ctx.event.data["n"])
        two = await ctx.step.run("two", execute, "two", one + 1)
        await ctx.step.sleep("nap", MINUTE)
        return await ctx.step.run("three", execute, "three", two + 1)


async def test_a_run_is_run_again_from_a_step(world: World) -> None:
    executed: Counter[str] = Counter()
    three_steps(world, executed)
    await world.open()
    await world.send("work", n=1)
    await world.let_pass(minutes=2)
    (run,) = await world.runs("work")
    again = await world.engine.rerun(run.id, from_step=FromStep("two"))
    await world.rest()
    await world.restart()
    await world.let_pass(minutes=2)
    assert executed == {"one": 1, "two": 2, "three": 2}
    _, second = await world.runs("work")
    assert (second.id, second.rerun_of, second.status) == (again, run.id, RunStatus.COMPLETED)
    assert [step.id for step in await world.engine.run_steps(again)] == ["one", "two", "nap", "three"]


async def test_rerun_from_unfinished_step_is_refused(world: World) -> None:
    three_steps(world, Counter())
    await world.open()
    await world.send("work", n=1)
    await world.rest()
    (run,) = await world.runs("work")
    with pytest.raises(StepNotFoundError, match=r"no finished step 'four': it has 'one', 'two'"):
        await world.engine.rerun(run.id, from_step=FromStep("four"))


async def test_parallel_steps_before_the_step_are_kept(world: World) -> None:
    executed: Counter[str] = Counter()

    def execute(name: str) -> str:
        executed[name] += 1
        return name

    @world.function("work")
    async def work(ctx: Context) -> object:
        pair = await ctx.group.parallel(
            (lambda: ctx.step.run("a", execute, "a"), lambda: ctx.step.run("b", execute, "b"))
        )
        return [*pair, await ctx.step.run("c", execute, "c")]

    await world.open()
    await world.send("work")
    await world.rest()
    (run,) = await world.runs("work")
    await world.engine.rerun(run.id, from_step=FromStep("c"))
    await world.rest()
    assert executed == {"a": 1, "b": 1, "c": 2}
    assert (await world.outputs("work"))[1] == ["a", "b", "c"]


async def test_a_rerun_goes_by_concurrency_and_singleton(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)], singleton=Singleton(mode="skip"))
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    (run,) = await world.runs("work")
    await world.engine.rerun(run.id)
    assert await world.statuses("work") == [RunStatus.RUNNING, RunStatus.SKIPPED]
    world.limit.open()
    await world.rest()
    await world.engine.rerun(run.id)
    await world.rest()
    assert (await world.statuses("work"))[2] is RunStatus.COMPLETED


# many at once


async def test_failed_runs_are_replayed_in_bulk(world: World) -> None:
    is_broken = True

    @world.function("work")
    async def work(ctx: Context) -> object:
        if is_broken and ctx.event.data["n"] % 2:
            raise ValueError("broken")
        return ctx.event.data["n"]

    await world.open()
    for n in range(6):
        await world.send("work", n=n)
        await world.let_pass(minutes=1)
    is_broken = False
    await world.engine.replay_runs(
        "shop-work", started_after=START + MINUTE, started_before=START + HOUR, if_exp="event.data.n != 3"
    )
    await world.restart()
    await world.rest()
    runs = await world.runs("work")
    assert [run.rerun_of for run in runs[6:]] == [runs[1].id, runs[5].id]
    assert (await world.outputs("work"))[6:] == [1, 5]
    (replay,) = await world.engine.list_replays()
    assert (replay.affected, replay.ended_at is not None) == (2, True)


@pytest.mark.slow
async def test_very_many_runs_are_replayed_once_each_and_cancelled_over_restarts(world: World) -> None:
    @world.function("work")
    async def work(ctx: Context) -> None:
        if is_replaying:
            await ctx.step.sleep("nap", HOUR)

    is_replaying = False
    await world.open()
    for n in range(450):
        await world.send("work", n=n)
    await world.rest()
    is_replaying = True
    await world.engine.replay_runs("shop-work", statuses=[RunStatus.COMPLETED], started_before=START + HOUR)
    await world.restart()
    await world.rest()
    assert [replay.affected for replay in await world.engine.list_replays()] == [450]
    await world.engine.cancel_runs(function_id="shop-work", started_before=START + HOUR)
    await world.restart()
    await world.rest()
    assert [operation.affected for operation in await world.engine.list_cancellations()] == [450]
    assert world.rows("runs") == 900


# pausing


async def test_paused_function_starts_nothing_and_its_runs_continue(world: World) -> None:
    @world.function("work", concurrency=[Concurrency(limit=1)])
    async def work(ctx: Context) -> object:
        await ctx.step.sleep("nap", MINUTE)
        return ctx.event.data["n"]

    @world.function("invoker")
    async def invoker(ctx: Context) -> object:
        return await ctx.step.invoke("it", function=work, data={"n": 3})

    await world.open()
    await world.send("work", n=1)
    await world.rest()
    await world.engine.pause_function("shop-work")
    assert [function.is_paused for function in await world.engine.list_functions()] == [True, False]
    await world.restart()
    await world.send("work", n=2)
    await world.send("invoker")
    await world.let_pass(minutes=2)
    skipped = RunStatus.SKIPPED
    assert await world.statuses("work") == [RunStatus.COMPLETED, skipped, skipped]
    assert "paused" in (await world.outputs("invoker"))[0]["message"]
    (run, *_) = await world.runs("work")
    with pytest.raises(FunctionPausedError):
        await world.engine.rerun(run.id)
    await world.engine.resume_function("shop-work")
    await world.send("work", n=4)
    await world.engine.replay_runs(
        "shop-work", statuses=[skipped], started_before=START + HOUR, if_exp="event.name == 'work'"
    )
    await world.let_pass(minutes=3)
    assert sorted(run for run in await world.outputs("work") if isinstance(run, int)) == [1, 2, 4]


async def test_a_replay_waits_while_its_function_is_paused(world: World) -> None:
    world.recording("work", [])
    await world.open()
    for n in range(201):
        await world.send("work", n=n)
    await world.rest()
    await world.engine.replay_runs("shop-work", statuses=[RunStatus.COMPLETED], started_before=START + HOUR)
    await world.engine.pause_function("shop-work")
    await world.rest()
    assert world.rows("runs") < 402
    await world.engine.resume_function("shop-work")
    await world.rest()
    assert world.rows("runs") == 402


async def test_debounced_and_batched_events_are_skipped_while_paused(world: World) -> None:
    world.recording("late", [], debounce=Debounce(period=dt.timedelta(seconds=10)))
    world.recording("batched", [], batch_events=Batch(max_size=9, timeout=dt.timedelta(seconds=10)))
    await world.open()
    for name in ("late", "batched"):
        for n in range(2):
            await world.send(name, n=n)
        await world.engine.pause_function(f"shop-{name}")
    await world.let_pass(minutes=1)
    for name, events in (("late", 1), ("batched", 2)):
        (run,) = await world.runs(name)
        assert (run.status, len(run.event_ids)) == (RunStatus.SKIPPED, events)
        await world.engine.resume_function(f"shop-{name}")
        await world.engine.rerun(run.id)
    await world.rest()
    assert (await world.outputs("late"))[1] == 1
    assert (await world.outputs("batched"))[1] == [0, 1]
