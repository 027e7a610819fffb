"""Ends of a call with checkpoints: ops, errors, parallel steps, and the answer of each."""

import asyncio
from typing import Any

import pytest

from durably import (
    Checkpointing,
    Client,
    Context,
    ContextSync,
    Middleware,
    NonRetriableError,
    StepMemos,
    TransformOutputResult,
)

from .conftest import App, durable

BUFFERED = Checkpointing(buffered_steps=10)


async def test_a_sleep_ends_the_call(app: App) -> None:
    async def function(ctx: Context) -> str:
        await ctx.step.run("before", lambda: 1)
        await ctx.step.sleep("nap", 1)
        await ctx.step.run("after", lambda: 2)
        return "done"

    assert await app.run(durable(app, function)) == "done"
    assert app.ops() == [[("Sleep", "nap")]]
    assert app.gate.batches == [["before"], ["after"]]


async def test_buffered_steps_are_stored_before_a_sleep(app: App) -> None:
    """An official server takes several ops of one answer for parallel branches."""

    async def function(ctx: Context) -> str:
        await ctx.step.run("a", lambda: 1)
        await ctx.step.run("b", lambda: 1)
        await ctx.step.sleep("nap", 1)
        return "done"

    assert await app.run(durable(app, function, checkpointing=BUFFERED)) == "done"
    assert app.gate.batches == [["a", "b"]]
    assert app.ops() == [[("Sleep", "nap")]]


@pytest.mark.parametrize("buffered", [1, 10])
async def test_an_error_is_tried_again_by_itself(app: App, buffered: int) -> None:
    ran: list[str] = []
    attempts: list[tuple[str, int]] = []

    async def function(ctx: Context) -> str:
        for name in ("a", "b", "c"):
            attempts.append((name, ctx.attempt))
            await ctx.step.run(name, work, name)
        return "done"

    def work(name: str) -> None:
        ran.append(name)
        if name == "b" and ran.count("b") < 3:
            raise ValueError("not yet")

    function_ = durable(app, function, retries=2, checkpointing=Checkpointing(buffered_steps=buffered))
    assert await app.run(function_) == "done"
    assert ran == ["a", "b", "b", "b", "c"]
    assert app.gate.batches[0] == ["a"]
    assert app.ops()[:2] == [[("StepError", "b")], [("StepError", "b")]]
    assert attempts[-1] == ("c", 0)


async def test_each_step_has_all_its_attempts(app: App) -> None:
    """Also one that follows a step which used all of its own up but one."""
    ran: list[str] = []

    async def function(ctx: Context) -> str:
        await ctx.step.run("a", fails_once, "a")
        await ctx.step.run("b", fails_once, "b")
        await ctx.step.run("c", fails_once, "c")
        return "done"

    def fails_once(name: str) -> None:
        ran.append(name)
        if ran.count(name) == 1:
            raise ValueError("not yet")

    assert await app.run(durable(app, function, retries=1)) == "done"
    assert ran == ["a", "a", "b", "b", "c", "c"]


async def test_an_error_of_the_function_keeps_the_steps_before_it(app: App) -> None:
    ran: list[str] = []

    async def function(ctx: Context) -> str:
        await ctx.step.run("a", ran.append, "a")
        await ctx.step.run("b", ran.append, "b")
        if len(app.calls) == 1:
            raise ValueError("not yet")
        return "done"

    assert await app.run(durable(app, function, checkpointing=BUFFERED)) == "done"
    assert ran == ["a", "b"]
    assert app.gate.batches == [["a", "b"]]


async def test_an_error_for_good_can_be_caught(app: App) -> None:
    async def function(ctx: Context) -> str:
        await ctx.step.run("a", lambda: 1)
        try:
            await ctx.step.run("b", fails)
        except Exception as error:
            await ctx.step.run("c", lambda: 1)
            return str(error)
        return "worked"

    def fails() -> None:
        raise NonRetriableError("never")

    assert await app.run(durable(app, function)) == "never"
    assert app.ops() == [[("StepFailed", "b")]]
    assert app.gate.batches == [["a"], ["c"]]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("config", [True, BUFFERED])
