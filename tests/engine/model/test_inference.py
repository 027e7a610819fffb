"""Answers that providers stream: the text as it comes, and the whole answer in the provider's other shape."""

import asyncio
import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from durably import Client, Context, Embedded, EngineSettings, Event, TriggerEvent, ai
from durably.comm import CommHandler
from durably.engine.core.inputs import MakeRequest
from durably.engine.model.requests import OutboundClient, OutboundError, perform
from durably.protocol.opcodes import Opcode
from durably.protocol.usage import ModelUsage, read_answer_usage
from durably.testing import TestEngine

from ..small_app import serving

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "gpt-5", "system_fingerprint": "fp"}


def chunk(delta: dict[str, Any], finish: str | None = None, **others: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish} | others], "usage": None}


def called(index: int, **function: str) -> dict[str, Any]:
    return {"index": index, "function": function}


OPENAI = [
    chunk(
        {"role": "assistant", "content": ""}, logprobs={"content": [{"token": "Grüß", "bytes": [1]}], "refusal": None}
    ),
    chunk({"content": "Grü"}),
    chunk({"content": "ße"}, logprobs={"content": [{"token": "e", "bytes": [2]}]}),
    chunk({"tool_calls": [{**called(0, name="find", arguments=""), "id": "t1", "type": "function"}]}),
    chunk({"tool_calls": [called(0, arguments='{"a"')]}),
    chunk({"tool_calls": [{**called(1, name="pay", arguments="{}"), "id": "t2", "type": "function"}]}),
    chunk({"tool_calls": [called(0, arguments=": 1}")]}),
    chunk({}, "tool_calls"),
    {**HEAD, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}},
]
OPENAI_ANSWER = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Grüße",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}},
                    {"id": "t2", "type": "function", "function": {"name": "pay", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
            "logprobs": {
                "content": [{"token": "Grüß", "bytes": [1]}, {"token": "e", "bytes": [2]}],
                "refusal": None,
            },
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
}


def block(index: int, kind: str, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}


def begun(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


ANTHROPIC = [
    {
        "type": "message_start",
        "message": {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 1},
        },
    },
    begun(0, type="thinking", thinking="", signature=""),
    block(0, "thinking_delta", thinking="Let me "),
    block(0, "thinking_delta", thinking="see"),
    block(0, "signature_delta", signature="sig"),
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    begun(1, type="text", text=""),
    block(1, "text_delta", text="Grü"),
    block(1, "text_delta", text="ße"),
    block(1, "citations_delta", citation={"type": "char_location"}),
    {"type": "content_block_stop", "index": 1},
    begun(2, type="tool_use", id="t1", name="find", input={}),
    block(2, "input_json_delta", partial_json=""),
    block(2, "input_json_delta", partial_json='{"a"'),
    block(2, "input_json_delta", partial_json=": 1}"),
    {"type": "content_block_stop", "index": 2},
    begun(3, type="tool_use", id="t2", name="now", input={}),
    {"type": "content_block_stop", "index": 3},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]
ANTHROPIC_ANSWER = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "Let me see", "signature": "sig"},
        {"type": "text", "text": "Grüße", "citations": [{"type": "char_location"}]},
        {"type": "tool_use", "id": "t1", "name": "find", "input": {"a": 1}},
        {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 9},
}


def part(*parts: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "index": 0, **others}]}


GEMINI = [
    part({"text": "hm", "thought": True}),
    part({"text": "Grü"}),
    part({"text": "ße"}, {"functionCall": {"name": "find"}}),
    part({"text": "!"}, finishReason="STOP")
    | {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 4}, "modelVersion": "gemini-3"},
]
GEMINI_ANSWER = {
    "candidates": [
        {
            "content": {
                "parts": [
                    {"text": "hm", "thought": True},
                    {"text": "Grüße"},
                    {"functionCall": {"name": "find"}},
                    {"text": "!"},
                ],
                "role": "model",
            },
            "index": 0,
            "finishReason": "STOP",
        }
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 4},
    "modelVersion": "gemini-3",
}


