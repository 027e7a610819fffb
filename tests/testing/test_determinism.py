"""The check of determinism: what it finds, how it says so, and that it leaves sound functions alone."""

import asyncio
import datetime as dt
import random
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

import durably
from durably.testing import NotDeterministicError, TestEngine, check_determinism

from .shop import DAY, client, onboard, race

EVENT = durably.TriggerEvent(event="go")
GO = durably.Event(name="go")
FRUITS = [f"fruit {number}" for number in range(20)]


def make(**opts: Any) -> Any:
    return client.create_function(fn_id="checked", trigger=EVENT, **opts)


async def diverges(function: durably.Function[Any]) -> str:
    with pytest.raises(NotDeterministicError) as caught:
        await check_determinism(client, function, GO)
    return str(caught.value)


@make()
async def random_id(ctx: durably.Context) -> None:
    await ctx.step.run("first", lambda: None)
    await ctx.step.run(f"step-{uuid.uuid4()}", lambda: None)


@make()
async def random_branch(ctx: durably.Context) -> None:
    if random.random() < 0.5:
        await ctx.step.run("heads", lambda: None)
    else:
        await ctx.step.run("tails", lambda: None)


@make()
def by_the_hour(ctx: durably.ContextSync) -> None:
    if dt.datetime.now(dt.UTC).hour < 12:
        ctx.step.run("good-morning", lambda: None)
    ctx.step.run("after", lambda: None)


@make()
async def by_the_second(ctx: durably.Context) -> None:
    await ctx.step.run("begin", lambda: None)
    await ctx.step.run(f"after-{int(time.time()) // 3600}", lambda: None)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (
            random_id,
            [
                "function 'shop-checked' is not deterministic.\n  With the memos of 1 step ('first'),\n",
                "called again with the same memos, it found step 'step-",
                'await ctx.step.run("choose", random.choice, candidates)',
            ],
        ),
        (random_branch, ["With no memo yet", "it found step 'heads'", "it found step 'tails'"]),
        (by_the_hour, ["does the function read the clock?", "The second call was made 12:00:00 later"]),
        (by_the_second, ["does the function read the clock?", "The second call was made 12:00:00 later"]),
    ],
)
async def test_chance_and_the_time_are_found(function: durably.Function[Any], parts: list[str]) -> None:
    random.seed(1)
    message = await diverges(function)
    assert [part for part in parts if part not in message] == []


async def test_a_step_that_is_not_found_again() -> None:
    calls = 0

    @make()
    async def forgetful(ctx: durably.Context) -> str:
        nonlocal calls
        calls += 1
        await ctx.step.run("always", lambda: None)
        if calls < 4:
            await ctx.step.run("at-first", lambda: None)
        return "done"

    message = await diverges(forgetful)
    assert "the run had step 'at-first' next" in message
    assert "it found that it returned" in message
    assert "has the code changed since?" in message


async def test_a_step_that_is_new() -> None:
    calls = 0

    @make()
    async def growing(ctx: durably.Context) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            await ctx.step.run("later", lambda: None)

    message = await diverges(growing)
    assert "the run returned;\n    it found step 'later'" in message


async def test_another_branch_after_a_race_that_depends_on_chance() -> None:
    @make()
    async def racing(ctx: durably.Context) -> None:
        async def branch(name: str) -> str:
            return await ctx.step.run(name, lambda: name)

        tasks = [asyncio.create_task(branch(name)) for name in "ab"]
        first = next(asyncio.as_completed(tasks))
        if await first == "b":  # which the run itself never saw
            await ctx.step.run(f"b-{random.random()}", lambda: None)
        await asyncio.gather(*tasks)

    message = await diverges(racing)
    assert "With the memos of 1 step ('b')" in message


@make()
async def fixed(ctx: durably.Context) -> str:
    fruits: Sequence[str] = await ctx.step.run("choose", random.sample, FRUITS, 3)
    now = await ctx.step.run("now", time.time)
    for fruit in fruits:
        await ctx.step.run(fruit, lambda: None)
    await asyncio.gather(*(ctx.step.run(f"peel-{fruit}", lambda: None) for fruit in fruits))
    try:
        await ctx.step.run("fail", lambda: 1 / 0)
    except durably.StepError:
        await ctx.step.sleep("rest", DAY)
    return f"{now} {uuid.uuid4()}"


async def test_a_sound_function_passes(recwarn: pytest.WarningsRecorder) -> None:
    await check_determinism(client, fixed, GO)
    await check_determinism(client, race, durably.Event(name="race/started"))
    assert [str(warning.message) for warning in recwarn] == []


async def test_failed_cancelled_and_live_runs_pass() -> None:
    @make(retries=0)
    async def failing(ctx: durably.Context) -> None:
        await ctx.step.run("fail", lambda: 1 / 0)

    async with TestEngine(client, [failing, onboard]) as engine:
        sign_up = durably.Event(name="user/signed.up", data={"email": "ada@example.com"})
        failed, cancelled, waiting = await engine.send([GO, sign_up, sign_up])
        await cancelled.cancel()
        for run in (failed, cancelled, waiting):
            await engine.check_determinism(run)


async def test_no_step_is_executed_by_the_check() -> None:
    executed = 0

    def execute() -> None:
        nonlocal executed
        executed += 1

    @make()
    async def counting(ctx: durably.Context) -> None:
        await ctx.step.run("one", execute)
        await asyncio.gather(ctx.step.run("two", execute), ctx.step.run("three", execute))

    await check_determinism(client, counting, GO)
    assert executed == 3


async def test_steps_may_be_mocked() -> None:
    @make()
    async def waiting(ctx: durably.Context) -> str:
        event = await ctx.step.wait_for_event("wait", event="come", timeout=DAY)
        assert event is not None
        return str(event.data["n"])

    await check_determinism(client, waiting, GO, mocks={"wait": durably.Event(name="come", data={"n": 1})})


def test_in_the_sync_flavour() -> None:
    with TestEngine(client, [by_the_hour]).sync() as engine:
        run = engine.send(GO)
        with pytest.raises(NotDeterministicError, match="good-morning"):
            engine.check_determinism(run)
