"""``durably worker --connect``: calls over a connection, while engines and workers stop, are killed and come back."""

import asyncio
import contextlib
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

import durably
from durably.engine.api.http.server import EngineServer
from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.server import serve_database
from durably.protocol.connect import (
    SUBPROTOCOL,
    AppConfiguration,
    AuthData,
    ConnectMessage,
    GatewayExecutorRequestData,
    Kind,
    ReplyStatus,
    SDKResponse,
    StartResponse,
    WorkerConnectRequestData,
    WorkerRequestAckData,
    decode,
    frame,
)
from durably.protocol.engine_errors import ConfigInvalidError, DatabaseUnavailableError, EngineClosedError

from .. import wire
from ..conformance.engine_under_test import Engine
from ..conformance.programs import clean_environment
from ..ports import free_port
from ..temporal.tls import Authority
from ..waiting import async_eventually, eventually, wait_until_listening
from .conftest import SETTINGS

DURABLY = (sys.executable, "-c", "from durably.cli import main; main()")
KEYS = {"DURABLY_SIGNING_KEY": wire.SIGNING_KEY, "DURABLY_EVENT_KEY": wire.EVENT_KEY}


class World:
    """Processes of an engine and of workers, with what the calls have noted."""

    def __init__(self, directory: Path, stack: ExitStack, *, cloud: bool = False) -> None:
        self.directory, self._stack, self._is_cloud = directory, stack, cloud
        self.port = free_port()
        origin = f"http://127.0.0.1:{self.port}"
        self.api = Engine(origin, wire.EVENT_KEY, wire.SIGNING_KEY) if cloud else Engine(origin)
        settings = {"DURABLY_ENGINE_URL": origin} if cloud else {"DURABLY_DEV": origin}
        keys = KEYS if cloud else {}
        self._environment = clean_environment(CALLS_FILE=str(directory / "calls"), **settings, **keys)

    def _start(self, *arguments: str, command: tuple[str, ...] = DURABLY) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.directory / f"{arguments[0]}.log").open("ab"))
        process = subprocess.Popen(
            [*command, *arguments], env=self._environment, stdout=log, stderr=log, cwd=Path(__file__).parent
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def start_engine(self) -> subprocess.Popen[bytes]:
        database = str(self.directory / "engine.db")
        engine = self._start("start" if self._is_cloud else "dev", "--port", str(self.port), "--db", database)
        wait_until_listening(self.port, engine, lambda: "")
        return engine

    def start_program(self) -> subprocess.Popen[bytes]:
        """A program of its own that calls ``durably.connect``."""
        return self._start("connected_app.py", command=(sys.executable,))

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        return self._start("worker", "--connect", *options, "connected_app:client")

    def run(self, name: str, **data: Any) -> str:
        """A new run of a function that is triggered by its name. Returns its id."""
        event_id = eventually(lambda: self.api.send(wire.event(name, data))[0], "the event", ignore=(AssertionError,))
        runs = eventually(lambda: self.api.data(f"/v1/events/{event_id}/runs"), "the run")
        return str(runs[0]["run_id"])

    @property
    def calls(self) -> list[str]:
        file = self.directory / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for_functions(self) -> None:
        eventually(lambda: self.api.api("GET", "/v1/apps/connected/functions").status == 200, "a worker")

    def wait_for_call(self, line: str) -> None:
        eventually(lambda: line in self.calls, line)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    with ExitStack() as stack:
        yield lambda **options: World(tmp_path, stack, **options)


@pytest.mark.parametrize(("cloud", "is_program"), [(False, False), (False, True), (True, False)])
def test_functions_run_and_a_stop_waits_for_calls(make_world: MakeWorld, cloud: bool, is_program: bool) -> None:
    world = make_world(cloud=cloud)
    world.start_engine()
    worker = world.start_program() if is_program else world.start_worker()
    world.wait_for_functions()
    assert world.api.completed(world.run("steps")) == [1, 2, 3]
    slow = world.run("slow", seconds=1)
    world.wait_for_call(f"begin {slow}")
    worker.terminate()
    assert worker.wait(60) == 0
    assert world.calls == [f"begin {slow}", f"end {slow}"]
    assert world.api.completed(slow) == 0


def test_calls_of_a_killed_engine_are_made_again(make_world: MakeWorld) -> None:
    world = make_world()
    engine = world.start_engine()
    world.start_worker()
    world.wait_for_functions()
    brief, long = world.run("slow", seconds=1), world.run("slow", seconds=6)
    for run_id in (brief, long):
        world.wait_for_call(f"begin {run_id}")
    engine.kill()
    engine.wait()
    world.wait_for_call(f"end {brief}")  # Its answer finds no engine, and belongs to no call of the next one.
    world.start_engine()
    assert (world.api.completed(brief), world.api.completed(long)) == (0, 0)
    assert world.calls.count(f"begin {brief}") == world.calls.count(f"begin {long}") == 2


def test_a_call_of_a_killed_worker_is_made_again(make_world: MakeWorld) -> None:
    world = make_world()
    world.start_engine()
    worker = world.start_worker()
    world.wait_for_functions()
    slow = world.run("slow", seconds=3)
    world.wait_for_call(f"begin {slow}")
    worker.kill()
    worker.wait()
    waiting = world.run("steps")  # No worker is there, which uses up no attempt.
    world.start_worker()
    assert world.api.completed(waiting) == [1, 2, 3]
    assert world.api.completed(slow) == 1, "the lost call was an attempt"


def test_a_worker_has_no_more_calls_than_its_limit(make_world: MakeWorld) -> None:
    world = make_world()
    world.start_engine()
    world.start_worker("--max-calls", "1")
    world.wait_for_functions()
    runs = [world.run("slow", seconds=0.3) for _ in range(4)]
    assert [world.api.completed(run_id) for run_id in runs] == [0] * 4
    assert [line.split()[0] for line in world.calls] == ["begin", "end"] * 4


def test_refused_functions_end_the_worker(make_world: MakeWorld) -> None:
    world = make_world(cloud=True)
    world.start_engine()
    world._environment["DURABLY_SIGNING_KEY"] = "signkey-prod-" + "b" * 64
    worker = world.start_worker()
    assert worker.wait(60) == 1
    assert "refuses the connection (401)" in (world.directory / "worker.log").read_text()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EngineServer]:
    async with await serve_database(tmp_path / "engine.db", SETTINGS, port=0) as server:
        yield server


