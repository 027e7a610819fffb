"""A chat model of LangChain that follows a script."""

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class ScriptedModel(BaseChatModel):
    """Answers with one message after another, chosen by the number of answers in the history."""

    answers: list[AIMessage]
    noted: list[int] = []  # noqa: RUF012 (pydantic copies it)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        number = sum(isinstance(message, AIMessage) for message in messages)
        self.noted.append(number)
        update = {"usage_metadata": USAGE, "response_metadata": {"model_name": "scripted-1"}}
        return self.answers[number].model_copy(update=update)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        answer = self._answer(messages)
        for word in str(answer.content).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        calls = [
            {"name": each["name"], "args": json.dumps(each["args"]), "id": each["id"], "index": number}
            for number, each in enumerate(answer.tool_calls)
        ]
        last = AIMessageChunk(
            "", usage_metadata=USAGE, response_metadata=answer.response_metadata, tool_call_chunks=calls
        )
        yield ChatGenerationChunk(message=last)


def call(name: str, call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "args": arguments, "id": call_id, "type": "tool_call"}


def ask(*calls: Any) -> AIMessage:
    return AIMessage("", tool_calls=list(calls))
