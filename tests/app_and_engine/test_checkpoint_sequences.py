"""Steps one after another: how often the app is called, what is handed over when, and what the function sees."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from durably import Checkpointing, Context, ContextSync

from .conftest import App, durable

Handler = Callable[[Any], Any]


def sequence(count: int, is_async: bool) -> Handler:
    """A function of ``count`` steps. Each returns the tuple ``(number,)``."""

    async def async_steps(ctx: Context) -> Any:
        return [await ctx.step.run(f"step {number}", lambda number: (number,), number) for number in range(count)]

    def sync_steps(ctx: ContextSync) -> Any:
        return [ctx.step.run(f"step {number}", lambda number: (number,), number) for number in range(count)]

    return async_steps if is_async else sync_steps


KINDS = pytest.mark.parametrize(
    ("is_async", "is_blocking"),
    [(True, False), (False, False), (True, True), (False, True)],
    ids=["async", "sync", "async under WSGI", "sync under WSGI"],
)


@KINDS
async def test_one_call_and_one_checkpoint_a_step(app: App, is_async: bool, is_blocking: bool) -> None:
    app.is_blocking = is_blocking
    output = await app.run(durable(app, sequence(5, is_async)))
    assert output == [[0], [1], [2], [3], [4]]
    assert len(app.calls) == 1
    assert app.gate.batches == [[f"step {number}"] for number in range(5)]


@KINDS
async def test_a_buffer_is_handed_over_when_it_is_full(app: App, is_async: bool, is_blocking: bool) -> None:
    app.is_blocking = is_blocking
    await app.run(durable(app, sequence(8, is_async), checkpointing=Checkpointing(buffered_steps=3)))
    assert len(app.calls) == 1
    assert app.gate.batches == [["step 0", "step 1", "step 2"], ["step 3", "step 4", "step 5"]]
    assert app.ops() == [[("StepRun", "step 6"), ("StepRun", "step 7"), ("RunComplete", None)]]


@KINDS
async def test_a_buffer_is_handed_over_after_its_interval(app: App, is_async: bool, is_blocking: bool) -> None:
    """While the next step is still running: it waits until the first is stored."""
    app.is_blocking = is_blocking
    loop, stored = asyncio.get_running_loop(), asyncio.Event()

    async def note(_: object) -> None:
        stored.set()

    app.gate.after = note

    async def in_async(ctx: Context) -> str:
        await ctx.step.run("quick", lambda: 1)

        async def slow() -> str:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stored.wait(), loop))
            return "slow"

        return await ctx.step.run("slow", slow)

    def in_sync(ctx: ContextSync) -> str:
        ctx.step.run("quick", lambda: 1)
        return ctx.step.run(
            "slow", lambda: "slow" if asyncio.run_coroutine_threadsafe(stored.wait(), loop).result() else ""
        )

    handler = in_async if is_async else in_sync
    assert await app.run(durable(app, handler, checkpointing=Checkpointing(buffered_steps=100, interval=5))) == "slow"
    assert app.gate.batches[0] == ["quick"]
    assert len(app.calls) == 1


@pytest.mark.parametrize("is_async", [True, False])
async def test_call_ends_after_its_max_runtime_and_another_continues(app: App, is_async: bool) -> None:
    config = Checkpointing(max_runtime=1)  # over by the time the first step is stored
    output = await app.run(durable(app, sequence(4, is_async), checkpointing=config))
    assert output == [[0], [1], [2], [3]]
    assert 2 <= len(app.calls) <= 5
    assert all(ops == [("DiscoveryRequest", None)] for ops in app.ops())
    assert len(app.gate.checkpoints) == 4


@pytest.mark.slow
async def test_a_thousand_steps_are_one_call_and_each_is_sent_once(app: App) -> None:
    assert len(await app.run(durable(app, sequence(1000, is_async=True)))) == 1000
    assert len(app.calls) == 1
    assert [len(batch) for batch in app.gate.batches] == [1] * 1000


async def test_without_checkpointing_each_step_ends_its_call(app: App) -> None:
    await app.run(durable(app, sequence(3, is_async=True), checkpointing=None))
    assert len(app.calls) == 4
    assert app.gate.checkpoints == []


async def test_a_large_output_goes_into_the_answer(app: App) -> None:
    """413, since no checkpoint may be so large; in the answer the step fails, as it does without checkpoints."""

    async def function(ctx: Context) -> str:
        await ctx.step.run("small", lambda: "s")
        try:
            await ctx.step.run("large", lambda: "x" * (4 * 1024 * 1024))
        except Exception as error:
            return str(error)
        return "fits"

    assert "at most 4194304 are allowed" in await app.run(durable(app, function))
    assert app.gate.batches == [["small"], ["large"]]


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_streamed_answer_too(
    app: App, is_async: bool, is_streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLY_STREAMING", "force" if is_streaming else "disable")
    assert len(await app.run(durable(app, sequence(3, is_async)))) == 3
    assert len(app.calls) == 1


async def test_sync_has_the_checkpointing_option(app: App) -> None:
    config = Checkpointing(buffered_steps=3, interval=2000, max_runtime=60_000)
    functions = [
        durable(app, sequence(1, is_async=True), fn_id="a", checkpointing=config),
        durable(app, sequence(1, is_async=True), fn_id="b"),
        durable(app, sequence(1, is_async=True), fn_id="c", checkpointing=False),
    ]
    wires = [function.configs("http://x")[0].get("checkpoint") for function in functions]
    assert wires == [{"batch_steps": 3, "batch_interval": "2s", "max_runtime": "1m"}, {"batch_steps": 1}, None]
