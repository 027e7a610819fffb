"""Answers of AI models that providers stream: the request, the text as it comes, and the whole answer at its end.

A provider sends events (server-sent events with JSON). An engine publishes their text, and a step gets the answer that
the provider would have sent without streaming. This module does no I/O.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec
from yarl import URL

from durably.protocol.call import decode

_GATHER_SECONDS = 0.05
"""Seconds for which text is gathered after a message, because a channel keeps a limited number of messages."""

_MAX_TEXT = 50_000
"""Characters of a message."""

_json = msgspec.json.Decoder()


class StreamFailedError(Exception):
    """The provider reports an error in its stream, or the stream is not in its format."""


class EventReader:
    """Splits a stream into events, and decodes their data. Sizes are in bytes."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self.has_ended = False
        """The stream has its own end, ``[DONE]``."""

    def read(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that a chunk completes. An empty chunk ends the stream. Raises ``StreamFailedError``."""
        *lines, self._rest = (self._rest + (chunk or b"\n\n")).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > self._max_event_bytes:
            raise StreamFailedError(f"has an event of more than {self._max_event_bytes} bytes")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                if data == b"[DONE]":
                    self.has_ended = True
                else:
                    yield _decode(data)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        event = decode(_json, data)
    except msgspec.DecodeError:
        event = None
    if not isinstance(event, dict):
        raise StreamFailedError("has an event that is not a JSON object")
    if event.get("error"):
        raise StreamFailedError(f"reports an error: {msgspec.json.encode(event['error']).decode()}")
    return event


class _Text(list[str]):
    """A string in pieces. To append to a string that a dictionary holds would copy it each time."""


def _joined(value: Any) -> Any:
    """A value with its texts as strings, and without the marks of streams."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(each) for name, each in value.items()}
    return [_joined(each) for each in value] if isinstance(value, list) else value


class StreamedAnswer:
    """The answer of a provider, as far as its events have come.

    ``size`` is the approximate number of its bytes.
    """

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.size = 0
        self.is_complete = False

    @staticmethod
    def prepare(url: URL, body: dict[str, Any]) -> URL:
        """Ask for a stream in ``body``. Returns the URL to use."""
        body["stream"] = True
        return url

    def add(self, event: Mapping[str, Any]) -> str:
        """Add an event. Returns the text that the model has written in it."""
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        """The whole answer, as if it had not been streamed."""
        answer: dict[str, Any] = _joined(self.answer)
        return answer

    def _append(self, into: dict[str, Any], name: str, text: Any) -> None:
        if isinstance(text, str):
            before = into.get(name)
            if not isinstance(before, _Text):
                before = into[name] = _Text([before] if isinstance(before, str) else [])
            before.append(text)
            self.size += len(text)


class _OpenAIAnswer(StreamedAnswer):
    """Chunks of chat completions, each with a ``delta`` of the message of a choice."""

    _NAMES: ClassVar = frozenset({"role", "id", "type", "name"})
    """Strings that come whole."""

    @staticmethod
    def prepare(url: URL, body: dict[str, Any]) -> URL:
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
        return url

    def add(self, event: Mapping[str, Any]) -> str:
        choices: dict[int, dict[str, Any]] = self.answer.setdefault("choices", {})
        self.answer |= {name: value for name, value in event.items() if name != "choices" and value is not None}
        text = ""
        for chunk in event.get("choices") or ():
            index = chunk.get("index", 0)
            if index not in choices:
                choices[index] = {"index": index, "message": {"role": "assistant", "content": None}}
            choice, delta = choices[index], chunk.get("delta") or {}
            self._merge(choice["message"], delta)
            self._merge(choice, {name: value for name, value in chunk.items() if name not in ("index", "delta")})
            if index == 0:
                text += delta.get("content") or ""
        self.is_complete = bool(choices) and all(each.get("finish_reason") for each in choices.values())
        return text

    def finish(self) -> dict[str, Any]:
        choices = [choice for _, choice in sorted(self.answer["choices"].items())]
        for choice in choices:
            for call in choice["message"].get("tool_calls") or ():
                call.pop("index", None)
        answer: dict[str, Any] = _joined(self.answer | {"object": "chat.completion", "choices": choices})
        return answer

    def _merge(self, into: dict[str, Any], delta: Mapping[str, Any]) -> None:
        """Add a delta: strings are appended, and items of lists are merged by their ``index``."""
        for name, value in delta.items():
            before = into.get(name)
            if isinstance(value, str) and name not in self._NAMES and name != "finish_reason":
                self._append(into, name, value)
            elif isinstance(value, dict):
                known = into[name] = before if isinstance(before, dict) else {}
                self._merge(known, value)
            elif isinstance(value, list):
                items = into[name] = before if isinstance(before, list) else []
                self._merge_items(items, value)
            elif value is not None or name not in into:
                into[name] = value

    def _merge_items(self, items: list[Any], added: list[Any]) -> None:
        for item in added:
            index = item.get("index") if isinstance(item, dict) else None
            known = next((each for each in items if index is not None and each.get("index") == index), None)
            if known is None:
                known = {"index": index} if index is not None else {}
                items.append(known if isinstance(item, dict) else item)
                self.size += 100
            if isinstance(item, dict):
                self._merge(known, item)


class _AnthropicAnswer(StreamedAnswer):
    """Events of messages: the message, blocks of its content, and their deltas."""

    def add(self, event: Mapping[str, Any]) -> str:
        match event.get("type"):
            case "message_start":
                self.answer = dict(event["message"])
                self.answer["content"] = []
            case "content_block_start":
                self.answer["content"].append(dict(event["content_block"]))
                self.size += 100
            case "content_block_delta":
                return self._add_delta(self.answer["content"][event["index"]], event["delta"])
            case "content_block_stop":
                block = self.answer["content"][event["index"]]
                if isinstance(written := block.pop("partial_json", None), _Text) and (text := "".join(written)):
                    block["input"] = decode(_json, text.encode())
            case "message_delta":
                self.answer |= event["delta"]
                known = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
                self.answer["usage"] = {**(self.answer.get("usage") or {}), **known}
            case "message_stop":
                self.is_complete = True
        return ""

    def _add_delta(self, block: dict[str, Any], delta: Mapping[str, Any]) -> str:
        for name, value in delta.items():
            if name == "citation":
                block["citations"] = [*(block.get("citations") or ()), value]
                self.size += 100
            elif name != "type":
                self._append(block, name, value)
        text = delta.get("text")
        return text if isinstance(text, str) else ""


class _GeminiAnswer(StreamedAnswer):
    """Chunks that have the shape of an answer, with some more parts of each candidate."""

    @staticmethod
    def prepare(url: URL, body: dict[str, Any]) -> URL:
        path = url.path.removesuffix(":generateContent") + ":streamGenerateContent"
        return url.with_path(path).with_query({**url.query, "alt": "sse"})

    def add(self, event: Mapping[str, Any]) -> str:
        candidates: dict[int, dict[str, Any]] = self.answer.setdefault("candidates", {})
        self.answer |= {name: value for name, value in event.items() if name != "candidates"}
        text = ""
        for chunk in event.get("candidates") or ():
            index = chunk.get("index", 0)
            candidate = candidates.setdefault(index, {"content": {"parts": []}})
            content = chunk.get("content") or {}
            candidate |= {name: value for name, value in chunk.items() if name != "content"}
            candidate["content"] |= {name: value for name, value in content.items() if name != "parts"}
            for part in content.get("parts") or ():
                self._add_part(candidate["content"]["parts"], part)
                if index == 0 and not part.get("thought"):
                    text += part.get("text") or ""
        is_blocked = bool((event.get("promptFeedback") or {}).get("blockReason"))
        is_over = bool(candidates) and all(each.get("finishReason") for each in candidates.values())
        self.is_complete = self.is_complete or is_blocked or is_over
        return text

    def finish(self) -> dict[str, Any]:
        candidates = [candidate for _, candidate in sorted(self.answer["candidates"].items())]
        answer: dict[str, Any] = _joined(self.answer | {"candidates": candidates})
        return answer

    def _add_part(self, parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
        last = parts[-1] if parts else {}
        continues = "text" in last and "text" in part and last.get("thought") == part.get("thought")
        if continues and part.keys() <= {"text", "thought"}:
            self._append(last, "text", part["text"])
        else:
            parts.append(dict(part))
            self.size += len(part.get("text") or "") + 100


_FORMATS: dict[str, type[StreamedAnswer]] = {
    "openai-chat": _OpenAIAnswer,
    "anthropic": _AnthropicAnswer,
    "gemini": _GeminiAnswer,
}


def find_format(opts: Mapping[str, Any]) -> type[StreamedAnswer]:
    """The format of the answer to a step's request. Raises ``ValueError`` if its streams cannot be read."""
    found = _FORMATS.get(str(opts.get("format")))
    if found is None:
        raise ValueError(
            f"answers in the format {str(opts.get('format'))[:40]!r} cannot be streamed, only those in "
            f"{', '.join(sorted(_FORMATS))}: leave out stream"
        )
    return found


class TextPublisher:
    """Publishes the text of one attempt at a step, in few messages. Use it on one event loop.

    The first message of an attempt has ``is_first``: the text of an attempt before it does not count.
    """

    def __init__(self, step: str, publish: Callable[[Any], None]) -> None:
        self._step = step
        self._publish = publish
        self._text: list[str] = []
        self._is_first = True
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        self._text.append(text)
        if self._timer is None:
            self._send()

    def close(self) -> None:
        """Publish the rest."""
        if self._timer is not None:
            self._timer.cancel()
        self._send()
        if self._timer is not None:
            self._timer.cancel()

    def _send(self) -> None:
        self._timer = None
        text, self._text = "".join(self._text), []
        for start in range(0, len(text), _MAX_TEXT):
            message = {"step": self._step, "text": text[start : start + _MAX_TEXT]}
            self._publish(message | {"is_first": True} if self._is_first else message)
            self._is_first = False
        if text:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._send)
