"""Agents of pydantic-ai in durable functions, with models that need no network."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fastmcp import FastMCP
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import TypeAdapter
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.exceptions import ModelAPIError, ModelAuthenticationError, ModelHTTPError
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset

from durably import Client, Context, ContextSync, Embedded, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.settings import EngineSettings
from durably.errors import AnswerRefusedError, StepError
from durably.experimental import get_step_context
from durably.integrations.pydantic_ai import Approval, DurableSteps
from durably.protocol.channels import MAX_MESSAGE_BYTES
from durably.steps import Step
from durably.streams import follow
from durably.testing import TestEngine
from durably.testing.engine import TestRun

Part = TextPart | ToolCallPart


class Script:
    """A model that answers with one list of parts after another, chosen by the number of answers in the history.

    An exception among the answers is raised once. ``calls`` counts the model's calls by that number.
    """

    def __init__(self, *answers: Sequence[Part] | str | Exception) -> None:
        self.calls: Counter[int] = Counter()
        self._answers = list(answers)
        self.model = FunctionModel(self._answer)

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        number = sum(isinstance(message, ModelResponse) for message in messages)
        self.calls[number] += 1
        answer = self._answers[number]
        if isinstance(answer, Exception):
            self._answers.pop(number)
            raise answer
        return ModelResponse([TextPart(answer)] if isinstance(answer, str) else list(answer))


def returned(messages: Sequence[ModelMessage]) -> list[Any]:
    """What the tools returned, in order."""
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


@asynccontextmanager
async def run_of(handler: Callable[[Context], Any], *, checkpointing: bool = False) -> AsyncIterator[TestRun]:
    """A run of a function that has ended, in a test engine."""
    client = Client(app_id="agents")
    function = client.create_function(fn_id="chat", trigger=TriggerEvent(event="chat"))(handler)
    async with TestEngine(client, [function], checkpointing=checkpointing) as engine:
        yield await (await engine.invoke(function)).wait()


# -- steps


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_each_call_of_the_model_and_of_a_tool_is_a_step_that_runs_once(checkpointing: bool) -> None:
    slow = [ToolCallPart("slow", {"seconds": seconds}) for seconds in (0.03, 0.0)]
    script = Script([*slow, ToolCallPart("add", {"a": 1, "b": 2})], [ToolCallPart("slow", {"seconds": 0.01})], "ready")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])
    done: list[str] = []

    @agent.tool_plain
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        done.append(f"slow {seconds}")
        return f"slept {seconds}"

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        done.append("add")
        return a + b

    async def chat(ctx: Context) -> list[Any]:
        result = await agent.run("hello")
        return [result.output, result.usage.requests, *returned(result.all_messages())]

    async with run_of(chat, checkpointing=checkpointing) as run:
        run.assert_completed(output=["ready", 3, "slept 0.03", "slept 0.0", 3, "slept 0.01"])
        assert sorted(run.steps) == [
            *("support/add", "support/model", "support/model:1", "support/model:2"),
            *("support/slow", "support/slow:1", "support/slow:2"),
        ]
    assert script.calls == {0: 1, 1: 1, 2: 1}
    assert sorted(done) == ["add", "slow 0.0", "slow 0.01", "slow 0.03"]


async def test_output_is_validated_and_asked_for_again() -> None:
    class City(pydantic.BaseModel):
        name: str
        people: int

    bad, good = ({"name": "Rome", "people": people} for people in ("many", 2_700_000))
    script = Script([ToolCallPart("final_result", bad)], [ToolCallPart("final_result", good)])
    agent = Agent(script.model, name="support", output_type=City, capabilities=[DurableSteps()])

    async def chat(ctx: Context) -> int:
        return (await agent.run("Which city?")).output.people

    async with run_of(chat) as run:
        run.assert_completed(output=2_700_000)
        assert list(run.steps) == ["support/model", "support/model:1"]


async def test_agents_run_side_by_side() -> None:
    script = Script([ToolCallPart("wait", {"turns": 3})], "first")
    other = Script([ToolCallPart("wait", {"turns": 0})], [ToolCallPart("wait", {"turns": 1})], "second")
    waits: Counter[int] = Counter()

    async def wait(turns: int) -> None:
        waits[turns] += 1
        for _ in range(turns):
            await asyncio.sleep(0)

    agent, helper = (
        Agent(each.model, name=name, tools=[wait], capabilities=[DurableSteps()])
        for each, name in ((script, "support"), (other, "helper"))
    )

    async def chat(ctx: Context) -> list[str]:
        return [each.output for each in await asyncio.gather(agent.run("a"), helper.run("b"))]

    async with run_of(chat) as run:
        run.assert_completed(output=["first", "second"])
    assert (script.calls, other.calls, waits) == ({0: 1, 1: 1}, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 3: 1})


# -- errors


async def test_failed_tool_is_tried_again_and_the_model_is_not() -> None:
    script = Script([ToolCallPart("stock", {})], "7 left")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])
    tries = 0

    @agent.tool_plain
    def stock() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError("the stock's database restarts")
        return 7

    async def chat(ctx: Context) -> str:
        return (await agent.run("How many are left?")).output

    async with run_of(chat) as run:
        run.assert_completed(output="7 left")
        assert run.steps["support/stock"].attempts == 2
    assert (script.calls, tries) == ({0: 1, 1: 1}, 2)


async def test_tool_asks_the_model_to_try_again() -> None:
    script = Script([ToolCallPart("stock", {})], "none")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])

    @agent.tool_plain
    def stock() -> int:
        raise ModelRetry("Which product?")

    async def chat(ctx: Context) -> str:
        return (await agent.run("How many are left?")).output

    async with run_of(chat) as run:
        run.assert_completed(output="none")
        assert run.steps["support/stock"].attempts == 1


@pytest.mark.parametrize(
    ("error", "attempts", "seconds"),
    [
        (ModelHTTPError.for_category(ModelAuthenticationError, status_code=401, model_name="gpt-5"), 1, 0),
        (ModelHTTPError(503, "gpt-5"), 2, 15),
        (ModelHTTPError(429, "gpt-5", headers={"retry-after": "7"}), 2, 7),
    ],
    ids=["refused", "unavailable", "retry-after"],
)
async def test_failed_model_is_called_again_if_that_may_help(error: ModelAPIError, attempts: int, seconds: int) -> None:
    script = Script(error, "hello")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])

    async def chat(ctx: Context) -> str:
        try:
            return (await agent.run("hello")).output
        except StepError as failed:
            return failed.name

    async with run_of(chat) as run:
        run.assert_completed(output="hello" if attempts > 1 else "NonRetriableError")
        assert run.steps["support/model"].attempts == attempts
        assert run.ended_at is not None
        assert (run.ended_at - run.created_at).total_seconds() == seconds


# -- inside and outside of steps


async def test_agent_is_an_ordinary_one_outside_of_functions_and_inside_of_steps() -> None:
    script = Script("hello")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])
    assert (await agent.run("hello")).output == "hello"

    async def ask() -> str:
        return (await agent.run("hello")).output

    async def chat(ctx: Context) -> str:
        return await ctx.step.run("ask", ask)

    async with run_of(chat) as run:
        run.assert_completed(output="hello")
        assert list(run.steps) == ["ask"]


async def test_agent_in_a_sync_function_is_refused() -> None:
    agent = Agent(TestModel(), name="support", capabilities=[DurableSteps()])

    def chat(ctx: ContextSync) -> str:
        return agent.run_sync("hello").output

    async with run_of(chat) as run:
        run.assert_failed(error="FunctionConfigInvalidError", message='agent "support" runs in a sync function')


async def test_tool_that_is_no_step_has_steps_of_its_own() -> None:
    billing = Agent(Script("paid").model, name="billing", capabilities=[DurableSteps()])
    script = Script([ToolCallPart("ask_billing", {})], [ToolCallPart("wait", {})], "all paid")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])

    @agent.tool_plain(metadata={"durably": False})
    async def ask_billing() -> str:
        return (await billing.run("Is it paid?")).output

    @agent.tool_plain(metadata={"durably": False})
    async def wait() -> None:
        steps = get_step_context()
        assert isinstance(steps, Step)
        await steps.sleep("a-day", "1d")

    async def chat(ctx: Context) -> str:
        return (await agent.run("hello")).output

    async with run_of(chat) as run:
        run.assert_completed(output="all paid")
        assert list(run.steps) == ["support/model", "billing/model", "support/model:1", "a-day", "support/model:2"]


async def test_wrong_metadata_is_refused() -> None:
    agent = Agent(Script([ToolCallPart("stock", {})]).model, name="support", capabilities=[DurableSteps()])

    @agent.tool_plain(metadata={"durably": True})
    def stock() -> int:
        return 7

    async def chat(ctx: Context) -> str:
        return (await agent.run("How many are left?")).output

    async with run_of(chat) as run:
        run.assert_failed(error="FunctionConfigInvalidError", message='tool "stock"')


async def test_toolset_of_a_single_run_is_refused() -> None:
    agent = Agent(TestModel(), name="support", capabilities=[DurableSteps()])

    async def chat(ctx: Context) -> str:
        return (await agent.run("hello", toolsets=[FunctionToolset([print], id="extra")])).output

    async with run_of(chat) as run:
        run.assert_failed(error="UserError", message="Durably")


async def test_ids_of_an_agents_runs_are_the_same_in_each_call() -> None:
    agent = Agent(TestModel(), name="support", capabilities=[DurableSteps()])
    seen: set[tuple[str, ...]] = set()

    async def chat(ctx: Context) -> None:
        first, second = await agent.run("hello"), await agent.run("hello")
        seen.add((first.run_id, second.run_id, first.conversation_id, second.conversation_id))
        await ctx.step.sleep("a-day", "1d")

    async with run_of(chat) as run:
        run.assert_completed()
        [ids] = seen
        assert ids[:2] == (f"{run.id}:1", f"{run.id}:2")


async def test_answer_of_the_model_is_mocked() -> None:
    script = Script()
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])
    client = Client(app_id="agents")

    @client.create_function(fn_id="chat", trigger=[])
    async def chat(ctx: Context) -> str:
        return (await agent.run("hello")).output

    async with TestEngine(client, [chat]) as engine:
        engine.mock_step("support/model", returns={"parts": [{"part_kind": "text", "content": "On its way."}]})
        (await (await engine.invoke(chat)).wait()).assert_completed(output="On its way.")
    assert not script.calls


async def test_timeout_of_an_agent_counts_from_its_first_call() -> None:
    script = Script([ToolCallPart("wait", {})], "hello")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])

    @agent.tool_plain(metadata={"durably": False})
    async def wait() -> None:
        steps = get_step_context()
        assert isinstance(steps, Step)
        await steps.sleep("a-day", "1d")

    async def chat(ctx: Context) -> str:
        return (await agent.run("hello", timeout=3600)).output

    async with run_of(chat) as run:
        run.assert_completed(output="hello")
        assert next(iter(run.steps)) == "support/start"


async def test_tools_of_an_mcp_server_are_steps() -> None:
    calls: list[str] = []
    server = FastMCP("stock", instructions="Ask for the stock.")

    @server.tool
    async def stock(product: str) -> int:
        calls.append(product)
        return 7

    asks = [ToolCallPart("stock", {"product": product}) for product in ("tea", "salt")]
    script = Script([asks[0]], [asks[1]], "7 left")
    agent = Agent(script.model, name="support", toolsets=[MCPToolset(server, id="shop")], capabilities=[DurableSteps()])

    async def chat(ctx: Context) -> list[Any]:
        result = await agent.run("How many are left?")
        return [result.output, *returned(result.all_messages())]

    async with run_of(chat) as run:
        run.assert_completed(output=["7 left", 7, 7])
        assert sorted({step_id.split(":")[0] for step_id in run.steps}) == [
            *("support/model", "support/shop/tools", "support/stock"),
        ]
    assert calls == ["tea", "salt"]
    assert script.calls == {0: 1, 1: 1, 2: 1}


# -- approval


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_tools_wait_for_approval_while_others_run(checkpointing: bool) -> None:
    script = Script(
        [
            ToolCallPart("refund", {"euros": 20}, tool_call_id="a"),
            ToolCallPart("refund", {"euros": 500}, tool_call_id="b"),
            ToolCallPart("thank", {}),
        ],
        "done",
    )
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])
    done: list[Any] = []

    @agent.tool_plain(requires_approval=True)
    def refund(euros: int) -> str:
        done.append(euros)
        return f"{euros} paid back"

    @agent.tool_plain
    def thank() -> str:
        done.append("thanks")
        return "thanked"

    client = Client(app_id="agents")

    @client.create_function(fn_id="chat", trigger=TriggerEvent(event="chat"))
    async def chat(ctx: Context) -> list[Any]:
        return returned((await agent.run("hello")).all_messages())

    async with TestEngine(client, [chat], checkpointing=checkpointing) as engine:
        run = await engine.invoke(chat)
        with pytest.raises(AnswerRefusedError):
            await engine.ask(run, "support/refund/a", "yes")
        await engine.advance(days=3)
        await engine.ask(run, "support/refund/b", Approval(False, "That is too much."))
        assert done == ["thanks"]
        await engine.ask(run, "support/refund/a", {"approved": True})
        await run.wait()
        assert sorted(run.output) == ["20 paid back", "That is too much.", "thanked"]
    assert done == ["thanks", 20]
    assert script.calls == {0: 1, 1: 1}


async def test_question_says_what_it_leaves_out_of_a_tool_call() -> None:
    script = Script([ToolCallPart("pay", {"note": " " * 9000, "euros": 900}, tool_call_id="a")], "done")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps()])

    @agent.tool_plain(requires_approval=True)
    def pay(note: str, euros: int) -> str:
        raise AssertionError("it is not approved")

    client = Client(app_id="agents")

    @client.create_function(fn_id="chat", trigger=TriggerEvent(event="chat"))
    async def chat(ctx: Context) -> list[Any]:
        return returned((await agent.run("hello")).all_messages())

    async with TestEngine(client, [chat]) as engine:
        run = await engine.invoke(chat)
        [question] = await client.questions(run_id=run.id)
        assert question.prompt is not None
        assert len(question.prompt) < 5000
        assert "characters are not shown" in question.prompt
        assert question.prompt.endswith('"euros":900}')


async def test_tool_that_nobody_approves_is_denied() -> None:
    script = Script([ToolCallPart("refund", {})], "sorry")
    agent = Agent(script.model, name="support", capabilities=[DurableSteps(approval_timeout="2d")])

    @agent.tool_plain(requires_approval=True)
    def refund() -> str:
        raise AssertionError("it is not approved")

    async def chat(ctx: Context) -> list[Any]:
        return returned((await agent.run("hello")).all_messages())

    async with run_of(chat) as run:
        run.assert_completed(output=["Nobody has approved this tool call in time."])


async def test_conversation_continues_after_days() -> None:
    agent = Agent(FunctionModel(count_words), name="support", capabilities=[DurableSteps()])
    client = Client(app_id="agents")

    @client.create_function(fn_id="chat", trigger=TriggerEvent(event="chat"))
    async def chat(ctx: Context) -> int:
        messages: list[ModelMessage] = []
        while True:
            question = await ctx.step.receive("message", type=str)
            if question.data == "bye":
                return len(messages)
            result = await agent.run(question.data, message_history=messages)
            messages = result.all_messages()
            await question.reply(result.output)

    async with TestEngine(client, [chat]) as engine:
        run = await engine.invoke(chat)
        assert await engine.ask(run, "message", "one two") == "2 words"
        await engine.advance(days=30)
        assert await engine.ask(run, "message", "three") == "3 words"
        await engine.answer(run, "message", "bye")
        assert (await run.wait()).output == 4
        assert (run.steps["support/model"].attempts, run.steps["support/model:1"].attempts) == (1, 1)
        await engine.check_determinism(run)


def count_words(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    texts = [str(part.content) for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return ModelResponse([TextPart(f"{len(' '.join(texts).split())} words")])


# -- messages and tokens


async def test_events_are_published_and_tokens_recorded(tmp_path: Path) -> None:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls | str]:
        if len(messages) == 1:
            yield {0: DeltaToolCall("ask_billing", "{}", tool_call_id="a")}
        else:
            for word in ("all ", "is ", "paid"):
                yield word

    billing = Agent(Script("paid").model, name="billing", capabilities=[DurableSteps()])
    agent = Agent(FunctionModel(stream_function=answer), name="support", capabilities=[DurableSteps(stream_to="agent")])

    @agent.tool_plain
    async def ask_billing() -> str:
        await billing.run("Is it paid?")
        return "x" * MAX_MESSAGE_BYTES

    engine = Embedded(tmp_path / "durably.db", settings=EngineSettings(close_grace=dt.timedelta(0)))
    client = Client(app_id="agents", engine=engine)

    @client.create_function(fn_id="chat", trigger=TriggerEvent(event="chat"))
    async def chat(ctx: Context) -> str:
        return (await agent.run("hello")).output

    CommHandler(client=client, framework="test", functions=[chat])
    async with engine.running(), asyncio.timeout(30):
        run_id = (await engine.invoke(chat.id)).run_id
        assert run_id is not None
        events = [each.data async for each in follow(client, run_id, topics=["agent"])]
        run = await engine.get_run(run_id)
    read = TypeAdapter(AgentStreamEvent).validate_python
    [large] = [event for event in events if "omitted_bytes" in event]
    assert large["event_kind"] == "function_tool_result"
    texts = [
        event
        for event in map(read, [each for each in events if each is not large])
        if isinstance(event, PartDeltaEvent | PartStartEvent)
    ]
    written = [
        each.part.content for each in texts if isinstance(each, PartStartEvent) and isinstance(each.part, TextPart)
    ]
    written += [each.delta.content_delta for each in texts if isinstance(each, PartDeltaEvent)]
    assert "".join(written) == "all is paid"
    kinds = [event["event_kind"] for event in events]
    assert kinds.index("function_tool_call") < kinds.index("function_tool_result") < kinds.index("part_delta")
    assert run is not None
    assert sorted(each.model for each in run.usage) == ["function::answer", "function:_answer:"]
    assert all(each.input_tokens and each.output_tokens for each in run.usage)


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_replays_make_no_spans_again(checkpointing: bool) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Instrumentation(settings=InstrumentationSettings(tracer_provider=provider))
    script = Script([ToolCallPart("wait", {}), ToolCallPart("add", {})], [ToolCallPart("add", {})], "done")
    agent = Agent(script.model, name="support", capabilities=[tracing, DurableSteps()])

    @agent.tool_plain(timeout=0.01)
    async def wait() -> None:
        await asyncio.sleep(60)

    @agent.tool_plain
    def add() -> int:
        return 1

    async def chat(ctx: Context) -> str:
        return (await agent.run("hello")).output

    async with run_of(chat, checkpointing=checkpointing) as run:
        run.assert_completed(output="done")
    spans = Counter(span.name.split()[0] for span in exporter.get_finished_spans())
    assert (spans["chat"], spans["execute_tool"]) == (3, 3)
