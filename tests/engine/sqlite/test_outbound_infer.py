"""``step.ai.infer``: where the key goes, and which answers are failures."""

import json
from typing import Any

import pytest

from durably.engine.model.requests import OutboundClient, OutboundError


@pytest.mark.parametrize(
    ("format", "headers", "name", "value"),
    [
        ("openai-chat", {}, "authorization", "Bearer sk-1234"),
        ("grok", {}, "authorization", "Bearer sk-1234"),
        (None, {}, "authorization", "Bearer sk-1234"),
        ("anthropic", {"anthropic-version": "2023-06-01"}, "x-api-key", "sk-1234"),
        ("bedrock", {}, "authorization", "sk-1234"),
        ("openai-chat", {"Authorization": "Custom x"}, "authorization", "Custom x"),
    ],
)
async def test_infer_puts_the_key_where_the_format_has_it(
    server: Any, outbound: OutboundClient, format: str | None, headers: dict[str, str], name: str, value: str
) -> None:
    server.respond(text='{"choices": []}', content_type="application/json")
    opts = {
        "type": "step.ai.infer",
        "url": f"{server.url}/chat",
        "headers": headers,
        "auth_key": "sk-1234",
        "format": format,
        "body": {"model": "m"},
    }
    assert await outbound.infer(opts) == {"choices": []}
    request = server.requests[0]
    assert request.method == "POST"
    assert request.headers.getall(name) == [value]
    assert request.headers["content-type"] == "application/json"
    assert json.loads(server.bodies[0]) == {"model": "m"}
    assert all(request.headers[header] == text for header, text in headers.items())
    sent = {sent.decode() for sent, _ in request.raw_headers}
    assert sent >= {*headers, "Content-Type", "User-Agent"}
    assert name in headers or name.title() in sent


@pytest.mark.parametrize("query", ["", "?key=from-url"])
async def test_infer_puts_the_key_of_gemini_into_the_query_once(
    server: Any, outbound: OutboundClient, query: str
) -> None:
    opts = {"url": f"{server.url}/m:generateContent{query}", "auth_key": "sk-1234", "format": "gemini", "body": {}}
    await outbound.infer(opts)
    assert server.requests[0].query.getall("key") == ["from-url" if query else "sk-1234"]
    assert "authorization" not in server.requests[0].headers


async def test_infer_without_a_key(server: Any, outbound: OutboundClient) -> None:
    await outbound.infer({"url": server.url, "auth_key": "", "format": "openai-chat", "body": {}})
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("status", "retriable"),
    [(400, False), (401, False), (404, False), (408, True), (429, True), (500, True), (529, True)],
)
async def test_infer_fails_unless_the_status_is_success(
    server: Any, outbound: OutboundClient, status: int, retriable: bool
) -> None:
    server.respond(status=status, text='{"error": "no credit"}')
    with pytest.raises(OutboundError, match=rf"status {status}: .*no credit") as caught:
        await outbound.infer({"url": server.url, "body": {}})
    assert (caught.value.name, caught.value.retriable, caught.value.status) == ("AIGatewayError", retriable, status)


@pytest.mark.parametrize("body", ["<html>", "", "[" * 100_000])
async def test_infer_refuses_an_answer_that_is_not_json(server: Any, outbound: OutboundClient, body: str) -> None:
    server.respond(text=body)
    with pytest.raises(OutboundError, match="was not answered with JSON"):
        await outbound.infer({"url": server.url, "body": {}})
