"""An engine in production, an app, and an attacker between them who changes answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

import durably
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.runs import Run, RunStatus

from ...small_app import serving
from .conftest import EVENT_KEY, SIGNING_KEY, Harness, ServeFunctions, client_of

Answer = tuple[int, dict[str, str], bytes]
_HOP_HEADERS = {"content-length", "transfer-encoding", "connection", "content-encoding", "date", "server"}


class Meddler:
    """A proxy in front of an app. ``change`` changes the answers to calls."""

    def __init__(self, target: str) -> None:
        self.target, self.url = target, ""
        self.change: Callable[[Answer], Answer] = lambda answer: answer
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def handle(self, request: web.BaseRequest) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        self.requests.append((request.method, _kept(request.headers), await request.read()))
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, self.target, params=request.query, data=await request.read(), headers=headers
            ) as response,
        ):
            answer = response.status, _kept(response.headers), await response.read()
        if request.method == "POST":
            self.answers.append(answer)
            answer = self.change(answer)
        status, sent, body = answer
        return web.Response(status=status, headers=sent, body=body)


def _kept(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}


@asynccontextmanager
async def meddling(target: str) -> AsyncIterator[Meddler]:
    meddler = Meddler(target)
    async with serving(meddler.handle) as origin:
        meddler.url = f"{origin}/api/inngest"
        yield meddler


Between = Callable[..., Awaitable[Meddler]]


@pytest.fixture
async def between(cloud: Harness, serve_functions: ServeFunctions) -> AsyncIterator[Meddler]:
    """A proxy in front of a synced app, whose function returns the event's data, or raises it."""
    client = client_of(cloud, is_production=True, signing_key=SIGNING_KEY, event_key=EVENT_KEY)

    @client.create_function(fn_id="echo", trigger=durably.TriggerEvent(event="echo"), retries=0)
    async def echo(ctx: durably.Context) -> object:
        if error := ctx.event.data.get("error"):
            raise durably.NonRetriableError(str(error))
        return ctx.event.data

    async with meddling(await serve_functions(client, [echo])) as meddler:
        await cloud.server.discovery.sync(meddler.url)
        yield meddler


async def run(cloud: Harness, **data: Any) -> Run:
    status, body = await cloud.json("POST", f"/e/{EVENT_KEY}", json={"name": "echo", "data": data})
    assert status == 200
    return await cloud.ended((await cloud.run_of(body["ids"][0])).id)


async def test_unchanged_answer_is_used(cloud: Harness, between: Meddler) -> None:
    completed = await run(cloud, n=1)
    assert completed.status is RunStatus.COMPLETED
    failed = await run(cloud, error="boom")
    assert failed.status is RunStatus.FAILED
    assert b"boom" in bytes(failed.output or b"")


def _forge(answer: Answer) -> Answer:
    return 200, {"x-inngest-sdk": "py:v1", "x-inngest-no-retry": "true"}, b'"forged"'


def _succeed(answer: Answer) -> Answer:
    return 200, answer[1], answer[2]


@pytest.mark.parametrize("kind", ["call", "earlier call", "inspection", "sync"])
async def test_a_request_of_the_engine_that_is_sent_back_is_a_failed_attempt(
    cloud: Harness, between: Meddler, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Apps of other SDKs sign bodies only, with the key of the calls."""
    monkeypatch.setattr(SyncedFunction, "signs_whole_answers", False)
    assert (await run(cloud, n=1)).status is RunStatus.COMPLETED
    method = {"inspection": "GET", "sync": "PUT"}.get(kind, "POST")
    index = 0 if kind == "earlier call" else -1

    def echo(answer: Answer) -> Answer:
        headers, body = [(headers, body) for used, headers, body in between.requests if used == method][index]
        return 200, {"x-inngest-sdk": "js:v4", "x-inngest-signature": headers["x-inngest-signature"]}, body

    between.change = echo
    failed = await run(cloud, n=2)
    assert failed.status is RunStatus.FAILED
    error = msgspec.json.decode(failed.output or b"")
    assert error["name"] == "AnswerSignatureError"
    assert "request of the engine's own that was sent back" in error["message"]


def _plan(answer: Answer) -> Answer:
    return 206, answer[1], b"[]"


def _pass_for_another_sdk(answer: Answer) -> Answer:
    headers = {name: value for name, value in answer[1].items() if name != "x-durably-signature"}
    return 200, headers | {"x-inngest-sdk": "py:v0.5.19"}, answer[2]


@pytest.mark.parametrize("change", [_forge, _succeed, _plan, _pass_for_another_sdk])
async def test_a_changed_answer_is_a_failed_attempt(
    cloud: Harness, between: Meddler, change: Callable[[Answer], Answer]
) -> None:
    between.change = change
    failed = await run(cloud, error="boom")
    assert failed.status is RunStatus.FAILED
    error = msgspec.json.decode(failed.output or b"")
    assert error["name"] in ("AnswerNotSignedError", "AnswerSignatureError")
    assert "forged" not in error["message"] or "not signed" in error["message"]
    assert SIGNING_KEY[-32:] not in error["message"]


async def test_the_answer_of_another_run_is_a_failed_attempt(cloud: Harness, between: Meddler) -> None:
    assert (await run(cloud, n=1)).status is RunStatus.COMPLETED
    between.change = lambda answer: between.answers[0]
    failed = await run(cloud, n=2)
    assert failed.status is RunStatus.FAILED
    assert b"AnswerSignatureError" in bytes(failed.output or b"")


async def test_an_app_with_another_key_is_named_as_such(
    cloud: Harness, serve_functions: ServeFunctions, between: Meddler
) -> None:
    other = client_of(cloud, is_production=True, signing_key="signkey-test-" + "77" * 16, event_key=EVENT_KEY)

    @other.create_function(fn_id="echo", trigger=durably.TriggerEvent(event="echo"), retries=0)
    async def echo(ctx: durably.Context) -> None: ...

    between.target = await serve_functions(other, [echo])
    failed = await run(cloud, n=1)
    assert failed.status is RunStatus.FAILED
    assert b"another signing key" in bytes(failed.output or b"")
