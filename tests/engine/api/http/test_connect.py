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


class Relay:
    """Forwards to the engine's port. ``cut`` breaks its WebSockets, but for requests."""

    def __init__(self, port: int) -> None:
        self._port, self._tasks = port, set[asyncio.Task[None]]()
        self.sockets: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        """WebSockets that were opened, broken ones too."""
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for writer in (writer for pair in self.sockets for writer in pair):
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own_task = asyncio.current_task()
        assert own_task is not None
        self._tasks.add(own_task)
        begin = await reader.readuntil(b"\r\n")
        if begin.startswith(b"GET /v0/connect "):
            await self.is_open.wait()
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self._port)
        if begin.startswith(b"GET /v0/connect "):
            self.sockets.append((writer, engine_writer))
        engine_writer.write(begin)
        await asyncio.gather(_forward(reader, engine_writer), _forward(engine_reader, writer))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def until_served(harness: Harness) -> None:
    dispatcher = harness.engine.connected
    assert dispatcher is not None
    await async_eventually(lambda: dispatcher.takes_calls, "a worker is connected")


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


@pytest.mark.parametrize("ends", ["while the connection is broken", "after the worker has dialled again"])
async def test_a_broken_connection_ends_no_call(patient: Harness, dial: Dial, ends: str) -> None:
    relay = Relay(int(patient.server.origin.rpartition(":")[2]))
    origin = await relay.start()
    client = client_of(patient, api_base_url=origin)
    may_end, attempts = asyncio.Event(), list[int]()

    @client.create_function(fn_id="slow", trigger=durably.TriggerEvent(event="begun"))
    async def slow(ctx: durably.Context) -> str:
        attempts.append(ctx.attempt)
        await may_end.wait()
        return "done"

    connection = dial(client, [slow])
    await until_served(patient)
    event_id = await patient.send("begun")
    await async_eventually(lambda: attempts, "the call")
    if ends == "while the connection is broken":
        relay.is_open.clear()
        relay.cut()
        may_end.set()
    else:
        relay.cut()
        await async_eventually(lambda: len(relay.sockets) == 2, "the worker dials again")
        may_end.set()
    run = await patient.ended((await patient.run_of(event_id)).id)
    assert (run.status, run.decode_output()) == (RunStatus.COMPLETED, "done")
    assert attempts == [0]
    relay.is_open.set()
    await connection.close()
    await relay.close()
