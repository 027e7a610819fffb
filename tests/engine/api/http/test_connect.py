"""Workers that dial the engine: they come and go, and their connections break."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

import durably
from durably.connection import WorkerConnection
from durably.engine.model.runs import RunStatus, UpdateKind
from durably.engine.model.settings import Durability, EngineSettings

from ....ports import Wire, free_port
from ....waiting import async_eventually
from .conftest import Harness, OpenServer, client_of

Dial = Callable[[durably.Client, Sequence[durably.Function[Any]]], WorkerConnection]


@pytest.fixture
async def patient(open_server: OpenServer) -> Harness:
    """An engine that makes no call again of its own accord that did not reach its app."""
    never = dt.timedelta(days=1)
    return await open_server(
        EngineSettings(durability=Durability.NORMAL, unreached_backoff=lambda failures, jitter: never)
    )


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    started: list[tuple[WorkerConnection, asyncio.Task[None]]] = []

    def dial_(client: durably.Client, functions: Sequence[durably.Function[Any]]) -> WorkerConnection:
        connection = durably.connect([(client, functions)])
        started.append((connection, asyncio.create_task(connection.start())))
        return connection

    yield dial_
    for connection, task in started:
        await connection.close()
        await task


async def until_served(harness: Harness, is_served: bool = True) -> None:
    dispatcher = harness.engine.connected
    assert dispatcher is not None
    await async_eventually(lambda: dispatcher.takes_calls is is_served, f"a worker is connected: {is_served}")


async def test_waiting_runs_continue_when_a_worker_connects(patient: Harness, dial: Dial) -> None:
    client = client_of(patient)

    @client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="met"))
    async def greet(ctx: durably.Context) -> str:
        await ctx.step.sleep("think", "1ms")
        return "hello"

    connection = dial(client, [greet])
    await until_served(patient)
    _, app = await patient.json("GET", "/v2/apps/shop")
    assert app["data"]["method"] == "CONNECT"
    await connection.close()
    with patient.engine.watch() as updates:
        event_id = await patient.send("met")
        while (await anext(updates)).kind is not UpdateKind.UNREACHED:
            pass
    dial(client, [greet])
    run = await patient.ended((await patient.run_of(event_id)).id)
    assert (run.status, run.decode_output()) == (RunStatus.COMPLETED, "hello")


@pytest.mark.parametrize("ends_away", [True, False], ids=["ended-meanwhile", "ended-later"])
async def test_a_broken_connection_ends_no_call(patient: Harness, dial: Dial, ends_away: bool) -> None:
    wire, engine_port = Wire(free_port()), int(patient.server.origin.rpartition(":")[2])
    wire.target = engine_port
    await wire.start()
    client = client_of(patient, api_base_url=f"http://127.0.0.1:{wire.port}")
    may_end, attempts, ended = asyncio.Event(), list[int](), asyncio.Event()

    @client.create_function(fn_id="slow", trigger=durably.TriggerEvent(event="begun"))
    async def slow(ctx: durably.Context) -> str:
        attempts.append(ctx.attempt)
        await may_end.wait()
        ended.set()
        return "done"

    connection = dial(client, [slow])
    await until_served(patient)
    event_id = await patient.send("begun")
    await async_eventually(lambda: attempts, "the call")
    wire.target = free_port()
    wire.cut()
    await until_served(patient, False)
    if ends_away:
        may_end.set()
        await ended.wait()
    wire.target = engine_port
    await until_served(patient)
    may_end.set()
    run = await patient.ended((await patient.run_of(event_id)).id)
    assert (run.status, run.decode_output()) == (RunStatus.COMPLETED, "done")
    assert attempts == [0]
    await connection.close()
    wire.close()
