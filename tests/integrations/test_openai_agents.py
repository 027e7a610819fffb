"""Agents of the OpenAI Agents SDK in durable functions: what is a step, what is kept, and what a failure does."""

import asyncio
import copy
import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunConfig,
    RunContextWrapper,
    Runner,
    ShellTool,
    SQLiteSession,
    function_tool,
    input_guardrail,
)
from agents.mcp import MCPServer
from agents.models.openai_responses import OpenAIResponsesModel
from aiohttp import web
from aiohttp.test_utils import TestServer
from mcp.types import CallToolResult, GetPromptResult, ListPromptsResult, TextContent
from mcp.types import Tool as MCPTool
from openai import AsyncOpenAI

import durably
from durably import Embedded, EngineSettings
from durably.comm import CommHandler
from durably.integrations.openai_agents import Approval, DurableRunner
from durably.testing import TestEngine

from .openai_fakes import ScriptedModel, call, say

GO = durably.Event(name="go", data={})


def make(run: Any, retries: int = 0) -> tuple[durably.Client, durably.Function[Any]]:
    client = durably.Client(app_id="agents")
    return client, client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="go"), retries=retries)(run)


@dataclass
class Order:
    id: str
    is_late: bool


async def test_models_tools_handoffs_and_agent_tools_are_steps() -> None:
    noted: list[str] = []

    @function_tool
    async def look_up(order: str) -> Order:
        noted.append(order)
        await asyncio.sleep(0.01 if order == "A" else 0)
        return Order(order, is_late=True)

    clerk_model = ScriptedModel("clerk", [call("look_up", "c1", order="C")], say("the clerk says C"))
    clerk = Agent(name="clerk", model=clerk_model, tools=[look_up])
    billing = Agent(name="billing", model=ScriptedModel("billing", say("refunded")))
    support_model = ScriptedModel(
        "support",
        [call("look_up", "s1", order="A"), call("look_up", "s2", order="B"), call("ask", "s3", input="C?")],
        [call("transfer_to_billing", "s4")],
    )
    support = Agent(
        name="support",
        model=support_model,
        tools=[look_up, clerk.as_tool("ask", "ask the clerk")],
        handoffs=[billing],
    )
    billing.handoffs.append(support)
    results: list[Any] = []

    async def run(ctx: durably.Context) -> str:
        result = await DurableRunner.run(support, "where are they?")
        results.append((result.last_agent.name, [getattr(each, "output", None) for each in result.new_items]))
        assert result.context_wrapper.usage.requests == 5
        return str(result.final_output)

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        finished = await (await engine.send(GO)).wait()
        assert finished.output == "refunded"
        assert list(finished.steps) == [
            "support/model",
            "support/look_up/s1",
            "support/look_up/s2",
            "ask/s3/clerk/model",
            "ask/s3/clerk/look_up/c1",
            "ask/s3/clerk/model:1",
            "support/model:1",
            "billing/model",
        ]
        await engine.check_determinism(finished, orders=1)
    assert noted == ["A", "B", "C"]
    assert support_model.noted + clerk_model.noted == ["support 0", "support 1", "clerk 0", "clerk 1"]
    name, outputs = results[-1]
    assert name == "billing"
    assert outputs[3:5] == [Order("A", True), Order("B", True)]  # of the type that the tool returned


