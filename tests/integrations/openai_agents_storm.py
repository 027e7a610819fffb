"""The agent of ``agent_storm`` with the OpenAI Agents SDK."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agents import Agent, ModelResponse, function_tool

import durably
from durably.integrations.openai_agents import DurableRunner

from .agent_storm import CHARGES, Log
from .openai_fakes import ScriptedModel, call, say


class NotedModel(ScriptedModel):
    def __init__(self, log: Log, turns: int) -> None:
        calls = [
            [call("charge", f"{turn}-{number}", turn=turn, number=number) for number in range(CHARGES)]
            for turn in range(turns)
        ]
        super().__init__("storm", *calls, say("done"))
        self._log = log

    async def get_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> ModelResponse:
        turn = self.turns.index(self._turn(input))
        self._log.note(2 * turn, f"model-{turn}", "begin")  # from here on it is paid
        response = await super().get_response(system_instructions, input)
        self._log.note(2 * turn, f"model-{turn}", "end")
        return response


def make_answer(log: Log, turns: int) -> Callable[[durably.Context], Awaitable[str]]:
    async def needs_approval(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
        return bool(arguments["number"])

    @function_tool(needs_approval=needs_approval)
    async def charge(turn: int, number: int) -> int:
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "begin")
        await asyncio.sleep(0)
        log.note(2 * turn + 1, f"charge-{turn}-{number}", "end")
        return number

    agent = Agent(name="storm", model=NotedModel(log, turns), tools=[charge])

    async def answer(ctx: durably.Context) -> str:
        return str((await DurableRunner.run(agent, "go")).final_output)

    return answer
