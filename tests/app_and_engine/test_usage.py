"""Usage of models: recorded in steps, stored and summed by the engine."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, TriggerEvent, ai
from durably.engine.model.runs import ModelUsage
from durably.protocol.call import CheckpointRequest
from durably.protocol.usage import read_answer_usage, read_usage_metadata, usage_metadata
from durably.testing import TestEngine

from .conftest import App, durable

client = Client(app_id="agents", is_production=False)
GO = TriggerEvent(event="go")


def spend(model: str, tokens: int) -> str:
    ai.record_usage(model=model, input_tokens=tokens, output_tokens=tokens * 10)
    return threading.current_thread().name


async def think(model: str, tokens: int) -> None:
    await asyncio.to_thread(spend, model, tokens)
    await asyncio.create_task(asyncio.to_thread(spend, "small", 1))


@client.create_function(fn_id="agent", trigger=GO, retries=2)
async def agent(ctx: Context) -> str:
    async def stumble() -> None:
        await think("large", 100)
        if ctx.attempt == 0:
            raise ValueError("no")

    await ctx.step.run("think", stumble)
    await ctx.step.run("free", lambda: None)
    await asyncio.gather(*(ctx.step.run(f"branch {number}", spend, "large", number) for number in (1, 2)))
    return await ctx.step.run("sync", spend, "small", 3)


@client.create_function(fn_id="sync-agent", trigger=GO, retries=0)
def sync_agent(ctx: ContextSync) -> str:
    def fail() -> None:
        spend("large", 5)
        raise ValueError("no")

    ctx.step.run("sync", spend, "small", 3)
    ctx.step.run("unknown", lambda: ai.record_usage(model="small", input_tokens=None))
    ctx.step.run("failing", fail)
    return "never"


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_usage_is_summed_over_steps_and_attempts(checkpointing: bool) -> None:
    async with TestEngine(client, [agent, sync_agent], checkpointing=checkpointing) as engine:
        await engine.send(durably.Event(name="go"))
        await engine.advance("1h")
        [run], [failed] = engine.runs(agent), engine.runs(sync_agent)
        assert run.status == "Completed"
        assert failed.status == "Failed"
        assert run.usage == [ModelUsage("large", 203, 2030), ModelUsage("small", 5, 50)]
        assert failed.usage == [ModelUsage("large", 5, 50), ModelUsage("small", 3, 30)]
        steps = {step_id: step.usage for step_id, step in run.steps.items()}
        assert steps["think"] == [ModelUsage("large", 200, 2000), ModelUsage("small", 2, 20)]
        assert (steps["free"], steps["branch 2"], steps["sync"]) == (
            [],
            [ModelUsage("large", 2, 20)],
            [ModelUsage("small", 3, 30)],
        )
        again = await engine.rerun(run)
        await again.wait()
        assert again.usage == run.usage


async def test_usage_over_http_counts_once_if_a_checkpoint_is_repeated(app: App) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("one", spend, "large", 1)
        await ctx.step.run("two", spend, "large", 10)

    async def lose_answer(checkpoint: CheckpointRequest) -> None:
        app.gate.after = None
        raise ConnectionResetError("the app does not learn that the engine has stored the step")

    app.gate.after = lose_answer
    run = await app.run_to_end(durable(app, function))
    assert (run.status, run.usage) == ("Completed", [ModelUsage("large", 11, 110)])
    assert [op["metadata"][0]["values"]["input_tokens"] for _, ops in app.answers[:1] for op in ops] == [1]


async def test_record_usage_outside_of_a_running_step_is_an_error() -> None:
    seen: list[str] = []

    @client.create_function(fn_id="careless", trigger=GO, retries=0)
    async def careless(ctx: Context) -> None:
        def lost() -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(spend, "large", 1).result()

        async def late() -> None:
            await over.wait()
            with pytest.raises(
                durably.errors.FunctionConfigInvalidError, match='after step "early" had ended'
            ) as error:
                spend("large", 1)
            seen.append(str(error.value))

        async def early() -> None:
            tasks.append(asyncio.get_running_loop().create_task(late()))

        over, tasks = asyncio.Event(), list[asyncio.Task[None]]()
        await ctx.step.run("early", early)
        over.set()
        with pytest.raises(durably.StepError, match="outside of a step"):
            await ctx.step.run("lost", lost)
        seen.append("lost")
        spend("large", 1)

    async with TestEngine(client, [careless], checkpointing=True) as engine:
        run = await engine.send(durably.Event(name="go"))
        await engine.advance("1h")
        run.assert_failed(message="outside of a step")
        assert "lost" in seen
        assert run.usage == []


class Answer:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"model": "gpt", "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}, ("gpt", 1, 2)),
        ({"model": "embed", "usage": {"prompt_tokens": 1, "total_tokens": 1}}, ("embed", 1, 0)),
        (
            {
                "model": "gpt",
                "usage": {"input_tokens": 4, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 2},
            },
            ("gpt", 4, 2),
        ),
        (
            Answer(
                model="claude",
                usage=Answer(
                    input_tokens=1, cache_creation_input_tokens=20, cache_read_input_tokens=300, output_tokens=2
                ),
            ),
            ("claude", 321, 2),
        ),
        (
            {
                "modelVersion": "gemini",
                "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, "thoughtsTokenCount": 30},
            },
            ("gemini", 1, 32),
        ),
        (
            Answer(
                model_version=None,
                usage_metadata=Answer(prompt_token_count=1, candidates_token_count=None, thoughts_token_count=3),
            ),
            ("asked", 1, 3),
        ),
        ({"usage": {"seconds": 3}}, None),
        ({"usage": {"prompt_tokens": 10**15, "completion_tokens": -1}}, None),
        ({"usage": {"prompt_tokens": "many"}}, None),
        ([1], None),
        (None, None),
    ],
)
def test_usage_in_answers_of_providers(answer: Any, usage: tuple[str, int, int] | None) -> None:
    assert read_answer_usage(answer, "asked") == (None if usage is None else ModelUsage(*usage))


async def test_ai_wrap_reads_the_usage_unless_the_handler_records_it() -> None:
    def ask(*, records: bool) -> Any:
        if records:
            spend("mine", 1)
        return {"model": "gpt", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    @client.create_function(fn_id="wrapping", trigger=GO)
    async def wrapping(ctx: Context) -> None:
        await ctx.step.ai.wrap("reads", ask, records=False)
        await ctx.step.ai.wrap("records", ask, records=True)
        await ctx.step.run("ordinary", ask, records=False)

    async with TestEngine(client, [wrapping]) as engine:
        run = await engine.send(durably.Event(name="go"))
        assert run.usage == [ModelUsage("gpt", 1, 2), ModelUsage("mine", 1, 10)]


def test_metadata_of_other_sdks_is_read_as_far_as_it_is_usage() -> None:
    both = [ModelUsage("a", 1, 2), ModelUsage("b", 3, 4), ModelUsage("a", 10, 20)]
    written = usage_metadata(both)
    assert [item["op"] for item in written] == ["merge", "add"]
    assert read_usage_metadata(written) == (ModelUsage("a", 11, 22), ModelUsage("b", 3, 4))
    js = {"kind": "inngest.ai", "scope": "step", "op": "merge", "values": {"response_model": "x", "input_tokens": 7}}
    other = {"kind": "userland.x", "values": {"input_tokens": 1}}
    for odd in (None, "text", {"kind": "inngest.ai"}, [None, 1, "x", {"kind": "inngest.ai", "values": [1]}, other]):
        assert read_usage_metadata(odd) == ()
    assert read_usage_metadata([other, js]) == (ModelUsage("x", 7, 0),)