class Relay:
    """Passes bytes on to an engine. After ``hang``, connections that are open get nothing, and stay open."""

    def __init__(self, server: EngineServer) -> None:
        self._port, self._generation = int(server.origin.rpartition(":")[2]), 0

    def hang(self) -> None:
        self._generation += 1

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if self._generation == generation:
                        target.write(data)
            if self._generation == generation:
                target.close()

        await asyncio.gather(copy(reader, engine_writer), copy(engine_reader, writer))
        writer.close()
        engine_writer.close()


async def introduce(
    http: aiohttp.ClientSession, instance_id: str, app: AppConfiguration, *, limit: int = 0
) -> aiohttp.ClientWebSocketResponse:
    """The WebSocket of a worker that has announced an app."""
    async with http.post("/v0/connect/start") as response:
        started = decode(StartResponse, await response.read())
    socket = await http.ws_connect(started.gateway_endpoint, protocols=(SUBPROTOCOL,))
    assert decode(ConnectMessage, await socket.receive_bytes()).kind == Kind.GATEWAY_HELLO
    hello = WorkerConnectRequestData(
        connection_id=started.connection_id,
        instance_id=instance_id,
        auth_data=AuthData(started.session_token),
        apps=[app],
        max_worker_concurrency=limit,
    )
    await socket.send_bytes(frame(Kind.WORKER_CONNECT, hello))
    return socket


async def receive(socket: aiohttp.ClientWebSocketResponse, kind: Kind) -> bytes:
    """The payload of the next message of a kind."""
    while True:
        message = decode(ConnectMessage, await socket.receive_bytes())
        if message.kind == kind:
            return message.payload


