"""Durations as users write them: text, ``timedelta``, milliseconds."""

import datetime as dt
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.testing import TestEngine

from .engine import engine_for, named

SAME: list[Any] = ["1h30m", dt.timedelta(hours=1, minutes=30), 5_400_000]


@pytest.mark.parametrize("duration", SAME)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_steps_take_every_form(kind: str, duration: Any) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.sleep("nap", duration)
        await ctx.step.wait_for_event("event", event="e", timeout=duration)
        await ctx.step.wait_for_signal("signal", signal="s", timeout=duration)
        await ctx.step.invoke_by_id("invoke", function_id="f", timeout=duration)
        async with ctx.group.timeout("deadline", duration):
            await ctx.step.run("a", str)

    def function_sync(ctx: ContextSync) -> None:
        ctx.step.sleep("nap", duration)
        ctx.step.wait_for_event("event", event="e", timeout=duration)
        ctx.step.wait_for_signal("signal", signal="s", timeout=duration)
        ctx.step.invoke_by_id("invoke", function_id="f", timeout=duration)

    run = await engine_for(function if kind == "async" else function_sync, replies={"invoke": {"data": 1}}).run(
        pick=named("a")
    )
    assert run.status == "Completed", run.output
    ops = [op for answer in run.answers if answer.status == 206 for op in answer.ops if op["op"] != "StepRun"]
    reported = {op["opts"].get("duration") or op["opts"].get("timeout") for op in ops if op["op"] != "StepPlanned"}
    assert reported == {"90m"}


@pytest.mark.parametrize("duration", SAME)
def test_options_take_every_form(duration: Any) -> None:
    client = Client(app_id="app", is_production=False, request_timeout=duration)
    assert client.request_timeout == 5400
    wire = [
        durably.Debounce(period=duration),
        durably.Throttle(limit=1, period=duration),
        durably.RateLimit(limit=1, period=duration),
        durably.Timeouts(start=duration, finish=duration),
        durably.Batch(max_size=2, timeout=duration),
        durably.Cancel(event="e", timeout=duration),
        durably.Checkpointing(interval=duration, max_runtime=duration),
    ]
    for option in wire:
        assert "90m" in option.to_wire().values(), option


@pytest.mark.parametrize("day", ["1d", dt.timedelta(days=1), 86_400_000])
async def test_the_test_engine_takes_every_form(day: Any) -> None:
    client = Client(app_id="app", is_production=False)

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="e"))
    async def function(ctx: Context) -> None:
        await ctx.step.sleep("nap", "2d")

    TestEngine(client, [function], retention="30d")
    async with TestEngine(client, [function]) as engine:
        run = await engine.send(Event(name="e"))
        start = engine.now
        await engine.advance(day)
        assert engine.now - start == dt.timedelta(days=1)
        assert run.status == "Running"
        await engine.advance("12h", hours=12)
        run.assert_completed()
        await engine.run_until_idle(day)
