"""Types of durable agents. `make lint` checks it with mypy and pyright; nothing runs it."""

from dataclasses import dataclass
from typing import assert_type

from pydantic_ai import Agent, RunContext

import durably
from durably.integrations.pydantic_ai import Approval, DurableSteps

client = durably.Client(app_id="typing", is_production=False)


@dataclass
class Shop:
    name: str


agent = Agent(
    "openai:gpt-5",
    name="support",
    deps_type=Shop,
    output_type=int,
    capabilities=[DurableSteps[Shop](stream_to="agent", approval_timeout="2d")],
)


@agent.tool
async def stock(ctx: RunContext[Shop], product: str) -> int:
    return len(ctx.deps.name + product)


@client.create_function(fn_id="count", trigger=durably.TriggerEvent(event="never"))
async def count(ctx: durably.Context) -> int:
    result = await agent.run("How many are left?", deps=Shop("tea"))
    assert_type(result.output, int)
    question = await ctx.step.receive("approval", type=Approval)
    assert_type(question.data, Approval)
    return result.output


DurableSteps(topic="agent")  # type: ignore[call-arg]  # pyright: ignore
DurableSteps(stream_to=1)  # type: ignore[arg-type]  # pyright: ignore
Approval()  # type: ignore[call-arg]  # pyright: ignore
