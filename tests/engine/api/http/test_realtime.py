"""The protocol's realtime API: publish, tokens, and subscribers over WebSocket and server-sent events."""

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest

from durably.engine.api.http import realtime
from durably.protocol.channels import MAX_MESSAGE_BYTES
from durably.protocol.signatures import bearer_token

from .conftest import SIGNING_KEY, Harness

SIGNED = {"authorization": f"Bearer {bearer_token(SIGNING_KEY)}"}


async def publish(harness: Harness, body: Any, topic: str = "t", channel: str = "c", **headers: str) -> int:
    url = "/v1/realtime/publish"
    params = {"channel": channel, "topic": topic}
    async with harness.http.post(url, params=params, data=body, headers={**SIGNED, **headers}) as response:
        assert response.status != 200 or await response.read() == b""
        return response.status


async def token(harness: Harness, *topics: str) -> str:
    body = [{"channel": "c", "name": topic, "kind": "run"} for topic in topics]
    status, answer = await harness.json("POST", "/v1/realtime/token", json=body, headers=SIGNED)
    assert status == 201
    return str(answer["jwt"])


async def frame_of(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await socket.receive_str(timeout=10))
    return frame


async def test_a_socket_gets_the_messages_of_its_topics(cloud: Harness) -> None:
    path = f"/v1/realtime/connect?token={await token(cloud, 't')}"
    async with cloud.http.ws_connect(path, autoping=False) as socket:
        assert await publish(cloud, b'{"n": [1]}') == 200
        assert await publish(cloud, b"other", topic="other") == 200
        assert await publish(cloud, b"no json") == 200
        first, second = await frame_of(socket), await frame_of(socket)
        assert {name: first[name] for name in ("kind", "channel", "topic", "data")} == {
            "kind": "data",
            "channel": "c",
            "topic": "t",
            "data": {"n": [1]},
        }
        assert first["created_at"].endswith("Z")
        assert second["data"] == "no json"
        await socket.send_json({"kind": "sub", "data": "no token"})
        await socket.send_json({"kind": "unknown"})
        await socket.send_json({"kind": "sub", "data": await token(cloud, "other")})
        await socket.send_json({"kind": "unsub", "data": [{"channel": "c", "name": "t", "kind": "run"}]})
        await socket.ping()  # It is answered when the engine has read what was sent before.
        assert (await socket.receive(timeout=10)).type is aiohttp.WSMsgType.PONG
        await publish(cloud, b"1")
        await publish(cloud, b"2", topic="other")
        assert (await frame_of(socket))["data"] == 2


@pytest.mark.parametrize(
    "body",
    [b"NaN", b'{"a": -Infinity}', b"1e999", rb'"\ud83d"', b'"\xed\xa0\x80"', '"é"'.encode("utf-16"), b"\xef\xbb\xbf1"],
)
async def test_what_only_some_readers_take_as_json_is_published_as_text(cloud: Harness, body: bytes) -> None:
    async with cloud.http.ws_connect(f"/v1/realtime/connect?token={await token(cloud, 't')}") as socket:
        assert await publish(cloud, body) == 200
        frame = msgspec.json.decode(await socket.receive_str(timeout=10))
        assert frame["data"] == body.decode(errors="replace")
    # A process reads all of its channels with one request.
    status, batch = await cloud.json("POST", "/v1/messages/read", json={"channels": {"c": 0}}, headers=SIGNED)
    assert (status, [each["data"] for each in batch["data"]["messages"]]) == (200, [frame["data"]])


async def test_a_text_is_published_in_chunks_while_it_arrives(cloud: Harness) -> None:
    more = asyncio.Event()

    async def body() -> Any:
        yield "é".encode()[:1]
        yield "é".encode()[1:] + b"x" * 1500
        await more.wait()
        yield b"end"

    path = f"/v1/realtime/connect?token={await token(cloud, 't')}"
    async with cloud.http.ws_connect(path) as socket:
        publishing = asyncio.create_task(publish(cloud, body(), **{"content-type": "text/stream"}))
        frames = [await frame_of(socket) for _ in range(3)]
        more.set()
        frames += [await frame_of(socket) for _ in range(2)]
        assert await publishing == 200
    start, *chunks, end = frames
    assert (start["kind"], end["kind"]) == ("datastream-start", "datastream-end")
    assert {chunk["stream_id"] for chunk in chunks} == {start["data"]} == {end["data"]}
    assert all((chunk["kind"], chunk["channel"], chunk["topic"]) == ("chunk", "c", "t") for chunk in chunks)
    assert "".join(chunk["data"] for chunk in chunks) == "é" + "x" * 1500 + "end"


async def test_the_head_of_server_sent_events_ends_at_once(cloud: Harness) -> None:
    async with cloud.http.head(f"/v1/realtime/sse?token={await token(cloud, 't')}") as response:
        assert response.content_type == "text/event-stream"
    assert await publish(cloud, b"1") == 200  # on the same connection, on which nobody writes


async def test_server_sent_events(cloud: Harness) -> None:
    async with cloud.http.get("/v1/realtime/sse", params={"token": await token(cloud, "t")}) as response:
        assert response.headers["access-control-allow-origin"] == "*"
        assert await response.content.readuntil(b"\n\n") == b":\n\n"
        await publish(cloud, b"[1,\n2]")
        line = await response.content.readuntil(b"\n\n")
        assert json.loads(line.removeprefix(b"data: "))["data"] == [1, 2]


async def test_a_slow_subscriber_is_disconnected_with_the_reason(
    cloud: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "_GATHER_SECONDS", 0)
    large = msgspec.json.encode("x" * (MAX_MESSAGE_BYTES - 2))
    path = f"/v1/realtime/connect?token={await token(cloud, 't')}"
    async with cloud.http.ws_connect(path, max_msg_size=0) as socket:
        channels = cloud.engine.channels
        assert channels is not None
        async with asyncio.timeout(30):
            while channels.on_close:  # It does not read, until it is disconnected.
                assert await publish(cloud, large) == 200
            while (frame := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                assert len(frame.data) > MAX_MESSAGE_BYTES
        assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert frame.extra == "this subscriber reads too slowly"


async def test_access_and_sizes(cloud: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"channel": "c", "topic": "t"}
    for method, path in (("POST", "publish"), ("POST", "token"), ("GET", "connect"), ("GET", "sse")):
        status, _ = await cloud.json(method, f"/v1/realtime/{path}", params=params)
        assert status == 401, path
    good = await token(cloud, "t")
    monkeypatch.setattr(realtime, "TOKEN_SECONDS", -1)
    for bad in (f"{good}x", good.replace(".", ".x", 1), "..", await token(cloud, "t")):
        assert (await cloud.json("GET", "/v1/realtime/sse", params={"token": bad}))[0] == 401
    assert await publish(cloud, b"x" * (MAX_MESSAGE_BYTES + 1)) == 413
    assert await publish(cloud, b"x", topic="") == 400
    assert await publish(cloud, b"x", channel="c" * 513) == 400
    assert await publish(cloud, b"x", topic="$run") == 400
    status, _ = await cloud.json("POST", "/v1/realtime/token", json={"channel": "c"}, headers=SIGNED)
    assert status == 400
