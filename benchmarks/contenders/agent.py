"""The agent that all contenders of the row run: a model that streams, and a tool that it calls until the last answer.

The model is a function of this process, and answers at once, so that what surrounds its calls is measured.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import RunContext

MODEL_CALLS = 20
WORDS = 10
"""Pieces in which an answer of the model is streamed."""
ANSWER = "word " * WORDS


async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    for _ in range(WORDS):
        yield "word "
    number = sum(isinstance(message, ModelResponse) for message in messages) + 1
    if number < MODEL_CALLS:
        yield {1: DeltaToolCall("find_order", f'{{"number":{number}}}', tool_call_id=f"call-{number}")}


async def find_order(number: int) -> str:
    return f"order {number}: 250 g of green tea"


async def consume(ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
    """Read the stream. What it would be sent to is not measured."""
    async for _ in events:
        pass


def make_agent(*capabilities: AbstractCapability[Any]) -> Agent[None, str]:
    model = FunctionModel(stream_function=answer)
    return Agent(model, name="support", capabilities=capabilities, tools=[find_order])
