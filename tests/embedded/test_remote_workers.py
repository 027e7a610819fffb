"""The worker resource of the leader's API, as a worker uses it over HTTP."""

import asyncio
import base64
import datetime as dt
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from durably import Client, Context, Embedded, EngineSettings, TriggerEvent
from durably.comm import CommHandler
from durably.embedded import sockets
from durably.embedded.calls import sync_of
from durably.embedded.leader import Leader
from durably.embedded.process import get_engine_loop
from durably.embedded.remote_workers import Workers
from durably.engine.api.http.requests import ApiError
from durably.engine.sqlite.runtime import Runtime
from durably.protocol.opcodes import hash_step_id

LEASE = dt.timedelta(seconds=0.5)
SETTINGS = EngineSettings(close_grace=dt.timedelta(0))


def make_engine(path: Path, settings: EngineSettings = SETTINGS) -> tuple[Embedded, CommHandler]:
    """An engine, and the handler of a function that its own process does not run."""
    client = Client(app_id="remote", is_production=False, engine=Embedded("unused.db"))

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="f"), retries=1)
    async def f(ctx: Context) -> None: ...

    handler = CommHandler(client=client, framework="test", functions=[f])
    return Embedded(path, lease=LEASE, settings=settings), handler


class RawWorker:
    """A worker that makes each request when the test says so."""

    def __init__(self, http: aiohttp.ClientSession, sync: Any) -> None:
        self._http, self._sync = http, sync
        self.path = ""

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self._http.post(f"http://localhost{path}", data=msgspec.json.encode(body)) as response:
            return response.status, await response.json()

    async def register(self) -> None:
        capacity = {"process_id": 1, "function_ids": ["remote-f"], "max_calls": 5}
        status = 503
        while status == 503:  # The first process that connects finds no HTTP server yet.
            status, body = await self.post("/v1/workers", {"capacity": capacity, "syncs": [self._sync]})
            await asyncio.sleep(0.01)
        assert status == 201
        self.path = f"/v1/workers/{body['worker_id']}/calls"

    async def ask(self, **sent: Any) -> Any:
        status, body = await self.post(self.path, sent)
        assert status == 200, body
        return body

    async def wait_for_calls(self, number: int = 1) -> list[Any]:
        calls: list[Any] = []
        while len(calls) < number:
            calls += (await self.ask())["calls"]
        return calls

    def answer(self, calls: list[Any], output: bytes) -> dict[str, Any]:
        answer = {"type": "Returned", "output": base64.b64encode(output).decode()}
        return {"answers": [{"call_id": call["call_id"], "answer": answer} for call in calls]}

    def checkpoint(self, call: Any, step_id: str) -> dict[str, Any]:
        data = call["data"]
        step = {"id": hash_step_id(step_id), "op": "StepRun", "name": step_id, "data": 1}
        generation = data["call"]["generation"]
        return {"checkpoints": [{"run_id": data["run_id"], "generation_id": generation, "steps": [step]}]}


@asynccontextmanager
async def raw_worker(engine: Embedded, handler: CommHandler) -> AsyncIterator[RawWorker]:
    socket = sockets.newest(sockets.directory_of(engine.path))
    assert socket is not None
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as http:
        worker = RawWorker(http, sync_of(handler))
        await worker.register()
        yield worker


@pytest.fixture
async def engine_and_handler(tmp_path: Path) -> AsyncIterator[tuple[Embedded, CommHandler]]:
    engine, handler = make_engine(tmp_path / "durably.db")
    async with engine.running():
        yield engine, handler


async def send(engine: Embedded) -> str:
    """The id of the run that an event starts."""
    receipt = await engine.receive_events(b'{"name": "f"}')
    [run] = await engine.event_runs(receipt.ids[0])
    return run.id


async def test_worker_gets_calls_and_sends_steps_and_answers(
    engine_and_handler: tuple[Embedded, CommHandler],
) -> None:
    engine, handler = engine_and_handler
    async with raw_worker(engine, handler) as worker:
        run_id = await send(engine)
        [call] = await worker.wait_for_calls()
        assert (call["app_id"], call["data"]["function_id"]) == ("remote", "remote-f")
        assert (await worker.ask(**worker.checkpoint(call, "pay")))["results"] == [None]
        await worker.ask(**worker.answer([call], b'"done"'))
        assert (await engine.wait_for_run(run_id)).decode_output() == "done"
        assert [step.id for step in await engine.run_steps(run_id)] == ["pay"]


async def test_one_exchange_carries_many_answers(engine_and_handler: tuple[Embedded, CommHandler]) -> None:
    engine, handler = engine_and_handler
    async with raw_worker(engine, handler) as worker:
        runs = [await send(engine) for _ in range(3)]
        await worker.ask(**worker.answer(await worker.wait_for_calls(3), b"1"))
        assert [(await engine.wait_for_run(run_id)).decode_output() for run_id in runs] == [1] * 3