class Shelf(MCPServer):
    """An MCP server in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    @property
    def name(self) -> str:
        return "shelf"

    async def connect(self) -> None: ...

    async def cleanup(self) -> None: ...

    async def list_tools(self, *args: Any) -> list[MCPTool]:
        self.noted.append("list")
        return [MCPTool(name="count", description="count", input_schema={"type": "object", "properties": {}})]

    async def call_tool(self, tool_name: str, arguments: Any, meta: Any = None) -> CallToolResult:
        self.noted.append(tool_name)
        return CallToolResult(content=[TextContent(type="text", text="12 books")])

    async def list_prompts(self) -> ListPromptsResult:
        raise NotImplementedError

    async def get_prompt(self, name: str, arguments: Any = None) -> GetPromptResult:
        raise NotImplementedError


async def test_mcp_servers_and_sessions_are_read_once() -> None:
    shelf = Shelf()
    model = ScriptedModel("librarian", [call("count", "c1")], say("12"))
    agent = Agent(name="librarian", model=model, mcp_servers=[shelf])
    session = SQLiteSession("s1")

    async def run(ctx: durably.Context) -> str:
        result = await DurableRunner.run(agent, "how many?", session=session)
        await ctx.step.sleep("nap", 1000)
        return str(result.final_output)

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        finished = await (await engine.send(GO)).wait()
        assert finished.output == "12"
        assert finished.steps["librarian/count/c1"].output == {"type": "text", "text": "12 books"}
        await engine.check_determinism(finished, orders=1)
    assert shelf.noted == ["list", "count"]
    assert [each.get("type", each.get("role")) for each in await session.get_items()] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
    ]


async def test_failing_tool_is_retried_and_then_told_to_the_model() -> None:
    attempts: list[str] = []

    @function_tool(failure_error_function=lambda context, error: f"failed: {error}")
    def refund(euros: int) -> str:
        attempts.append("refund")
        raise ConnectionError("the bank is closed")

    @function_tool(timeout=0.01)
    async def wait() -> str:
        await asyncio.Event().wait()
        return ""

    model = ScriptedModel(
        "support",
        [call("refund", "r1", euros=1)],
        [call("refund", "r2", euros="all")],
        [call("wait", "w1")],
        say("sorry"),
    )
    agent = Agent(name="support", model=model, tools=[refund, wait])
    outputs: list[Any] = []

    async def run(ctx: durably.Context) -> str:
        result = await DurableRunner.run(agent, "refund me")
        outputs[:] = [each.output for each in result.new_items if each.type == "tool_call_output_item"]
        return str(result.final_output)

    client, function = make(run, retries=2)
    async with TestEngine(client, [function]) as engine:
        finished = await (await engine.send(GO)).wait()
        assert finished.output == "sorry"
    assert len(attempts) == 3  # wrong arguments are not tried again
    assert outputs[0] == "failed: the bank is closed"
    assert outputs[1] == "failed: Invalid JSON input for tool refund"
    assert "timed out" in outputs[2]


async def test_agent_runs_without_steps_outside_of_a_function_and_in_a_step() -> None:
    model = ScriptedModel("a", say("hello"))
    agent = Agent(name="a", model=model)

    async def run(ctx: durably.Context) -> str:
        async def inside() -> str:
            return str((await DurableRunner.run(agent, "hi")).final_output)

        return await ctx.step.run("inside", inside)

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        finished = await (await engine.send(GO)).wait()
        assert (finished.output, list(finished.steps)) == ("hello", ["inside"])
    assert (await DurableRunner.run(agent, "hi")).final_output == "hello"


async def test_what_cannot_be_a_step_is_refused() -> None:
    shell = ShellTool(executor=lambda request: "")
    cases = {
        "sync function": (Agent(name="a", model=ScriptedModel("a", say("hi"))), True),
        '"shell" (ShellTool)': (Agent(name="a", model=ScriptedModel("a", say("hi")), tools=[shell]), False),
    }
    for message, (agent, is_sync) in cases.items():

        async def run(ctx: durably.Context) -> None:
            await DurableRunner.run(agent, "hi")  # noqa: B023

        def run_sync(ctx: durably.ContextSync) -> None:
            asyncio.run(DurableRunner.run(agent, "hi"))  # noqa: B023

        client, function = make(run_sync if is_sync else run)
        async with TestEngine(client, [function]) as engine:
            finished = await (await engine.send(GO)).wait()
            assert finished.error is not None
            assert message in (finished.error.message or "")


@pytest.mark.parametrize("timeout", [None, "2d"])
async def test_tools_wait_for_their_approval(timeout: str | None) -> None:
    done: list[int] = []

    @function_tool(needs_approval=True)
    def refund(euros: int) -> str:
        done.append(euros)
        return f"{euros} paid back"

    @function_tool
    def thank() -> str:
        done.append(0)
        return "thanked"

    cashier_model = ScriptedModel("cashier", [call("refund", "c", euros=5)], say("paid"))
    cashier = Agent(name="cashier", model=cashier_model, tools=[refund])
    turn = [
        call("refund", "a", euros=20),
        call("refund", "b", euros=500),
        call("thank", "t"),
        call("pay", "p", input="5"),
    ]
    model = ScriptedModel("support", turn, say("done"))
    agent = Agent(name="support", model=model, tools=[refund, thank, cashier.as_tool("pay", "pay")])

    async def run(ctx: durably.Context) -> list[Any]:
        result = await DurableRunner.run(agent, "refund me", approval_timeout=timeout)
        return [each["output"] for each in result.to_input_list() if each.get("type") == "function_call_output"]

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        sent = await engine.send(GO)
        await engine.advance(days=1)
        assert done == [0]
        await engine.ask(sent, "support/refund/b", Approval(False, "That is too much."))
        if timeout is None:
            await engine.advance(days=30)
            await engine.ask(sent, "support/refund/a", {"approved": True})
            await engine.ask(sent, "cashier/refund/c", Approval(True))
        finished = await sent.wait()
        denied = "Nobody has approved this tool call in time."
        assert sorted(finished.output) == sorted(
            ["20 paid back" if timeout is None else denied, "That is too much.", "thanked", "paid"]
        )
    assert done == ([0, 20, 5] if timeout is None else [0])
    assert (model.noted, cashier_model.noted) == (["support 0", "support 1"], ["cashier 0", "cashier 1"])


async def test_events_of_models_are_published_and_their_tokens_recorded(tmp_path: Path) -> None:
    @function_tool(needs_approval=True)
    def refund() -> str:
        return "paid back"

    model = ScriptedModel("large", [call("refund", "a")], say("all is paid"))
    agent = Agent(name="support", model=model, instructions="a secret", tools=[refund])
    engine = Embedded(tmp_path / "durably.db", settings=EngineSettings(close_grace=dt.timedelta(0)))
    client = durably.Client(app_id="agents", engine=engine)

    @client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="go"))
    async def f(ctx: durably.Context) -> str:
        return str((await DurableRunner.run(agent, "hi", stream_to="chat")).final_output)

    CommHandler(client=client, framework="test", functions=[f])
    events = []
    async with engine.running(), asyncio.timeout(30):
        handle = client.run((await engine.invoke(f.id)).run_id or "")
        async for message in handle.stream(topics=["chat"]):
            events.append(message.data)
            if message.data["type"] == "approval_required":
                await handle.answer(message.data["question"], Approval(True))
        assert await handle.result() == "all is paid"
        assert [(each.model, each.input_tokens) for each in (await handle.status()).usage or []] == [("large", 20)]
    asked, *words = events
    assert asked == {
        "type": "approval_required",
        "question": "support/refund/a",
        "tool_name": "refund",
        "arguments": "{}",
    }
    assert [each["delta"] for each in words] == ["all", "is", "paid"]


@dataclass
class Basket:
    orders: list[Order]
    note: str = ""


class Secret:
    """An object that cannot be stored."""


@pytest.mark.parametrize(
    "context", [{"orders": [], "note": ""}, Basket([]), Secret()], ids=["dict", "dataclass", "other"]
)
async def test_what_tools_change_in_the_context_is_kept(context: Any) -> None:
    @function_tool
    def add(context: RunContextWrapper[Any], order: str) -> Order:
        if isinstance(context.context, dict):
            context.context["orders"] = [*context.context["orders"], order]
        elif isinstance(context.context, Basket):
            context.context.orders.append(Order(order, is_late=False))
        return Order(order, is_late=True)

    @function_tool
    async def note(context: RunContextWrapper[Any]) -> None:
        await asyncio.sleep(0.01)
        if isinstance(context.context, Basket):
            context.context.note = "hello"

    turns = [call("add", "1", order="A"), call("note", "2")], [call("add", "3", order="B")], say("done")
    agent = Agent[Any](name="shop", model=ScriptedModel("shop", *turns), tools=[add, note])
    contexts: list[Any] = []

    async def run(ctx: durably.Context) -> str:
        contexts.append(copy.deepcopy(context))
        result = await DurableRunner.run(agent, "hi", context=contexts[-1])
        outputs = [each.output for each in result.new_items if each.type == "tool_call_output_item"]
        assert outputs == [Order("A", True), None, Order("B", True)]
        return str(result.final_output)

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        (await (await engine.send(GO)).wait()).assert_completed(output="done")
    if isinstance(context, dict):
        assert contexts[-1]["orders"] == ["A", "B"]
    elif isinstance(context, Basket):
        assert contexts[-1] == Basket([Order("A", False), Order("B", False)], "hello")
    assert len(contexts) > 3


async def test_guardrails_parallel_runs_and_sessions_with_approvals() -> None:
    guard_model = ScriptedModel("guard", say("fine"))
    guard = Agent(name="guard", model=guard_model)

    @input_guardrail
    async def polite(context: Any, agent: Agent[Any], input: Any) -> GuardrailFunctionOutput:
        verdict = await Runner.run(guard, input)
        return GuardrailFunctionOutput(output_info=verdict.final_output, tripwire_triggered=False)

    @function_tool(needs_approval=True)
    def refund() -> str:
        return "paid back"

    models = [ScriptedModel(str(number), [call("refund", str(number))], say(f"done {number}")) for number in range(2)]
    agents = [
        Agent(name=f"agent-{number}", model=models[number], tools=[refund], input_guardrails=[polite])
        for number in range(2)
    ]
    session = SQLiteSession("s1")

    async def run(ctx: durably.Context) -> list[str]:
        runs = (
            DurableRunner.run(agents[0], "hello", session=session),
            DurableRunner.run(agents[1], "hello", run_config=RunConfig(model=models[1])),
        )
        return [str(result.final_output) for result in await asyncio.gather(*runs)]

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        sent = await engine.send(GO)
        for number in (1, 0):
            await engine.ask(sent, f"agent-{number}/refund/{number}", Approval(True))
        finished = await sent.wait()
        assert finished.output == ["done 0", "done 1"]
    assert [each.noted for each in models] == [["0 0", "0 1"], ["1 0", "1 1"]]
    assert guard_model.noted == ["guard 0", "guard 0"]
    kinds = [each.get("type", each.get("role")) for each in await session.get_items()]
    assert kinds == ["user", "function_call", "function_call_output", "message"]


async def test_a_stream_in_the_function_is_refused() -> None:
    billing = Agent(name="billing", model=ScriptedModel("billing", say("paid")))

    async def show(event: Any) -> None:
        raise AssertionError

    tool = billing.as_tool("pay", "pay", on_stream=show, failure_error_function=None)
    agent = Agent(name="support", model=ScriptedModel("support", [call("pay", "1", input="5")]), tools=[tool])

    async def run(ctx: durably.Context) -> None:
        await DurableRunner.run(agent, "pay")

    client, function = make(run)
    async with TestEngine(client, [function]) as engine:
        finished = await (await engine.send(GO)).wait()
        assert "stream_to" in str(finished.error and finished.error.message)


async def test_requests_of_the_providers_client() -> None:
    """OpenAI's own client and a server: what is sent again, what is not, and what is sent back to the model."""
    statuses = [429, 500, 200, 200, 401]
    inputs: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        inputs.append((await request.json())["input"])
        status = statuses.pop(0)
        if status != 200:
            return web.json_response(
                {"error": {"message": "no"}}, status=status, headers={"Retry-After": "7"} if status == 429 else {}
            )
        thought = {"type": "reasoning", "id": "rs", "summary": []}
        wanted = {"type": "function_call", "id": "f", "call_id": "c", "name": "look_up", "arguments": "{}"}
        text = {"type": "output_text", "text": "late", "annotations": []}
        answer = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
        tokens = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        tokens |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        response = {"id": "r", "object": "response", "created_at": 1, "model": "gpt-5-2", "tools": [], "usage": tokens}
        response |= {
            "output": [answer] if len(inputs[-1]) > 1 else [thought, wanted],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
        }
        return web.json_response(response)

    @function_tool
    def look_up() -> str:
        return "late"

    app = web.Application()
    app.router.add_post("/responses", respond)
    async with TestServer(app) as server:
        openai = AsyncOpenAI(api_key="key", base_url=str(server.make_url("/")))
        agent = Agent(name="a", model=OpenAIResponsesModel("gpt-5", openai), tools=[look_up])

        async def run(ctx: durably.Context) -> str:
            return str((await DurableRunner.run(agent, "where is it?")).final_output)

        client, function = make(run, retries=3)
        async with TestEngine(client, [function]) as engine:
            finished = await (await engine.send(GO)).wait()
            finished.assert_completed(output="late")
            assert [(step.id, step.attempts) for step in finished.steps.values()] == [
                ("a/model", 3),
                ("a/look_up/c", 1),
                ("a/model:1", 1),
            ]
            assert [(each.model, each.input_tokens) for each in finished.usage] == [("gpt-5", 20)]
            refused = await (await engine.send(GO)).wait()
            assert refused.steps["a/model"].attempts == 1
    assert inputs[3][1:] == [
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "function_call", "id": "f", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "late"},
    ]
