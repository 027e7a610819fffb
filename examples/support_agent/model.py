"""A model for the example that needs no network: it understands numbers and the word "refund"."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel


async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    results = [part for part in last.parts if isinstance(part, ToolReturnPart)]
    asked = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    text = str(asked[-1].content)
    number = re.search(r"\d+", text)
    if number is None:
        words = "Hello! Which order is it about? Please give me its number."
    elif not results:
        yield {0: DeltaToolCall("find_order", json.dumps({"number": int(number[0])}), tool_call_id=f"{len(messages)}")}
        return
    elif results[-1].tool_name == "find_order" and "refund" in text.lower():
        arguments = {"order": int(number[0]), "euros": 12}
        yield {0: DeltaToolCall("refund", json.dumps(arguments), tool_call_id=f"{len(messages)}")}
        return
    else:
        words = f"Here is what I found: {results[-1].content}."
    for word in words.split():
        await asyncio.sleep(0.05)
        yield f"{word} "


scripted_model = FunctionModel(stream_function=answer)
