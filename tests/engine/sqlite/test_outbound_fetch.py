"""``step.fetch``: what is sent, and what is handed back."""

import gzip
from typing import Any

import pytest
from aiohttp import web

from durably.engine.model.requests import OutboundClient, OutboundError


async def test_fetch_hands_the_answer_back(server: Any, outbound: OutboundClient) -> None:
    server.respond(
        status=404, text="nothing é", headers={"X-Kind": "test", "Set-Cookie": "a=1"}, content_type="text/plain"
    )
    answer = await outbound.fetch({"url": f"{server.url}/things?page=2", "method": "GET", "headers": {"accept": "*/*"}})
    assert answer["url"] == f"{server.url}/things?page=2"
    assert answer["status_code"] == 404
    assert answer["body"] == "nothing é"
    assert answer["headers"]["x-kind"] == "test"
    assert answer["headers"]["content-type"] == "text/plain; charset=utf-8"
    assert "content-length" not in answer["headers"]
    assert server.requests[0].path_qs == "/things?page=2"


@pytest.mark.parametrize(
    ("opts", "method", "body", "content_type"),
    [
        ({}, "GET", b"", None),
        ({"method": "post", "body": '{"a": 1}'}, "POST", b'{"a": 1}', "application/json"),
        ({"method": "PUT", "body": {"a": 1}}, "PUT", b'{"a":1}', "application/json"),
        ({"method": "POST", "body": "a=1&b=2"}, "POST", b"a=1&b=2", "text/plain; charset=utf-8"),
        ({"method": "POST", "body": "a=1", "headers": {"Content-Type": "x/y"}}, "POST", b"a=1", "x/y"),
        ({"method": "DELETE", "body": None}, "DELETE", b"", None),
    ],
)
async def test_fetch_sends_the_given_request(
    server: Any, outbound: OutboundClient, opts: Any, method: str, body: bytes, content_type: str | None
) -> None:
    await outbound.fetch({"url": server.url, **opts})
    assert server.requests[0].method == method
    assert server.bodies == [body]
    assert server.requests[0].headers.get("content-type") == content_type


async def test_headers_of_the_connection_are_the_engines(server: Any, outbound: OutboundClient) -> None:
    headers = {"Host": "internal", "Content-Length": "5", "Transfer-Encoding": "chunked", "X-Own": "1", "X-Null": None}
    await outbound.fetch({"url": server.url, "method": "POST", "body": "abc", "headers": headers})
    sent = server.requests[0].headers
    assert sent["host"] == server.url.removeprefix("http://")
    assert sent["x-own"] == "1"
    assert sent["user-agent"] == "durably"
    assert "x-null" not in sent
    assert server.bodies == [b"abc"]


async def test_user_information_in_the_url_becomes_a_header(server: Any, outbound: OutboundClient) -> None:
    answer = await outbound.fetch({"url": server.url.replace("://", "://me:pass%20word@")})
    assert server.requests[0].headers["authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert answer["url"] == f"{server.url}/"


async def test_url_is_handed_back_without_credentials(server: Any, outbound: OutboundClient) -> None:
    answer = await outbound.fetch({"url": f"{server.url}/a?api_key=hunter22&q=1"})
    assert server.requests[0].query["api_key"] == "hunter22"
    assert answer["url"] == f"{server.url}/a?api_key=***&q=1"


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_answers_without_a_body_have_no_body_field(server: Any, outbound: OutboundClient, status: int) -> None:
    server.respond(status=status)
    answer = await outbound.fetch({"url": server.url})
    assert answer["status_code"] == status
    assert "body" not in answer


async def test_packed_answers_are_unpacked(server: Any, outbound: OutboundClient) -> None:
    server.respond(body=gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"})
    answer = await outbound.fetch({"url": server.url, "headers": {"Accept-Encoding": "zstd"}})
    assert answer["body"] == "hello"
    assert "content-encoding" not in answer["headers"]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("é".encode("latin-1"), "text/plain; charset=latin-1", "é"),
        (b"\xff", "text/plain", "\ufffd"),
        ("é".encode(), "text/plain; charset=nonsense", "é"),
    ],
)
async def test_fetched_bodies_are_decoded_to_text(
    server: Any, outbound: OutboundClient, body: bytes, content_type: str, text: str
) -> None:
    server.respond(body=body, headers={"Content-Type": content_type})
    assert (await outbound.fetch({"url": server.url}))["body"] == text


async def test_cookies_are_not_kept_between_requests(server: Any, outbound: OutboundClient) -> None:
    server.respond(headers={"Set-Cookie": "session=1"})
    url = server.url.replace("127.0.0.1", "localhost")
    await outbound.fetch({"url": url})
    await outbound.fetch({"url": url})
    assert "cookie" not in server.requests[1].headers


async def test_redirect_within_an_origin_keeps_the_headers(server: Any, outbound: OutboundClient) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/a":
            return web.Response(status=307, headers={"Location": "/b"})
        return web.Response(text="arrived")

    server.answer = answer
    opts = {"url": f"{server.url}/a", "method": "POST", "body": "x", "headers": {"Authorization": "Bearer t0ken"}}
    assert (await outbound.fetch(opts))["body"] == "arrived"
    assert server.requests[1].headers["authorization"] == "Bearer t0ken"
    assert server.requests[1].method == "POST"
    assert server.bodies[1] == b"x"


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X-Api-Key", "X-Anything"])
async def test_redirect_to_another_origin_drops_credentials(
    server: Any, other: Any, outbound: OutboundClient, name: str
) -> None:
    server.respond(status=302, headers={"Location": other.url.replace("://", "://a:b@")})
    url = server.url.replace("://", "://me:secret@") if name == "Authorization" else server.url
    await outbound.fetch({"url": url, "headers": {name: "secret", "Accept": "text/x"}})
    assert name in server.requests[0].headers
    assert name not in other.requests[0].headers
    assert "authorization" not in other.requests[0].headers
    assert other.requests[0].headers["accept"] == "text/x"


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [(303, "POST", "GET"), (302, "POST", "GET"), (301, "PUT", "GET"), (302, "HEAD", "HEAD"), (308, "PUT", "PUT")],
)
async def test_method_after_a_redirect(
    server: Any, outbound: OutboundClient, status: int, method: str, then: str
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "/b"}) if request.path == "/a" else web.Response()

    server.answer = answer
    await outbound.fetch({"url": f"{server.url}/a", "method": method})
    assert server.requests[1].method == then


async def test_endless_redirect_fails(server: Any, outbound: OutboundClient) -> None:
    server.respond(status=302, headers={"Location": "/again"})
    with pytest.raises(OutboundError, match="redirected more than 20 times") as caught:
        await outbound.fetch({"url": server.url})
    assert not caught.value.retriable


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://a:99999/"])
async def test_redirect_to_another_scheme(server: Any, outbound: OutboundClient, location: str) -> None:
    server.respond(status=302, headers={"Location": location})
    with pytest.raises(OutboundError, match="a URL that is not http") as caught:
        await outbound.fetch({"url": server.url})
    assert not caught.value.retriable
