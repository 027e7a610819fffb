"""Streams without a server: policies, tokens, ends, comments, engines that do not offer them."""

import asyncio
import datetime as dt
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import fastapi
import flask
import httpx
import msgspec
import pytest
import starlette.applications
import tornado.web

import durably
import durably.aws_lambda
import durably.digital_ocean
import durably.fast_api
import durably.flask
import durably.starlette
import durably.tornado
from durably import browser_streams
from durably.browser_streams import StreamRequest, StreamResponse, Streams, encode
from durably.errors import FunctionConfigInvalidError, NotSupportedError
from durably.protocol.channels import NewMessage
from durably.streams import StreamMessage
from durably.testing import TestEngine

from ..fake_engine import serving_fake_engine

APPS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "starlette": (starlette.applications.Starlette, durably.starlette.streams),
    "fast_api": (fastapi.FastAPI, durably.fast_api.streams),
    "flask": (lambda: flask.Flask(__name__), durably.flask.streams),
    "tornado": (tornado.web.Application, durably.tornado.streams),
}


def make(client: durably.Client, **options: Any) -> Streams:
    given: dict[str, Any] = {"authorize": None, "allow_anonymous": True, "max_listeners": None, "caller": "streams"}
    return Streams(client, "/streams", **given | options)


async def ask(streams: Streams, query: str, **headers: str) -> StreamResponse:
    return await streams.handle(StreamRequest(method="GET", query=query, headers=headers))


async def read(response: StreamResponse) -> AsyncGenerator[bytes, None]:
    assert response.stream is not None, response
    async with aclosing(response.stream()) as chunks:
        async for chunk in chunks:
            yield chunk


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[durably.Client]:
    engine = durably.Embedded(tmp_path / "durably.db")
    async with engine.running():
        yield durably.Client(app_id="shop", engine=engine, is_production=False)


@pytest.mark.parametrize("framework", APPS)
def test_streams_need_a_policy(framework: str) -> None:
    make_app, streams = APPS[framework]
    client = durably.Client(app_id="shop", is_production=False)
    for options in ({}, {"authorize": lambda request, run_id: True, "allow_anonymous": True}, {"authorize": "no"}):
        with pytest.raises(FunctionConfigInvalidError, match=r"streams.*authorize="):
            streams(make_app(), client, **options)
    with pytest.raises(FunctionConfigInvalidError, match="takes a durably"):
        streams(make_app(), "shop", allow_anonymous=True)
    with pytest.raises(FunctionConfigInvalidError, match=r"streams\(path=…\)"):
        streams(make_app(), client, "https://example.com/", allow_anonymous=True)
    with pytest.raises(ValueError, match=r"streams\(max_listeners=…\)"):
        streams(make_app(), client, allow_anonymous=True, max_listeners=0)


def test_platforms_that_buffer_cannot_stream() -> None:
    client = durably.Client(app_id="shop", is_production=False)
    for platform, name in ((durably.digital_ocean, "DigitalOcean Functions"), (durably.aws_lambda, "AWS Lambda")):
        with pytest.raises(NotSupportedError, match=f"^{name} cannot stream.*stream_token"):
            platform.streams(client, allow_anonymous=True)


async def test_an_error_of_the_framework_is_the_answer() -> None:
    def ask_who(request: fastapi.Request, run_id: str) -> bool:
        raise fastapi.HTTPException(401, f"Who wants {run_id}?")

    client = durably.Client(app_id="shop", is_production=False)
    app = fastapi.FastAPI()
    durably.fast_api.streams(app, client, authorize=ask_who)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as http:
        answer = await http.get("/streams?channel=a")
    assert (answer.status_code, answer.json()) == (401, {"detail": "Who wants a?"})

    async def to_login(request: flask.Request, run_id: str) -> bool:
        flask.abort(flask.redirect(f"/login?user={flask.session.get('user')}"))

    flask_app = flask.Flask(__name__)
    flask_app.secret_key = "for tests only"
    durably.flask.streams(flask_app, client, authorize=to_login)
    redirect = flask_app.test_client().get("/streams?channel=a")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "/login?user=None")


async def test_a_list_with_a_run_that_is_unknown_is_refused(client: durably.Client) -> None:
    unknown = "01J0000000ABCDEFGHJKMNPQRS"
    response = await ask(make(client), f"channel=orders&channel={unknown}&channel=user-{unknown}")
    assert response.status_code == 404
    assert unknown in response.body.decode()
    assert (await ask(make(client), f"channel=orders&channel=user-{unknown}")).status_code == 200