async def test_call_that_times_out_is_cancelled_in_its_worker(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, call_timeout=dt.timedelta(seconds=0.05))
    engine, handler = make_engine(tmp_path / "durably.db", settings)
    async with engine.running(), raw_worker(engine, handler) as worker:
        await send(engine)
        [call] = await worker.wait_for_calls()
        cancelled: list[int] = []
        while not cancelled:
            cancelled = (await worker.ask())["cancelled"]
        assert cancelled == [call["call_id"]]


@pytest.mark.parametrize("how", ["is silent", "breaks its connection"])
async def test_calls_of_a_lost_worker_are_made_again_and_its_results_refused(
    engine_and_handler: tuple[Embedded, CommHandler], how: str
) -> None:
    engine, handler = engine_and_handler
    async with raw_worker(engine, handler) as lost, raw_worker(engine, handler) as other:
        run_id = await send(engine)
        waiting = {asyncio.create_task(each.wait_for_calls()): each for each in (lost, other)}
        [done], [pending] = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        lost, other, [call] = waiting[done], waiting[pending], done.result()
        if how == "breaks its connection":
            _, writer = await asyncio.open_unix_connection(sockets.newest(sockets.directory_of(engine.path)))
            writer.write(f"POST {lost.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            await writer.drain()
            writer.close()
        [again] = await pending
        assert again["data"]["run_id"] == run_id
        assert again["data"]["call"]["attempt"] == 1
        status, body = await lost.post(lost.path, lost.answer([call], b'"late"'))
        assert (status, "register again" in body["error"]) == (404, True)
        [refused] = (await other.ask(**other.checkpoint(call, "late")))["results"]
        assert (refused["status"], refused["code"]) == (409, "StaleCallError")
        await other.ask(**other.answer([again], b'"once"'))
        assert (await engine.wait_for_run(run_id)).decode_output() == "once"


@pytest.mark.parametrize(
    "answer", [{"type": "Returned", "output": "eyJ4"}, {"type": "AttemptFailed", "error": {}, "written": "/w=="}]
)
async def test_an_answer_that_is_not_json_is_refused(
    engine_and_handler: tuple[Embedded, CommHandler], answer: dict[str, Any]
) -> None:
    engine, handler = engine_and_handler
    async with raw_worker(engine, handler) as worker:
        run_id = await send(engine)
        [call] = await worker.wait_for_calls()
        answers = [{"call_id": call["call_id"], "answer": answer}]
        status, body = await worker.post(worker.path, {"answers": answers})
        assert (status, "invalid JSON" in body["error"]) == (400, True)
        await worker.ask(**worker.answer([call], b"1"))
        assert (await engine.wait_for_run(run_id)).decode_output() == 1


@pytest.mark.parametrize("how", ["an error", "a closed connection"])
async def test_a_leader_that_refuses_a_process_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """For longer than the lease."""
    is_refusing, refusals, were_refused, register = False, 0, threading.Event(), Workers._register
    enough = 3 if how == "an error" else 2 * LEASE // dt.timedelta(seconds=0.025)
    registrars: list[Workers] = []

    async def refuse(workers: Workers, api: Any, request: Any) -> Any:
        nonlocal refusals
        if not is_refusing:
            registrars.append(workers)
            return await register(workers, api, request)
        refusals += 1
        if refusals == enough:
            were_refused.set()
        if how == "an error":
            raise ApiError(413, "the list of functions is too long")
        request.transport.abort()
        return web.Response()

    monkeypatch.setattr(Workers, "_register", refuse)
    leader, follower = (Embedded(tmp_path / "durably.db", lease=LEASE, settings=SETTINGS) for _ in range(2))
    async with leader.running(), follower.running():
        is_refusing = True
        get_engine_loop().call_soon_threadsafe(registrars[0].close)  # The follower must register again.
        assert await asyncio.to_thread(were_refused.wait, 20)
        assert "tries to take over" not in caplog.text
        assert caplog.text.count("cannot reach") == 1
        is_refusing = False
        assert await follower.list_runs() == await leader.list_runs() == []


async def test_followers_wait_for_a_leader_that_recovers_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than the lease."""
    caplog.set_level(logging.INFO, "durably.engine")
    refused, recovers, has_waited = 0, threading.Event(), threading.Event()
    make_protocol, recover = Leader._make_protocol, Runtime._recover

    def count(leader: Leader) -> asyncio.Protocol:
        nonlocal refused
        refused += 1
        if refused == 30:  # Each is 50 ms after the last.
            has_waited.set()
        return make_protocol(leader)

    async def wait_and_recover(runtime: Runtime) -> None:
        recovers.set()
        await asyncio.to_thread(has_waited.wait)
        await recover(runtime)

    monkeypatch.setattr(Leader, "_make_protocol", count)
    monkeypatch.setattr(Runtime, "_recover", wait_and_recover)
    leader, follower = (Embedded(tmp_path / "durably.db", lease=LEASE, settings=SETTINGS) for _ in range(2))
    starting = asyncio.create_task(leader.start())
    try:
        await asyncio.to_thread(recovers.wait)
        await follower.start()
        await starting
        assert "no heartbeat" not in caplog.text
        assert caplog.text.count("is now the leader") == caplog.text.count("follows the leader") == 1
    finally:
        await follower.stop()
        await leader.stop()