async def nothing(ctx: durably.Context) -> None:
    """Never runs."""


def fail_to_sync(server: EngineServer, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """The first syncs fail."""
    sync, left = server.engine.sync_app, list(errors)

    async def sync_app(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop(0)
        return await sync(*arguments, **options)

    monkeypatch.setattr(server.engine, "sync_app", sync_app)


@pytest.mark.parametrize(
    ("error", "kinds", "code", "reason"),
    [
        (DatabaseUnavailableError("the disk is full"), [], 1011, "connect_internal_error"),
        (EngineClosedError("the engine closes"), [], 1011, "connect_internal_error"),
        (ConfigInvalidError("no such option"), [Kind.SYNC_FAILED], 1008, "connect_invalid_function_config"),
    ],
)
async def test_a_failed_sync_says_whether_the_worker_may_dial_again(
    server: EngineServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kinds: list[Kind],
    code: int,
    reason: str,
) -> None:
    fail_to_sync(server, monkeypatch, error)
    async with (
        aiohttp.ClientSession(server.origin) as http,
        await introduce(http, "a", AppConfiguration("shop", functions=b"[]")) as socket,
    ):
        for kind in kinds:
            assert decode(ConnectMessage, await socket.receive_bytes()).kind == kind
        closed = await socket.receive()
        assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, code, reason)


async def test_a_worker_dials_again_after_a_sync_that_failed_for_a_time(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_sync(server, monkeypatch, DatabaseUnavailableError("the disk is full"))
    client = durably.Client(app_id="shop", is_production=False, engine=server.origin)

    greet = client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="greet"))(nothing)
    connection = durably.connect([(client, [greet])])
    serving = asyncio.create_task(connection.start())
    try:
        await async_eventually(server.engine.list_functions, "the worker")
    finally:
        await connection.close()
        await serving


