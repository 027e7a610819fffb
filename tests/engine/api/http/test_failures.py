"""Requests that no handler takes, and handlers that break."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from durably.engine.api.http import application, requests
from durably.protocol.engine_errors import DatabaseUnavailableError

from .conftest import EVENT_KEY, Harness


async def test_unknown_paths_and_methods_answer_in_json(dev: Harness) -> None:
    status, answer = await dev.json("GET", "/nothing/here")
    assert (status, answer["error"]) == (404, "there is nothing at /nothing/here")
    status, answer = await dev.json("PUT", "/health")
    assert (status, "GET" in answer["error"]) == (405, True)


async def test_a_websocket_needs_an_upgrade(cloud: Harness, caplog: pytest.LogCaptureFixture) -> None:
    for headers in ({}, {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "7"}):
        status, answer = await cloud.json("GET", "/v0/connect", headers=headers)
        assert (status, answer["status"]) == (400, 400)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_failure_of_the_engine_is_logged_without_the_event_key(
    cloud: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*args: object, **options: object) -> list[str]:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(cloud.engine, "accept_events", break_down)
    status, answer = await cloud.json("POST", f"/e/{EVENT_KEY}", json={"name": "a"})
    assert status == 500
    assert "disk" not in answer["error"]
    assert "POST /e/{key} failed" in caplog.text
    assert "the disk is gone" in caplog.text
    assert EVENT_KEY not in caplog.text


async def test_a_full_disk_is_logged_but_not_with_each_request(
    cloud: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: object, **options: object) -> list[str]:
        raise DatabaseUnavailableError("the disk is full")

    monkeypatch.setattr(cloud.engine, "accept_events", refuse)
    for _ in range(3):
        status, answer = await cloud.json("POST", f"/e/{EVENT_KEY}", json={"name": "a"})
        assert (status, answer["error"]) == (503, "the disk is full")
    assert caplog.text.count("refused with 503, so that they are sent again: the disk is full") == 1


async def test_bodies_have_a_limit(dev: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> object:
        for _ in range(40):
            yield b" " * 1024 * 1024

    status, answer = await dev.json("POST", "/e/any", data=endless())
    assert status == 413
    assert "larger than" in answer["error"]


async def test_a_closed_engine_answers_503(dev: Harness) -> None:
    await dev.engine.close()
    status, answer = await dev.json("POST", "/e/any", json={"name": "a"})
    assert (status, answer["status"]) == (503, 503)


async def test_a_body_that_does_not_fit_its_headers_is_refused(dev: Harness, caplog: pytest.LogCaptureFixture) -> None:
    for encoding, status in (("gzip", 400), ("deflate", 400), ("br", 415)):
        answer = await dev.json("POST", "/e/any", data=b'{"name": "a"}', headers={"content-encoding": encoding})
        assert (answer[0], "content-encoding" in answer[1]["error"]) == (status, True)
    lines = ("POST /e/any HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", "", "zz", "", "")
    async with connected(dev.server.origin) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        assert b" 400 " in await reader.readline()
    await dev.server.close()  # Its connections have ended.
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@contextlib.asynccontextmanager
async def connected(origin: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = origin.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_packed_body_is_unpacked_up_to_the_limit(
    dev: Harness, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = {"content-encoding": "deflate" if pack is zlib.compress else "gzip"}
    body = b'{"name": "a"}'
    assert (await dev.json("POST", "/e/any", data=pack(body), headers=encoding))[0] == 200
    status, answer = await dev.json("POST", "/e/any", data=pack(body)[:-1], headers=encoding)
    assert (status, "content-encoding" in answer["error"]) == (400, True)
    monkeypatch.setattr(requests.read_body, "__defaults__", (10_000,))
    status, answer = await dev.json("POST", "/e/any", data=pack(body + b" " * 10_000), headers=encoding)
    assert (status, "when it is decompressed" in answer["error"]) == (413, True)


@pytest.mark.parametrize("path", ["/e/unknown-key", "/fn/register", "/nothing"])
async def test_a_request_that_is_refused_is_not_unpacked(
    cloud: Harness, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A megabyte may unpack to a gigabyte. Here, unpacking would fail, and log it."""
    async with cloud.http.post(path, data=b"x" * 200_000, headers={"content-encoding": "gzip"}) as response:
        assert response.status == 401
    assert await cloud.json("GET", "/health")
    await cloud.server.close()
    assert "a request's body did not match its headers" not in caplog.text


async def test_the_log_quotes_nothing_of_an_unreadable_request(
    cloud: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(cloud.server.origin) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"POST /e/{EVENT_KEY} not HTTP\r\n\r\n".encode())
        assert b" 400 " in await reader.read()
    assert "a request was not HTTP, and was refused" in caplog.text
    assert EVENT_KEY not in caplog.text


async def test_only_the_expectation_of_100_continue_is_met(dev: Harness) -> None:
    request = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\nExpect: {}\r\n\r\n"
    for path in ("/e/any", "/nowhere", "/health"):
        for expectation, status in (("100-continue", b" 100 "), ("cake", b" 417 "), ("Käse", b" 417 ")):
            async with connected(dev.server.origin) as (reader, writer):
                writer.write(request.format(path, expectation).encode("latin-1"))
                assert status in await reader.readline()


async def test_failing_disk_answers_503(dev: Harness) -> None:
    connection = dev.engine._runtime._connection
    connection.execute("PRAGMA query_only = 1")
    status, answer = await dev.json("POST", "/e/any", json={"name": "a"})
    assert (status, "readonly" in answer["error"]) == (503, True)
    connection.execute("PRAGMA query_only = 0")
    await dev.send("a")


async def test_an_engine_without_its_database_answers_503_on_every_route(dev: Harness, tmp_path: Path) -> None:
    await dev.send("before")
    (tmp_path / "engine.db").unlink()
    status, answer = await dev.json("POST", "/e/any", json={"name": "after"})
    assert (status, "the database was deleted" in answer["error"]) == (503, True)
    await dev.engine.wait_closed()
    for method, path in [("POST", "/e/any"), ("GET", "/ready"), ("GET", "/v1/runs"), ("GET", "/nothing")]:
        status, answer = await dev.json(method, path, json={"name": "later"})
        assert (status, "the database was deleted" in answer["error"]) == (503, True)


@pytest.mark.parametrize(
    ("request_line", "header"),
    [
        ("POST /e/any", "x-run-id"),
        ("POST /e/any", "x-inngest-event-id-seed"),
        ("OPTIONS /e/any", "access-control-request-headers"),
    ],
)
async def test_a_header_that_is_not_utf_8_is_refused(
    dev: Harness, request_line: str, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"name":"a"}'
    head = f"{request_line} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    async with connected(dev.server.origin) as (reader, writer):
        writer.write(head.encode() + header.encode() + b": \xff\r\n\r\n" + body)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert "Traceback" not in caplog.text


async def test_a_client_that_leaves_within_a_body_is_not_a_failure(
    dev: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading, left = asyncio.Event(), asyncio.Event()

    async def read_body(request: web.Request) -> bytes:
        reading.set()
        try:
            return await requests.read_body(request)
        finally:
            left.set()

    monkeypatch.setattr(application, "read_body", read_body)
    async with connected(dev.server.origin) as (_, writer):
        writer.write(b"POST /e/any HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        await asyncio.wait_for(reading.wait(), 60)
        writer.transport.abort()
    await asyncio.wait_for(left.wait(), 60)
    status, _ = await dev.json("GET", "/health")
    assert status == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
