"""The stream by itself: what starts and ends its job."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import durably
from durably import Client, ContextSync, Streaming
from durably.comm import CommHandler, CommRequest, CommResponse, requests
from durably.comm.requests import stream
from durably.io.background_loop import get_background_loop
from durably.io.http_client import AsyncIO, BlockingIO

from ..frameworks import app_calls

Work = Callable[[], Coroutine[Any, Any, CommResponse]]


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "KEEP_ALIVE_SECONDS", 0.01)


class Job:
    """A job that runs until it is let go or cancelled."""

    def __init__(self) -> None:
        self.is_started = False
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self) -> CommResponse:
        self.is_started = True
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return CommResponse.from_json({"text": "☃"}, headers={"a": "b"}, status_code=206)


def stream_of(job: Job) -> Any:
    io = AsyncIO()
    return stream(lambda: io.start(job.run()), io)


async def test_spaces_then_the_answer() -> None:
    job = Job()
    chunks = []
    async for chunk in stream_of(job):
        chunks.append(chunk)
        if len(chunks) == 4:
            job.go_on.set()
    *spaces, envelope = chunks
    assert set(spaces) == {b" "}
    assert len(spaces) >= 4
    assert json.loads(envelope) == {"status": 206, "headers": {"a": "b"}, "body": '{"text":"☃"}'}


async def test_stream_without_a_reader_is_not_started() -> None:
    job = Job()
    chunks = stream_of(job)
    await chunks.aclose()
    assert not job.is_started


async def test_closing_the_stream_cancels_the_job() -> None:
    job = Job()
    chunks = stream_of(job)
    await anext(chunks)
    await anext(chunks)
    await chunks.aclose()
    await asyncio.wait_for(job.cancelled.wait(), 60)


async def test_a_reader_that_ends_without_closing_cancels() -> None:
    """As a server does that cancels its writing task and leaves the rest to the garbage collector."""
    job = Job()
    chunks = stream_of(job)

    async def read_a_little() -> None:
        await anext(chunks)
        await anext(chunks)

    await asyncio.create_task(read_a_little())
    await asyncio.wait_for(job.cancelled.wait(), 60)


def make_blocking(job: Job) -> Any:
    io = BlockingIO()
    return CommResponse.create_streaming(lambda: stream(lambda: io.start(job.run()), io)).stream_sync()


def test_a_stream_read_by_a_thread() -> None:
    job = Job()
    job.go_on.set()
    *spaces, envelope = make_blocking(job)
    assert set(spaces) == {b" "}
    assert json.loads(envelope)["status"] == 206


def test_a_thread_that_closes_cancels() -> None:
    job = Job()
    chunks = make_blocking(job)
    assert next(chunks) == b" "
    assert next(chunks) == b" "
    chunks.close()
    get_background_loop().run(asyncio.wait_for(job.cancelled.wait(), 60))


async def test_a_sync_function_that_has_not_begun_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has cannot be interrupted; but a call of it is no longer than to its next step."""
    monkeypatch.setenv("DURABLY_THREAD_POOL_MAX_WORKERS", "1")
    client = Client(app_id="app", is_production=False)
    let_go, ran = threading.Event(), []

    @client.create_function(fn_id="waits", trigger=durably.TriggerEvent(event="test/event"))
    def waits(ctx: ContextSync) -> None:
        ran.append(ctx.run_id)
        let_go.wait(10)

    handler = CommHandler(client=client, framework="none", functions=[waits], streaming=Streaming.FORCE)

    async def start(run_id: str) -> Any:
        query = {"fnId": "app-waits", "stepId": "step"}
        body = app_calls.canonical(app_calls.call_body(run_id=run_id))
        request = CommRequest(body=body, headers={}, query_params=query, raw_request=None, request_url="http://app/")
        response = await handler.post(request)
        assert response.stream is not None
        chunks = response.stream()
        assert await anext(chunks) == b" "
        return chunks

    first, second = await start("first"), await start("second")
    await second.aclose()
    let_go.set()
    assert [chunk async for chunk in first][-1].startswith(b"{")
    last = await start("last")
    assert [chunk async for chunk in last][-1].startswith(b"{")
    assert ran == ["first", "last"]
