"""The agent of ``agent_storm`` with LangGraph."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.types import Command, interrupt

import durably
from durably.integrations.agent_steps import Approval
from durably.integrations.langgraph import durable

from .agent_storm import CHARGES, Log
from .langgraph_fakes import ScriptedModel, ask, call


class NotedModel(ScriptedModel):
    log: Any

    def _answer(self, messages: Any) -> AIMessage:
        turn = sum(isinstance(message, AIMessage) for message in messages)
        self.log.note(2 * turn, f"model-{turn}", "begin")  # from here on it is paid
        answer = super()._answer(messages)
        self.log.note(2 * turn, f"model-{turn}", "end")
        return answer


def make_answer(log: Log, turns: int) -> Callable[[durably.Context], Awaitable[str]]:
    @tool
    async def charge(turn: int, number: int) -> int:
        """Charge a card."""
        if number and not interrupt(f"charge {turn}-{number}"):
            return -1
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "begin")
        await asyncio.sleep(0)
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "end")
        return number

    calls = [
        ask(*(call("charge", f"{turn}-{number}", turn=turn, number=number) for number in range(CHARGES)))
        for turn in range(turns)
    ]
    agent = create_agent(NotedModel(answers=[*calls, AIMessage("done")], log=log), [charge])

    async def answer(ctx: durably.Context) -> str:
        graph = durable(agent)
        result = await graph.ainvoke({"messages": [("user", "go")]})
        while interrupts := result.get("__interrupt__"):
            answers = {}
            for each in interrupts:
                question = await ctx.step.receive(each.value, type=Approval)
                await question.reply()
                answers[each.id] = question.data.approved
            result = await graph.ainvoke(Command(resume=answers))
        return str(result["messages"][-1].content)

    return answer