async def test_a_stream_ends_with_its_token(client: durably.Client) -> None:
    streams = make(client)
    token = client.stream_token("orders", expires=dt.timedelta(seconds=2))
    async with asyncio.timeout(10):
        assert [chunk async for chunk in read(await ask(streams, f"token={token}"))] == [b"retry: 1000\n\n"]
    assert (await ask(streams, f"token={token}")).status_code == 401


async def test_tokens_of_one_engine_are_valid_in_its_processes_only(
    client: durably.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(client.engine, durably.Embedded)
    token = client.stream_token("orders")
    for path, status in ((client.engine.path, 200), (tmp_path / "other.db", 401)):
        engine = durably.Embedded(path)
        async with engine.running():
            other = durably.Client(app_id="another-app", engine=engine, is_production=False)
            assert (await ask(make(other), f"token={token}")).status_code == status
    assert not caplog.records or "signing key" not in caplog.text
    keys = {"signing_key": "signkey-test-" + "ab" * 32, "is_production": True, "engine": "http://127.0.0.1:9"}
    signed = durably.Client(app_id="shop", **keys).stream_token("orders")
    assert (await ask(make(durably.Client(app_id="shop", **keys)), f"token={signed}")).status_code == 503
    unsigned = durably.Client(app_id="shop", is_production=False, engine="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "durably"):
        assert (await ask(make(unsigned), f"token={unsigned.stream_token('orders')}")).status_code == 503
    assert "valid only in the process" in caplog.text
    for response_of in (signed, token):
        assert response_of not in caplog.text


@pytest.mark.parametrize("arguments", [(3,), (["a", 1],), ("a", "$run"), ({"a": 1},)])
def test_wrong_arguments_of_a_token_are_refused(arguments: Any) -> None:
    with pytest.raises(TypeError, match="stream_token"):
        durably.Client(app_id="shop", is_production=False).stream_token(*arguments)


async def test_a_quiet_stream_sends_comments(client: durably.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_streams, "KEEP_ALIVE_SECONDS", 0.01)
    chunks = read(await ask(make(client), "channel=orders"))
    assert [await anext(chunks) for _ in range(3)] == [b"retry: 1000\n\n", b":\n\n", b":\n\n"]
    assert isinstance(client.engine, durably.Embedded)
    await client.engine.publish_messages([NewMessage("orders", "new", msgspec.Raw(b"1"))])
    while (chunk := await anext(chunks)) == b":\n\n":
        pass
    assert b'"topic":"new","data":1' in chunk
    await chunks.aclose()


async def test_a_stream_that_is_never_begun_or_is_ended_frees_its_place(client: durably.Client) -> None:
    streams = make(client, max_listeners=1)
    response = await ask(streams, "channel=orders")
    assert (await ask(streams, "channel=orders")).status_code == 503
    del response
    gc.collect()
    response = await ask(streams, "channel=orders")
    chunks = read(response)
    await anext(chunks)
    response.end()
    assert [chunk async for chunk in chunks] == []  # without the id of an end, so that the browser comes back
    assert (await ask(streams, "channel=orders")).status_code == 200


async def test_runs_of_a_test_engine_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    client = durably.Client(app_id="shop", is_production=False)

    @client.create_function(fn_id="talk", trigger=durably.TriggerEvent(event="talk"))
    async def talk(ctx: durably.Context) -> None:
        ctx.progress(0.5, "half")
        ctx.publish("words", "hello")

    async with TestEngine(client, [talk]) as engine:
        run = await engine.send(durably.Event(name="talk"))
        text = b"".join(
            [chunk async for chunk in read(await ask(make(client), f"token={client.stream_token(run.id)}"))]
        )
    for part in (b"event: progress", b'"fraction":0.5', b'"hello"', b'"status":"Completed"'):
        assert part in text
    assert text.endswith(b"id: end\n\n")
    assert not caplog.records


async def test_an_engine_without_channels_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serving_fake_engine() as engine:
        client = durably.Client(app_id="shop", engine=engine.origin, is_production=False)
        response = await ask(make(client), "channel=orders")
    assert response.status_code == 501
    assert engine.origin not in response.body.decode()
    assert engine.origin in caplog.text


def test_line_ends_of_a_published_json_stay_in_its_event() -> None:
    json = msgspec.Raw(b'{"a":\r\n\n [1,\n2], "id: 5": "x\\n\\ndata: y"}')
    message = StreamMessage("7", "a\nchannel", "a\r\ntopic", json, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    lines = encode(message).split(b"\n")
    assert [line.partition(b":")[0] for line in lines] == [b"id", b"event", b"data", b"", b""]
    data = msgspec.json.decode(lines[2].removeprefix(b"data: "))
    assert data["data"] == {"a": [1, 2], "id: 5": "x\n\ndata: y"}
    assert (data["channel"], data["topic"]) == ("a\nchannel", "a\r\ntopic")
