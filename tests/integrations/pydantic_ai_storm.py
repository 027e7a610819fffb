"""The agent of ``agent_storm`` with pydantic-ai."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic_ai import Agent, ApprovalRequired, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import durably
from durably.integrations.pydantic_ai import DurableSteps

from .agent_storm import CHARGES, Log


def make_answer(log: Log, turns: int) -> Callable[[durably.Context], Awaitable[str]]:
    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        log.note(2 * turn, f"model-{turn}", "begin")  # from here on it is paid
        calls = [{"turn": turn, "number": number} for number in range(CHARGES)]
        parts = [ToolCallPart("charge", each, tool_call_id=f"{turn}-{each['number']}") for each in calls]
        log.note(2 * turn, f"model-{turn}", "end")
        return ModelResponse(parts if turn < turns else [TextPart("done")])

    agent = Agent(FunctionModel(respond), name="storm", capabilities=[DurableSteps()])

    @agent.tool
    async def charge(ctx: RunContext[None], turn: int, number: int) -> int:
        if number and not ctx.tool_call_approved:
            raise ApprovalRequired
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "begin")
        await asyncio.sleep(0)
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "end")
        return number

    async def answer(ctx: durably.Context) -> str:
        return (await agent.run("go")).output

    return answer
