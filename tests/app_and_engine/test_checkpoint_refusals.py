"""Engines that do not take checkpoints, or not this one: no step is lost, and none is executed twice."""

import asyncio
import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest

from durably import Checkpointing, Context, ContextSync, Function
from durably.protocol.call import CheckpointRequest

from .conftest import App, durable


def counting(app: App, *, is_async: bool = True, **options: Any) -> tuple[Function[Any], Counter[str]]:
    """A function of four steps, and how often each was executed."""
    ran: Counter[str] = Counter()

    def work(name: str) -> str:
        ran[name] += 1
        return name

    async def in_async(ctx: Context) -> list[str]:
        return [await ctx.step.run(name, work, name) for name in "abcd"]

    def in_sync(ctx: ContextSync) -> list[str]:
        return [ctx.step.run(name, work, name) for name in "abcd"]

    return durable(app, in_async if is_async else in_sync, **options), ran


ONCE = {"a": 1, "b": 1, "c": 1, "d": 1}
KINDS = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


@KINDS
@pytest.mark.parametrize("status", [400, 413, 500, 503])
async def test_a_refusal_sends_the_step_in_the_answer(app: App, is_async: bool, status: int) -> None:
    app.gate.answer = lambda request: status if request.steps[0].display_name == "b" else None
    function, ran = counting(app, is_async=is_async)
    assert await app.run(function) == ["a", "b", "c", "d"]
    assert ran == ONCE
    assert app.ops() == [[("StepRun", "b")]]
    assert len(app.calls) == 2


@KINDS
async def test_all_of_a_buffer_goes_into_the_answer(app: App, is_async: bool) -> None:
    app.gate.answer = lambda request: 500
    function, ran = counting(app, is_async=is_async, checkpointing=Checkpointing(buffered_steps=2))
    assert await app.run(function) == ["a", "b", "c", "d"]
    assert ran == ONCE
    assert app.ops() == [[("StepRun", "a"), ("StepRun", "b")], [("StepRun", "c"), ("StepRun", "d")]]


async def test_an_engine_without_checkpoints_is_asked_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.gate.answer = lambda request: 404
    function, ran = counting(app)
    assert await app.run(function) == ["a", "b", "c", "d"]
    assert ran == ONCE
    assert len(app.gate.checkpoints) == 1
    assert len(app.calls) == 5
    monkeypatch.setattr("durably.functions.checkpoints._ABSENCE_SECONDS", 0.0)
    app.gate.answer = lambda request: 404 if len(app.gate.checkpoints) == 2 else None
    await app.run(function)  # a handler of its own, which asks again
    assert len(app.gate.checkpoints) > 2


async def test_unreachable_engine_loses_no_step(app: App) -> None:
    own, away = app.client.origins, "http://127.0.0.1:9"
    app.client.origins = dataclasses.replace(own, api=away)
    function, ran = counting(app)
    app.serve(function)
    app.client.origins = dataclasses.replace(own, api=app.gate.url)
    run_id = await app.start(function)
    app.client.origins = dataclasses.replace(own, api=away)
    assert (await app.ended(run_id)).status == "Completed"
    assert ran == ONCE


@KINDS
@pytest.mark.parametrize("buffered", [1, 2])
async def test_a_stale_call_stops(app: App, caplog: pytest.LogCaptureFixture, is_async: bool, buffered: int) -> None:
    """Nothing further is executed, and what it says is not counted; here the engine only feigns, so it calls again."""
    app.gate.answer = lambda request: 409 if len(app.gate.checkpoints) == 1 else None
    function, ran = counting(app, is_async=is_async, checkpointing=Checkpointing(buffered_steps=buffered))
    with caplog.at_level(logging.ERROR, "durably"):
        assert await app.run(function) == ["a", "b", "c", "d"]
    assert ran == {name: 2 if "abcd".index(name) < buffered else 1 for name in "abcd"}
    assert app.answers[0][0] == 500
    assert app.answers[0][1]["code"] == "call_stale"
    assert caplog.records == []


@pytest.mark.parametrize("status", [409, 500])
async def test_a_buffer_refused_between_steps_ends_the_call_before_the_next(app: App, status: int) -> None:
    """Its interval was over while the function did something of its own."""
    ran: list[str] = []
    asked, refused = asyncio.Event(), asyncio.Event()

    async def function(ctx: Context) -> None:
        await ctx.step.run("a", ran.append, "a")
        if len(app.calls) == 1:
            await refused.wait()
        await ctx.step.run("b", ran.append, "b")

    def answer(request: CheckpointRequest) -> int | None:
        asked.set()
        return status if len(app.gate.checkpoints) == 1 else None

    app.gate.answer = answer
    config = Checkpointing(buffered_steps=10, interval=5)
    function_ = durable(app, function, checkpointing=config)
    run_id = await app.start(function_)
    await asked.wait()
    committing = [task for task in asyncio.all_tasks() if "_commit_after" in repr(task)]
    await asyncio.gather(*committing)  # until they have read the answer
    refused.set()
    await app.ended(run_id)
    assert ran == (["a", "a", "b"] if status == 409 else ["a", "b"])
    assert app.answers[0][0] == (500 if status == 409 else 206)


async def test_a_lost_acknowledgement_changes_nothing(app: App) -> None:
    """The engine has stored the step, and gets it once more with the answer."""

    async def lose(request: CheckpointRequest) -> None:
        raise RuntimeError("the connection breaks")

    app.gate.after = lose
    function, ran = counting(app)
    assert await app.run(function) == ["a", "b", "c", "d"]
    assert ran == ONCE


async def test_a_cancelled_run_stops_its_call(app: App) -> None:
    async def cancel(request: CheckpointRequest) -> None:
        app.gate.after = None
        await app.engine.engine.cancel_run(request.run_id)

    app.gate.after = cancel
    function, ran = counting(app)
    run = await app.run_to_end(function)
    assert run.status == "Cancelled"
    await app.engine.close()  # the call has ended then
    assert ran == {"a": 1, "b": 1}