class Provider:
    """A server that answers with bytes, one ``step`` after the other."""

    def __init__(self) -> None:
        self.url = ""
        self.pieces: Iterable[bytes] = ()
        self.content_type = "text/event-stream"
        self.breaks = False
        self.pauses: set[int] = set()
        """The pieces before which it waits for ``go``."""
        self.go = asyncio.Event()
        self.requests: list[tuple[web.BaseRequest, dict[str, Any]]] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request, json.loads(await request.read())))
        breaks, go = self.breaks, self.go
        response = web.StreamResponse(headers={"content-type": self.content_type})
        await response.prepare(request)
        for number, piece in enumerate(self.pieces):
            if number in self.pauses:
                await go.wait()
            await response.write(piece)
        if breaks:
            assert request.transport is not None
            request.transport.abort()
        return response


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    async with serving(provider.answer) as provider.url:
        yield provider


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundClient]:
    client = OutboundClient(allow_private_addresses=True, timeout=20.0, max_bytes=10_000)
    yield client
    await client.close()


def events(found: Iterable[dict[str, Any]], *, name: str = "") -> bytes:
    head = f"event: {name}\r\n" if name else ""
    return "".join(f": comment\n{head}data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in found).encode()


def opts_of(provider: Provider, format: str, **others: Any) -> dict[str, Any]:
    path = "/models/gemini:generateContent" if format == "gemini" else "/chat"
    return {"url": provider.url + path, "format": format, "auth_key": "sk-1234", "body": {"model": "m"}} | others


FORMATS = {
    "openai-chat": (OPENAI, OPENAI_ANSWER, "Grüße", ModelUsage("gpt-5", 5, 4)),
    "anthropic": (ANTHROPIC, ANTHROPIC_ANSWER, "Grüße", ModelUsage("claude", 105, 9)),
    "gemini": (GEMINI, GEMINI_ANSWER, "Grüße!", ModelUsage("gemini-3", 5, 4)),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("format", FORMATS)
async def test_a_stream_makes_up_the_answer_that_the_provider_sends_otherwise(
    provider: Provider, outbound: OutboundClient, format: str, size: int
) -> None:
    sent, answer, text, usage = FORMATS[format]
    whole = events(sent, name="x") + (b"data: [DONE]\n\n" if format == "openai-chat" else b"")
    provider.pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    heard: list[str] = []
    assert await outbound.infer(opts_of(provider, format), heard.append) == answer
    assert "".join(heard) == text
    assert read_answer_usage(answer) == usage
    ((request, body),) = provider.requests
    assert request.headers["accept-encoding"] == "identity"
    if format == "gemini":
        assert request.path == "/models/gemini:streamGenerateContent"
        assert dict(request.query) == {"alt": "sse", "key": "sk-1234"}
        assert body == {"model": "m"}
    else:
        options = {"stream_options": {"include_usage": True}} if format == "openai-chat" else {}
        assert body == {"model": "m", "stream": True} | options


@pytest.mark.parametrize(
    ("format", "pieces", "fault"),
    [
        ("openai-chat", [events(OPENAI[:5])], "ended before the answer was complete"),
        ("openai-chat", [], "ended before the answer was complete"),
        ("openai-chat", [b"data: [DONE]\n\n"], "ended before the answer was complete"),
        ("anthropic", [events(ANTHROPIC[:-1])], "ended before the answer was complete"),
        ("gemini", [events(GEMINI[:-1])], "ended before the answer was complete"),
        ("openai-chat", [events([{"error": {"message": "overloaded sk-1234"}}])], "reports an error: .*overloaded"),
        ("anthropic", [events([{"type": "error", "error": {"type": "overloaded_error"}}])], "overloaded_error"),
        ("anthropic", [events([block(0, "text_delta", text="a")])], "not in the provider's format"),
        ("openai-chat", [b"data: {\n\n"], "not a JSON object"),
        ("openai-chat", [b"data: 1\n\n"], "not a JSON object"),
        ("openai-chat", [b"data: " + b"a" * 20_000], "an event of more than 10000 bytes"),
    ],
)
async def test_a_faulty_stream_is_tried_again(
    provider: Provider, outbound: OutboundClient, format: str, pieces: list[bytes], fault: str
) -> None:
    provider.pieces = pieces
    with pytest.raises(OutboundError, match=fault) as caught:
        await outbound.infer(opts_of(provider, format), lambda text: None)
    assert caught.value.retriable
    assert "sk-1234" not in str(caught.value)


async def test_other_failures_of_streams(provider: Provider, outbound: OutboundClient) -> None:
    provider.pieces = [events([chunk({"content": "a" * 1000})] * 20)]
    with pytest.raises(OutboundError, match="more than 10000 bytes") as caught:
        await outbound.infer(opts_of(provider, "openai-chat"), lambda text: None)
    assert not caught.value.retriable
    provider.pieces, provider.breaks = [events(OPENAI[:3])], True
    with pytest.raises(OutboundError, match="connection was lost") as caught:
        await outbound.infer(opts_of(provider, "openai-chat"), lambda text: None)
    assert caught.value.retriable
    provider.requests.clear()
    for opts, fault in (
        (opts_of(provider, "bedrock"), "'bedrock' cannot be streamed"),
        (opts_of(provider, "openai-chat", body="text"), "body must be an object"),
    ):
        with pytest.raises(OutboundError, match=fault) as caught:
            await outbound.infer(opts, lambda text: None)
        assert not caught.value.retriable
    assert not provider.requests


async def test_a_server_that_does_not_stream_answers_as_always(provider: Provider, outbound: OutboundClient) -> None:
    provider.content_type, provider.pieces = "application/json", [json.dumps(OPENAI_ANSWER).encode()]
    opts = opts_of(provider, "openai-chat", body={"stream_options": None})
    assert await outbound.infer(opts, lambda text: None) == OPENAI_ANSWER
    assert provider.requests[0][1] == {"stream": True, "stream_options": None}, "the app's own options are kept"


async def test_a_run_publishes_the_text_that_the_engine_reads(provider: Provider, tmp_path: Path) -> None:
    settings = EngineSettings(allow_private_addresses=True, backoff=lambda attempt, jitter: dt.timedelta(0))
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db", settings=settings))
    model = ai.OpenAI(auth_key="sk-1234", model="gpt-5", base_url=provider.url)
    calls = 0

    @client.create_function(fn_id="writer", trigger=TriggerEvent(event="go"))
    async def writer(ctx: Context) -> Any:
        nonlocal calls
        calls += 1
        return await ctx.step.ai.infer("draft", adapter=model, body={"messages": []}, stream=True, topic="draft")

    CommHandler(client=client, framework="test", functions=[writer])
    provider.pieces, provider.breaks, provider.pauses = [events(OPENAI[:2]), b": end\n"], True, {1}
    assert isinstance(client.engine, Embedded)
    async with client.engine.running():
        [event_id] = await client.send(Event(name="go"))
        [run] = await client.engine.event_runs(event_id)
        heard: list[Any] = []
        async for message in client.run(run.id).stream(topics=["draft"]):
            heard.append(message.data)
            go, provider.go = provider.go, asyncio.Event()
            if len(heard) == 1:
                provider.pieces, provider.breaks = [events(OPENAI[:2]), events(OPENAI[2:])], False
            go.set()
        assert await client.run(run.id).result() == OPENAI_ANSWER
        report = await client.engine.inspect_run(run.id)
    await client.engine.stop()
    first = {"step": "draft", "text": "Grü", "is_first": True}
    assert heard == [first, first, {"step": "draft", "text": "ße"}], "the text begins again with each attempt"
    assert calls == 2, "the app was not called while the engine read the stream"
    assert report is not None
    (step,) = report.steps
    assert (step.attempts, step.usage, report.run.usage) == (
        2,
        [ModelUsage("gpt-5", 5, 4)],
        [ModelUsage("gpt-5", 5, 4)],
    )


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"body": {"stream": True}}, "give ai.infer stream=True"),
        ({"body": {}, "stream": True, "topic": "$text"}, "leave out the \\$"),
        ({"body": {}, "stream": True, "topic": " "}, "topic must be a string that names it"),
    ],
)
async def test_streams_that_cannot_be_asked_for(options: dict[str, Any], fault: str) -> None:
    client = Client(app_id="shop", is_production=False)

    @client.create_function(fn_id="writer", trigger=TriggerEvent(event="go"), retries=0)
    async def writer(ctx: Context) -> Any:
        return await ctx.step.ai.infer("draft", adapter=ai.OpenAI(auth_key="sk-1234", model="gpt-5"), **options)

    async with TestEngine(client, [writer]) as engine:
        run = await engine.send(Event(name="go"))
        assert run.error is not None
        assert re.search(fault, run.error.message or "")


async def test_an_engine_without_messages_refuses_streams(provider: Provider, outbound: OutboundClient) -> None:
    request = MakeRequest("s", "draft", Opcode.AI_GATEWAY, 1, 0, 0, None)
    for stream, publish, name in (
        ({"topic": "text"}, None, "NotSupportedError"),
        ({"topic": "$run"}, print, "OpInvalidError"),
        (True, print, "OpInvalidError"),
    ):
        finished = await perform(outbound, request, opts_of(provider, "openai-chat", stream=stream), publish=publish)
        assert finished.failed
        assert not finished.is_retriable
        assert name in finished.memo.decode()
    assert not provider.requests
