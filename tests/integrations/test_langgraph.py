"""Graphs of LangGraph in durable functions, with models that need no network."""

import asyncio
import datetime as dt
import operator
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, RetryPolicy, Send, TimeoutPolicy, interrupt
from pydantic import BaseModel

import durably
from durably import Embedded, EngineSettings
from durably.comm import CommHandler
from durably.integrations.langgraph import durable
from durably.testing import TestEngine
from durably.testing.engine import TestRun

from .langgraph_fakes import ScriptedModel, ask, call


@asynccontextmanager
async def run_of(
    handler: Callable[[durably.Context], Any], retries: int = 0
) -> AsyncIterator[tuple[TestEngine, TestRun]]:
    client = durably.Client(app_id="graphs")
    trigger = durably.TriggerEvent(event="go")
    function = client.create_function(fn_id="f", trigger=trigger, retries=retries)(handler)
    async with TestEngine(client, [function]) as engine:
        yield engine, await engine.send(durably.Event(name="go"))


async def test_models_and_tools_of_an_agent_are_steps() -> None:
    noted: list[str] = []

    @tool
    async def look_up(order: str) -> str:
        """Look up an order."""
        noted.append(order)
        await asyncio.sleep(0.01 if order == "A" else 0)
        return f"{order} is late"

    calls = [call("look_up", "1", order="A"), call("look_up", "2", order="B")]
    model = ScriptedModel(answers=[ask(*calls), AIMessage("so sorry")])
    agent = create_agent(model, [look_up])
    results: list[Any] = []

    async def run(ctx: durably.Context) -> str:
        result = await durable(agent).ainvoke({"messages": [("user", "where are they?")]})
        results.append(result["messages"])
        return str(result["messages"][-1].content)

    async with run_of(run) as (engine, sent):
        finished = await sent.wait()
        assert finished.output == "so sorry"
        assert list(finished.steps) == ["start", "model", "tools/0", "tools/1", "model:1"]
        assert [(each.model, each.input_tokens, each.output_tokens) for each in finished.usage] == [
            ("scripted-1", 20, 10)
        ]
        await engine.check_determinism(finished, orders=1)
    assert (noted, model.noted) == (["A", "B"], [0, 1])
    assert results[0] == results[-1]  # with the same ids


async def test_interrupts_are_answered_days_later() -> None:
    done: list[str] = []

    @tool
    def refund(order: str) -> str:
        """Refund an order, after two questions."""
        may = interrupt({"refund": order})
        why = interrupt({"why": order})
        done.append(order)
        return f"{may}, {why}"

    calls = [call("refund", "1", order="A"), call("refund", "2", order="B")]
    agent = create_agent(ScriptedModel(answers=[ask(*calls), AIMessage("done")]), [refund])

    async def run(ctx: durably.Context) -> list[Any]:
        graph = durable(agent)
        result = await graph.ainvoke({"messages": [("user", "refund them")]})
        while interrupts := result.get("__interrupt__"):
            answers = {}
            for each in interrupts:
                question = await ctx.step.receive("answer", type=str, prompt=str(each.value))
                await question.reply()
                answers[each.id] = question.data
            result = await graph.ainvoke(Command(resume=answers))
        return [message.content for message in result["messages"] if message.type == "tool"]

    async with run_of(run) as (engine, sent):
        for answer in ("A yes", "B yes", "A because", "B because"):
            await engine.advance(days=3)
            await engine.ask(sent, "answer", answer)
        finished = await sent.wait()
        assert finished.output == ["A yes, A because", "B yes, B because"]
    assert done == ["A", "B"]


class Draft(BaseModel):
    text: str


class Drafts(TypedDict):
    drafts: Annotated[list[Draft], operator.add]


class Review(Drafts):
    topics: list[str]
    topic: str
    text: str


