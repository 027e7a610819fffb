"""Models of the OpenAI Agents SDK that follow a script, and keep a diary of their calls."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from agents import Model, ModelResponse, Usage, set_tracing_disabled
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

set_tracing_disabled(True)

Turn = list[ResponseFunctionToolCall | ResponseOutputMessage]


def say(text: str) -> Turn:
    content = ResponseOutputText(annotations=[], text=text, type="output_text")
    return [ResponseOutputMessage(id="m", content=[content], role="assistant", status="completed", type="message")]


def call(tool: str, call_id: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        arguments=json.dumps(arguments), call_id=call_id, name=tool, type="function_call", status="completed"
    )


class ScriptedModel(Model):
    """Answers with the first of its turns whose tools have not been called, whichever process asks."""

    def __init__(self, name: str, *turns: Turn, note: Callable[[str], None] | None = None) -> None:
        self.name = self.model = name
        self.turns = turns
        self.noted: list[str] = []
        self._note = note or self.noted.append

    def _turn(self, input: Any) -> Turn:
        items = [] if isinstance(input, str) else input
        done = {item.get("call_id") for item in items if item.get("type") == "function_call_output"}
        for number, turn in enumerate(self.turns):
            if not all(getattr(each, "call_id", None) in done for each in turn):
                self._note(f"{self.name} {number}")
                return turn
        raise AssertionError(f"{self.name} has no turn left")

    async def get_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> ModelResponse:
        usage = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
        return ModelResponse(output=list(self._turn(input)), usage=usage, response_id=None)

    async def stream_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        turn = self._turn(input)
        for item in turn:
            if isinstance(item, ResponseOutputMessage):
                for word in item.content[0].text.split(" "):  # type: ignore[union-attr]
                    yield ResponseTextDeltaEvent(
                        content_index=0,
                        delta=word,
                        item_id="m",
                        logprobs=[],
                        output_index=0,
                        sequence_number=0,
                        type="response.output_text.delta",
                    )
        usage = ResponseUsage(
            input_tokens=10,
            input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
            output_tokens=5,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=15,
        )
        response = Response(
            id="r",
            created_at=0,
            model=self.name,
            object="response",
            output=list(turn),
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
            usage=usage,
        )
        yield ResponseCompletedEvent(response=response, sequence_number=1, type="response.completed")
