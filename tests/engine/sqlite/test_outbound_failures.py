"""Failures of requests for steps, and whether they are retried."""

import asyncio
import gzip
from typing import Any

import pytest
from aiohttp import web

from durably.engine.model.requests import OutboundClient, OutboundError


async def large(request: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(b"0" * 2_000_000), headers={"Content-Encoding": "gzip"})


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"some")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("answer", "options", "message", "is_retriable"),
    [
        (large, {"max_bytes": 1_000_000}, "more than 1000000 bytes", False),
        (never, {"timeout": 0.05}, r"no complete answer within 0\.05 s", True),
        (half, {}, "connection was lost", True),
    ],
)
async def test_an_answer_that_is_not_complete(
    server: Any, answer: Any, options: dict[str, Any], message: str, is_retriable: bool
) -> None:
    server.answer = answer
    outbound = OutboundClient(allow_private_addresses=True, **options)
    with pytest.raises(OutboundError, match=message) as caught:
        await outbound.fetch({"url": server.url})
    assert caught.value.retriable is is_retriable
    await outbound.close()


async def test_an_answer_that_is_not_http(outbound: OutboundClient) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail ready\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OutboundError, match="failed: ") as caught:
            await outbound.fetch({"url": f"http://127.0.0.1:{port}"})
    assert caught.value.retriable


async def test_a_connection_that_fails_is_retried(outbound: OutboundClient, server: Any, serving: Any) -> None:
    async with serving() as gone:
        closed = gone.url
    for url, message in (
        (closed, "no connection: "),
        ("http://no-such-host.invalid/", "host was not found"),
        (server.url.replace("http:", "https:"), "did not agree on TLS"),
    ):
        with pytest.raises(OutboundError, match=message) as caught:
            await outbound.fetch({"url": url})
        assert (caught.value.retriable, caught.value.name) == (True, "GatewayError")


@pytest.mark.parametrize(
    ("opts", "fault"),
    [
        ({}, "no URL"),
        ({"url": 5}, "no URL"),
        ({"url": "/relative"}, "absolute one of http or https"),
        ({"url": "file:///etc/passwd"}, "absolute one of http or https"),
        ({"url": "http://[::1"}, "absolute one of http or https"),
        ({"url": "http://a:99999/"}, "absolute one of http or https"),
        ({"url": "http://127.0.0.1/", "method": "CONNECT"}, "'CONNECT' must be one of"),
        ({"url": "http://127.0.0.1/", "method": ["GET"]}, "must be one of"),
        ({"url": "http://127.0.0.1/", "headers": [1]}, "headers must be an object"),
        ({"url": "http://127.0.0.1/", "headers": {"a b": "1"}}, "header's name"),
        ({"url": "http://127.0.0.1/", "headers": {"a": "1\r\nb: 2"}}, "header 'a'"),
        ({"url": "http://127.0.0.1/", "headers": {"a": {"b": 1}}}, "header 'a'"),
        ({"url": "http://127.0.0.1/", "method": "POST", "body": "\ud800"}, "body is neither a string nor JSON"),
        ({"url": "http://\ud800/"}, "cannot be made"),
        ({"url": f"http://{'a' * 300}.com/"}, "cannot be made|failed"),
    ],
)
async def test_invalid_request_is_an_error(outbound: OutboundClient, opts: Any, fault: str) -> None:
    for send, more in ((outbound.fetch, {}), (outbound.infer, {"body": opts.get("body", {})})):
        if send == outbound.infer and "method" in opts and opts.get("body") is None:
            continue  # an inference is always a POST
        with pytest.raises(OutboundError, match=fault):
            await send({**opts, **more})


async def test_client_can_be_closed_unused_and_twice(server: Any) -> None:
    outbound = OutboundClient(allow_private_addresses=True)
    await outbound.close()
    server.respond(text="fine")
    assert (await outbound.fetch({"url": server.url}))["body"] == "fine"
    await outbound.close()
    await outbound.close()
    assert outbound._session is None