async def test_graphs_in_graphs_and_tasks_by_send_are_steps() -> None:
    noted: list[str] = []

    async def research(state: Review) -> dict[str, Any]:
        noted.append(f"research {state['topic']}")
        await asyncio.sleep(0.01 if state["topic"] == "A" else 0)
        return {"text": f"all about {state['topic']}"}

    def write(state: Review) -> Command[Any]:
        noted.append(f"write {state['topic']}")
        return Command(update={"drafts": [Draft(text=state["text"])]})

    inner = StateGraph(Review, output_schema=Drafts)
    inner.add_node("research", research)
    inner.add_node("write", write)
    inner.add_edge(START, "research")
    inner.add_edge("research", "write")
    outer = StateGraph(Review)
    outer.add_node("author", inner.compile())
    outer.add_node(
        "end", lambda state: {"text": " ".join(each.text for each in state["drafts"])}, retry_policy=RetryPolicy()
    )
    outer.add_conditional_edges(START, lambda state: [Send("author", {"topic": each}) for each in state["topics"]])
    outer.add_edge("author", "end")
    graph = outer.compile()

    async def run(ctx: durably.Context) -> Any:
        result = await durable(graph).ainvoke({"topics": ["A", "B"]})
        assert result["drafts"] == [Draft(text="all about A"), Draft(text="all about B")]
        return result["text"]

    async with run_of(run) as (engine, sent):
        finished = await sent.wait()
        assert finished.output == "all about A all about B"
        assert sorted(finished.steps) == [
            "author/0/research",
            "author/0/write",
            "author/1/research",
            "author/1/write",
            "end",
        ]
        await engine.check_determinism(finished, orders=1)
    assert len(noted) == 4


async def test_tasks_of_an_entrypoint_are_steps() -> None:
    noted: list[str] = []

    @task
    async def write(topic: str) -> Draft:
        noted.append(f"write {topic}")
        return Draft(text=f"all about {topic}")

    @task
    def check(draft: Draft) -> str:
        noted.append("check")
        return str(interrupt(draft.text))

    @entrypoint()
    async def author(topics: list[str]) -> str:
        drafts = await asyncio.gather(*(write(topic) for topic in topics))
        may = interrupt("publish?")
        return f"{may} {await check(drafts[0])} {drafts[1].text}"

    async def run(ctx: durably.Context) -> Any:
        graph = durable(author)
        result = await graph.ainvoke(["A", "B"])
        while isinstance(result, dict):
            question = await ctx.step.receive("answer", type=str, prompt=str(result["__interrupt__"][0].value))
            await question.reply()
            result = await graph.ainvoke(Command(resume=question.data))
        return result

    async with run_of(run) as (engine, sent):
        await engine.ask(sent, "answer", "yes")
        await engine.ask(sent, "answer", "fine")
        finished = await sent.wait()
        assert finished.output == "yes fine all about B"
        assert [step for step in finished.steps if "answer" not in step] == ["write", "write/1", "check", "check:1"]
        await engine.check_determinism(finished, orders=1)
    assert noted == ["write A", "write B", "check", "check"]


async def test_conversation_continues_and_messages_keep_their_ids() -> None:
    async def forget(state: MessagesState) -> dict[str, Any]:
        return {"messages": [RemoveMessage(id=message.id) for message in state["messages"][:-2]]}  # type: ignore[arg-type]

    builder = StateGraph(MessagesState)
    builder.add_node("count", lambda state: {"messages": [{"role": "ai", "content": str(len(state["messages"]))}]})
    builder.add_node("forget", forget)
    builder.add_edge(START, "count")
    builder.add_edge("count", "forget")
    builder.add_edge("forget", END)
    graph = builder.compile()

    async def run(ctx: durably.Context) -> list[str]:
        chat = durable(graph)
        for _ in range(3):
            question = await ctx.step.receive("message", type=str)
            result = await chat.ainvoke({"messages": [HumanMessage(question.data)]})
            await question.reply(result["messages"][-1].content)
        return [message.content for message in result["messages"]]

    async with run_of(run) as (engine, sent):
        for expected in ("1", "3", "3"):
            assert await engine.ask(sent, "message", "hello") == expected
            await engine.advance(days=30)
        finished = await sent.wait()
        assert finished.output == ["hello", "3"]


