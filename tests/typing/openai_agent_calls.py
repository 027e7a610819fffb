"""Types of durable agents of other libraries. `make lint` checks it with mypy and pyright; nothing runs it."""

from typing import Any, assert_type

from agents import Agent, RunResult
from langgraph.graph import MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

import durably
from durably.integrations.langgraph import durable
from durably.integrations.openai_agents import Approval, DurableRunner

client = durably.Client(app_id="typing", is_production=False)
agent = Agent[None](name="support")
graph = StateGraph(MessagesState).compile()


@client.create_function(fn_id="answer", trigger=durably.TriggerEvent(event="never"))
async def answer(ctx: durably.Context) -> str:
    result = await DurableRunner.run(agent, "hello", max_turns=3, stream_to="agent", approval_timeout="2d")
    assert_type(result, RunResult)
    question = await ctx.step.receive("approval", type=Approval)
    assert_type(question.data, Approval)
    await DurableRunner.run(agent, "hello", turns=3)  # type: ignore[call-arg]  # pyright: ignore
    await DurableRunner.run(agent, stream_to="agent")  # type: ignore[call-arg]  # pyright: ignore
    assert_type(
        durable(graph, stream_to="agent"), CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]
    )
    durable(agent)  # type: ignore[type-var]  # pyright: ignore
    return str(result.final_output)


_: Any = answer
