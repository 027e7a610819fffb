"""Servers that refuse the namespace, or are unreachable for a while."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError

from durably import Context, TemporalEngine, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.overview import SyncResult
from durably.engine.temporal.engine import WorkflowEngine
from durably.temporal import TemporalCredentialsError

from ...temporal.dev_server import DevServer
from ...temporal.proxy import Proxy
from ...waiting import async_eventually
from .test_in_process import App, add_sync, within

_DENIED = 7


class DenyingServer:
    """Describes itself, and denies all requests for a namespace, as Temporal does without a permission.

    The connections of the first ``breaks`` requests for a namespace end without an answer.
    """

    def __init__(self) -> None:
        self.breaks = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        paths: dict[int, bytes] = {}
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError), near:  # Clients give up requests.
            while data := near.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        paths[event.stream_id] = dict(event.headers)[b":path"]
                    elif isinstance(event, h2.events.StreamEnded):
                        self._answer(connection, event.stream_id, paths.pop(event.stream_id))
                near.sendall(connection.data_to_send())

    def _answer(self, connection: h2.connection.H2Connection, stream: int, path: bytes) -> None:
        """Answer a request that has ended: the rest of a request that is answered early is a protocol error."""
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        if path.endswith(b"/GetSystemInfo"):
            connection.send_headers(stream, headers)
            connection.send_data(stream, bytes(5))
            connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        elif self.breaks:
            self.breaks -= 1
            raise ConnectionResetError
        else:
            denial = [("grpc-status", str(_DENIED)), ("grpc-message", "Request unauthorized.")]
            connection.send_headers(stream, [*headers, *denial], end_stream=True)


@pytest.fixture
def denying() -> Iterator[DenyingServer]:
    server = DenyingServer()
    yield server
    server.close()


@pytest.mark.parametrize("breaks", [0, 3])
async def test_a_denied_namespace_prevents_the_start_and_is_named(denying: DenyingServer, breaks: int) -> None:
    denying.breaks = breaks
    app = App(TemporalEngine(denying.address, "orders"), "denied").serve(add_sync)
    with pytest.raises(TemporalCredentialsError, match=r"denies this app the namespace 'orders' \(PERMISSION_DENIED\)"):
        await within(app.engine.start())


async def test_a_sync_without_an_answer_is_repeated(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server restarts when a process starts."""
    sync, syncs = WorkflowEngine.sync_app, 0

    async def sync_app(engine: WorkflowEngine, *args: Any, **options: Any) -> SyncResult:
        nonlocal syncs
        syncs += 1
        if syncs == 1:
            raise WorkflowUpdateRPCTimeoutOrCancelledError
        return await sync(engine, *args, **options)

    monkeypatch.setattr(WorkflowEngine, "sync_app", sync_app)
    app = App(TemporalEngine(server.address), "resynced").serve(add_sync)
    async with app.engine.running():
        await within(app.send("add", a=1, b=2))
    assert syncs == 2


@pytest.mark.slow
async def test_runs_and_events_continue_after_a_server_outage(
    server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(server.port)
    app = App(TemporalEngine(proxy.address), "outage")
    may_end = asyncio.Event()

    @app.client.create_function(fn_id="work", trigger=TriggerEvent(event="outage/work"))
    async def work(ctx: Context) -> None:
        await ctx.step.run("begin", app.report, f"begun {ctx.event.data['n']}")
        await ctx.step.run("wait", may_end.wait)
        await ctx.step.run("end", app.report, f"ended {ctx.event.data['n']}")

    CommHandler(client=app.client, framework="test", functions=[work])
    with closing(proxy):
        async with app.engine.running():
            await app.send("work", n=1)
            assert await app.reported() == "begun 1"
            proxy.leave()
            may_end.set()
            sending = asyncio.create_task(app.send("work", n=2))
            await async_eventually(
                lambda: "the Temporal server does not answer" in caplog.text, "the unreachable server is logged"
            )
            proxy.come_back()
            await within(sending)
            assert sorted([await app.reported() for _ in range(3)]) == ["begun 2", "ended 1", "ended 2"]
    assert app.reports.empty()
    assert caplog.text.count("the Temporal server does not answer") == 1
    assert "the Temporal server answers again" in caplog.text