async def test_failing_node_is_retried_as_a_step_and_a_refused_request_is_not() -> None:
    attempts: list[str] = []

    class RefusedError(Exception):
        status_code = 401

    async def flaky(state: MessagesState) -> dict[str, Any]:
        attempts.append("flaky")
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return {}

    def refused(state: MessagesState) -> dict[str, Any]:
        attempts.append("refused")
        raise RefusedError("no such key")

    builder = StateGraph(MessagesState)
    builder.add_node("flaky", flaky, retry_policy=RetryPolicy(max_attempts=9))
    builder.add_node("refused", refused)
    builder.add_edge(START, "flaky")
    builder.add_edge("flaky", "refused")
    graph = builder.compile()

    async def run(ctx: durably.Context) -> None:
        await durable(graph).ainvoke({"messages": []})

    async with run_of(run, retries=3) as (_, sent):
        finished = await sent.wait()
        assert finished.error is not None
        assert "no such key" in (finished.error.message or "")
    assert attempts == ["flaky", "flaky", "flaky", "refused"]


async def test_graph_runs_without_steps_outside_of_a_function_and_in_a_step() -> None:
    graph = durable(create_agent(ScriptedModel(answers=[AIMessage("hello")]), []))

    async def ask_it() -> str:
        return str(
            (await graph.ainvoke({"messages": [("user", "hi")]}, {"configurable": {"thread_id": "new"}}))["messages"][
                1
            ].content
        )

    async def run(ctx: durably.Context) -> str:
        return await ctx.step.run("inside", ask_it)

    async with run_of(run) as (_, sent):
        finished = await sent.wait()
        assert (finished.output, list(finished.steps)) == ("hello", ["inside"])
    assert graph.invoke({"messages": [("user", "hi")]})["messages"][1].content == "hello"


@pytest.mark.parametrize("case", ["invoke", "nested interrupt", "idle timeout"])
async def test_what_cannot_be_a_step_is_refused(case: str) -> None:
    inner = StateGraph(MessagesState)
    inner.add_node("question", lambda state: interrupt("may I?"))
    inner.add_edge(START, "question")
    asking = inner.compile()

    async def call_graph(state: MessagesState) -> Any:
        return await asking.ainvoke(state)

    builder = StateGraph(MessagesState)
    builder.add_node("a", call_graph, timeout=TimeoutPolicy(idle_timeout=1) if case == "idle timeout" else None)
    builder.add_edge(START, "a")
    graph = builder.compile()

    async def run(ctx: durably.Context) -> None:
        chat = durable(graph)
        await (asyncio.to_thread(chat.invoke, {"messages": []}) if case == "invoke" else chat.ainvoke({"messages": []}))  # type: ignore[arg-type]

    expected = {
        "invoke": "await graph.ainvoke",
        "nested interrupt": "make that graph a node",
        "idle timeout": "run_timeout",
    }
    async with run_of(run) as (_, sent):
        finished = await sent.wait()
        assert finished.error is not None
        assert expected[case] in (finished.error.message or "")


async def test_text_of_models_is_published(tmp_path: Path) -> None:
    agent = create_agent(ScriptedModel(answers=[AIMessage("all is paid")]), [])
    engine = Embedded(tmp_path / "durably.db", settings=EngineSettings(close_grace=dt.timedelta(0)))
    client = durably.Client(app_id="graphs", engine=engine)

    @client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="go"))
    async def f(ctx: durably.Context) -> str:
        result = await durable(agent, stream_to="chat").ainvoke({"messages": [("user", "hi")]})
        return str(result["messages"][-1].content)

    CommHandler(client=client, framework="test", functions=[f])
    async with engine.running(), asyncio.timeout(30):
        handle = client.run((await engine.invoke(f.id)).run_id or "")
        words = [each.data["data"]["content"] async for each in handle.stream(topics=["chat"])]
        assert [word for word in words if word] == ["all", "is", "paid"]
        assert await handle.result() == "allispaid"
        assert [(each.model, each.input_tokens) for each in (await handle.status()).usage or []] == [("scripted-1", 10)]