async def test_parallel_steps_are_planned_and_the_function_continues_after_them(
    app: App, is_async: bool, config: Any
) -> None:
    ran: list[str] = []

    async def in_async(ctx: Context) -> int:
        await ctx.step.run("before", ran.append, "before")
        await ctx.group.parallel([lambda name=name: ctx.step.run(name, ran.extend, [name]) for name in "abc"])
        await ctx.step.run("after", ran.append, "after")
        await ctx.step.run("last", ran.append, "last")
        return len(ran)

    def in_sync(ctx: ContextSync) -> int:
        ctx.step.run("before", ran.append, "before")
        ctx.group.parallel([lambda name=name: ctx.step.run(name, ran.extend, [name]) for name in "abc"])
        ctx.step.run("after", ran.append, "after")
        ctx.step.run("last", ran.append, "last")
        return len(ran)

    assert await app.run(durable(app, in_async if is_async else in_sync, checkpointing=config)) == 6
    assert sorted(ran) == ["a", "after", "b", "before", "c", "last"]
    assert [sorted(ops) for ops in app.ops() if len(ops) == 3 and config is True] == [
        [("StepPlanned", name) for name in "abc"]
    ] * (config is True)
    assert len(app.discoveries) == 2
    assert app.gate.batches[0] == ["before"]


async def test_race_continues_while_its_loser_is_executing(app: App) -> None:
    async def function(ctx: Context) -> Any:
        await ctx.step.run("before", lambda: 1)
        loser = asyncio.create_task(ctx.step.wait_for_event("never", event="never", timeout=1000 * 60))
        winner = asyncio.create_task(ctx.step.run("winner", lambda: "won"))
        done, _ = await asyncio.wait([loser, winner], return_when=asyncio.FIRST_COMPLETED)
        names = [await ctx.step.run(f"after {number}", lambda number: number, number) for number in range(3)]
        return [done.pop().result(), names]

    assert await app.run(durable(app, function)) == ["won", [0, 1, 2]]


async def test_middleware_runs_once_for_the_call_and_once_for_each_step(app: App) -> None:
    log: list[str] = []

    class Logging(Middleware):
        async def transform_input(self, ctx: Any, function: Any, steps: StepMemos) -> None:
            log.append("transform_input")

        async def after_memoization(self) -> None:
            log.append("after_memoization")

        async def before_execution(self) -> None:
            log.append("before_execution")

        async def after_execution(self) -> None:
            log.append("after_execution")

        async def transform_output(self, result: TransformOutputResult) -> None:
            log.append(f"transform_output {result.step.id if result.step else 'of the function'}")

        async def before_response(self) -> None:
            log.append("before_response")

    async def function(ctx: Context) -> str:
        await ctx.step.run("a", lambda: 1)
        await ctx.step.run("b", lambda: 1)
        return "done"

    assert await app.run(durable(app, function, middleware=[Logging])) == "done"
    assert log == [
        "transform_input",
        "after_memoization",
        *("before_execution", "after_execution", "transform_output a"),
        *("before_execution", "after_execution", "transform_output b"),
        *("before_execution", "after_execution", "transform_output of the function"),
        "before_response",
    ]


async def test_the_client_sets_it_for_all_functions(app: App) -> None:
    app.client = Client(app_id="app", is_production=False, api_base_url=app.gate.url, checkpointing=True)

    async def function(ctx: Context) -> None:
        await ctx.step.run("a", lambda: 1)
        await ctx.step.run("b", lambda: 1)

    await app.run(durable(app, function, checkpointing=None))
    assert (len(app.calls), len(app.gate.checkpoints)) == (1, 2)
    await app.run(durable(app, function, checkpointing=False, fn_id="other"))
    assert (len(app.calls), len(app.gate.checkpoints)) == (4, 2)