async def test_a_worker_keeps_to_tls_behind_a_proxy_that_does_not_tell_the_engine(
    server: EngineServer, tmp_path: Path
) -> None:
    authority = Authority()
    certificate = authority.issue("engine")
    files = {"ca": authority.pem, "cert": certificate.cert, "key": certificate.key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    proxy = await asyncio.start_server(Relay(server).forward, "127.0.0.1", 0, ssl=tls)
    origin = f"https://localhost:{proxy.sockets[0].getsockname()[1]}"
    environment = clean_environment(DURABLY_DEV=origin, SSL_CERT_FILE=str(tmp_path / "ca"))
    command = [*DURABLY, "worker", "--connect", "connected_app:client"]
    worker = await asyncio.create_subprocess_exec(*command, env=environment, cwd=Path(__file__).parent)
    try:
        await async_eventually(server.engine.list_functions, "the worker")
    finally:
        worker.kill()
        await worker.wait()
        proxy.close()


async def test_a_connection_that_falls_silent_ends_no_call(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durably.engine.api.http.connect.HEARTBEAT_SECONDS", 1)
    relay = Relay(server)
    network = await asyncio.start_server(relay.forward, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{network.sockets[0].getsockname()[1]}"
    client = durably.Client(app_id="shop", is_production=False, engine=origin)
    sender = durably.Client(app_id="web", is_production=False, engine=server.origin)
    may_end, attempts = asyncio.Event(), list[int]()

    @client.create_function(fn_id="slow", trigger=durably.TriggerEvent(event="begun"))
    async def slow(ctx: durably.Context) -> str:
        attempts.append(ctx.attempt)
        await may_end.wait()
        return "done"

    connection = durably.connect([(client, [slow])])
    serving = asyncio.create_task(connection.start())
    await async_eventually(server.engine.list_functions, "the worker")
    [event_id] = await sender.send(durably.Event(name="begun"))
    await async_eventually(lambda: attempts, "the call")
    relay.hang()
    may_end.set()

    async def has_ended() -> bool:
        [run] = await server.engine.event_runs(event_id)
        return run.status is RunStatus.COMPLETED

    await async_eventually(has_ended, "the run")
    assert attempts == [0]
    await connection.close()
    await serving
    network.close()


@pytest.mark.parametrize(("megabytes", "error"), [(11, "OutputTooLargeError"), (40, "AnswerTooLargeError")])
async def test_an_answer_that_is_too_large_fails_the_run_and_cuts_no_connection(
    server: EngineServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    megabytes: int,
    error: str,
) -> None:
    monkeypatch.setattr("durably.engine.api.http.connect.EXTEND_SECONDS", 1)
    caplog.set_level(logging.INFO, "durably.engine")
    client = durably.Client(app_id="shop", is_production=False, engine=server.origin)
    attempts = list[int]()

    @client.create_function(fn_id="large", trigger=durably.TriggerEvent(event="large"))
    async def large(ctx: durably.Context) -> str:
        attempts.append(ctx.attempt)
        return "x" * megabytes * 1_000_000

    connection = durably.connect([(client, [large])])
    serving = asyncio.create_task(connection.start())
    await async_eventually(server.engine.list_functions, "the worker")
    [event_id] = await client.send(durably.Event(name="large"))

    async def has_failed() -> bool:
        [run] = await server.engine.event_runs(event_id)
        return run.status is RunStatus.FAILED and error.encode() in bytes(run.output or b"")

    await async_eventually(has_failed, error)
    assert attempts == [0]
    assert "has disconnected" not in caplog.text
    await connection.close()
    await serving


async def test_a_worker_of_another_app_answers_no_call(server: EngineServer) -> None:
    client = durably.Client(app_id="shop", is_production=False, engine=server.origin)
    other = durably.Client(app_id="other", is_production=False)
    trigger = durably.TriggerEvent(event="a")
    async with aiohttp.ClientSession(server.origin) as http:
        sockets = []
        for each in (client, other):
            configs = each.create_function(fn_id="a", trigger=trigger)(nothing).configs("ws://connect")
            app = AppConfiguration(each.app_id, functions=msgspec.json.encode(configs))
            sockets.append(await introduce(http, each.app_id, app))
            await receive(sockets[-1], Kind.GATEWAY_CONNECTION_READY)
        [event_id] = await client.send(durably.Event(name="a"))
        call = decode(GatewayExecutorRequestData, await receive(sockets[0], Kind.GATEWAY_EXECUTOR_REQUEST))
        for text, socket in (b'"other"', sockets[1]), (b'"own"', sockets[0]):
            reply = SDKResponse(call.request_id, status=ReplyStatus.DONE, body=text, run_id=call.run_id)
            await socket.send_bytes(frame(Kind.WORKER_REPLY, reply))
            await receive(socket, Kind.WORKER_REPLY_ACK)
    runs = await server.engine.event_runs(event_id)
    assert sorted(bytes(run.output or b"") for run in runs if run.function_id == "shop-a") == [b'"own"']


async def test_a_worker_that_dials_again_keeps_to_its_limit(server: EngineServer) -> None:
    client = durably.Client(app_id="shop", is_production=False, engine=server.origin)
    function = client.create_function(fn_id="a", trigger=durably.TriggerEvent(event="a"))(nothing)
    app = AppConfiguration("shop", functions=msgspec.json.encode(function.configs("ws://connect")))

    async with aiohttp.ClientSession(server.origin) as http:
        socket = await introduce(http, "one", app, limit=1)
        await async_eventually(server.engine.list_functions, "the worker")
        await client.send(durably.Event(name="a"))
        call = decode(GatewayExecutorRequestData, await receive(socket, Kind.GATEWAY_EXECUTOR_REQUEST))
        await socket.send_bytes(frame(Kind.WORKER_REQUEST_ACK, WorkerRequestAckData(call.request_id)))
        await socket.close()
        socket = await introduce(http, "one", app, limit=1)
        await socket.send_bytes(frame(Kind.WORKER_HEARTBEAT))
        kinds = [decode(ConnectMessage, await socket.receive_bytes()).kind for _ in range(2)]
        assert kinds == [Kind.GATEWAY_CONNECTION_READY, Kind.GATEWAY_HEARTBEAT]
        assert server.engine.connected is not None
        [slots] = server.engine.connected._workers
        assert (slots.under_way, slots.capacity.max_calls) == (1, 1)


async def test_a_worker_keeps_to_its_limit_if_the_engine_gives_it_more_calls(server: EngineServer) -> None:
    client = durably.Client(app_id="shop", is_production=False, engine=server.origin)
    running, begun = 0, list[int]()

    @client.create_function(fn_id="begun", trigger=durably.TriggerEvent(event="begun"))
    async def function(ctx: durably.Context) -> None:
        nonlocal running
        running += 1
        begun.append(running)
        if len(begun) == 1:
            await async_eventually(lambda: len(connection._calls) == 3, "the other calls")
            for _ in range(100):  # They would begin now.
                await asyncio.sleep(0)
        running -= 1

    connection = durably.connect([(client, [function])], max_worker_concurrency=1)
    serving = asyncio.create_task(connection.start())
    await async_eventually(server.engine.list_functions, "the worker")
    dispatcher = server.engine.connected
    assert dispatcher is not None
    await async_eventually(lambda: dispatcher.takes_calls, "its capacity")
    [slots] = dispatcher._workers
    dispatcher.change(slots, msgspec.structs.replace(slots.capacity, max_calls=100))
    await client.send([durably.Event(name="begun")] * 3)
    await async_eventually(lambda: len(begun) == 3, "all calls")
    assert begun == [1, 1, 1]
    await connection.close()
    await serving


async def test_a_close_ends_a_dial_that_gets_no_answer() -> None:
    has_dialled = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_dialled.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as gateway:
        port = gateway.sockets[0].getsockname()[1]
        client = durably.Client(app_id="shop", is_production=False, engine=f"http://127.0.0.1:{port}")
        function = client.create_function(fn_id="a", trigger=durably.TriggerEvent(event="a"))(nothing)
        connection = durably.connect([(client, [function])])
        serving = asyncio.create_task(connection.start())
        await has_dialled.wait()
        async with asyncio.timeout(10):  # A request times out after 30 s.
            await connection.close()
        await serving


async def test_unused_sessions_have_a_limit(server: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durably.engine.api.http.connect._MAX_SESSIONS", 2)
    async with aiohttp.ClientSession(server.origin) as http:
        statuses = []
        for _ in range(3):
            async with http.post("/v0/connect/start") as response:
                statuses.append(response.status)
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize(
    ("dialling", "registered"),
    [
        (["old v1", "new v2"], "v2"),
        (["old v1", "new v2", "old v1"], "v2"),
        (["old v1", "new v2", "new leaves", "old v1"], "v2"),
        (["old v1", "new v2", "old v1", "new v2", "newer v2"], "v2"),
        (["old v1", "new v2", "new leaves", "back v1"], "v1"),
        (["old v1", "new v2", "back v1", "new v2"], "v1"),
        (["same v1", "same v2", "same v1"], "v1"),
    ],
    ids=" ".join,
)
async def test_the_functions_are_those_of_the_worker_that_was_started_last(
    server: EngineServer, dialling: list[str], registered: str
) -> None:
    """A worker of older code that only dials again changes nothing."""
    async with aiohttp.ClientSession(server.origin) as http:
        sockets = dict[str, aiohttp.ClientWebSocketResponse]()
        for instance_id, version in map(str.split, dialling):
            if instance_id in sockets:
                await sockets.pop(instance_id).close()
            if version == "leaves":
                continue
            client = durably.Client(app_id="shop", is_production=False)
            function = client.create_function(fn_id=version, trigger=durably.TriggerEvent(event=version))(nothing)
            app = AppConfiguration("shop", version, functions=msgspec.json.encode(function.configs("ws://connect")))
            sockets[instance_id] = await introduce(http, instance_id, app)
            ready = decode(ConnectMessage, await sockets[instance_id].receive_bytes())
            assert ready.kind == Kind.GATEWAY_CONNECTION_READY
        assert [each.id for each in await server.engine.list_functions()] == [f"shop-{registered}"]
