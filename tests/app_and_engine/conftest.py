"""An app of this SDK and the embedded engine, with real HTTP both ways and a database on disk.

The app's requests to the engine's API pass through ``Gate``, which counts them and may answer itself.
"""

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web

from durably import Client, Function, TriggerEvent
from durably.comm import CommHandler, CommRequest
from durably.engine.api.http.server import EngineServer
from durably.engine.model.runs import Run
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.functions.checkpoints import Checkpoints
from durably.protocol.call import CheckpointRequest, decode_checkpoint
from durably.protocol.events import Event

SETTINGS = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    unreached_backoff=lambda failures, jitter: dt.timedelta(milliseconds=20),
    close_grace=dt.timedelta(milliseconds=100),
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DURABLY_", "INNGEST_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@dataclass
class Gate:
    """A proxy of the engine's API.

    ``answer`` gets each checkpoint, and returns the status of the answer, or ``None`` to forward the checkpoint.
    ``after`` is called when the engine has stored one.
    """

    origin: str
    session: ClientSession
    url: str = ""
    checkpoints: list[CheckpointRequest] = field(default_factory=list)
    answer: Callable[[CheckpointRequest], int | None] = lambda request: None
    after: Callable[[CheckpointRequest], Awaitable[None]] | None = None

    @property
    def batches(self) -> list[list[str]]:
        """The user's ids of the steps of each checkpoint."""
        return [[step.display_name or "" for step in checkpoint.steps] for checkpoint in self.checkpoints]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if "/checkpoint/" in request.path:
            checkpoint = decode_checkpoint(body)
            self.checkpoints.append(checkpoint)
            status = self.answer(checkpoint)
            if status is not None:
                return web.json_response({"error": "from the gate", "status": status}, status=status)
        ours = ("x-inngest-", "x-run-id", "traceparent")
        passed = {name: value for name, value in request.headers.items() if name.lower().startswith(ours)}
        async with self.session.request(
            request.method, self.origin + request.path_qs, data=body, headers=passed
        ) as response:
            content = await response.read()
        if "/checkpoint/" in request.path and self.after is not None:
            await self.after(checkpoint)
        return web.Response(status=response.status, body=content, content_type="application/json")


@dataclass
class App:
    """``calls`` are the bodies of the calls to it, ``answers`` the statuses and bodies that it gave. ``is_blocking``
    has it answer as under a WSGI server; ``checkpoints`` replace those over HTTP."""

    client: Client
    engine: EngineServer
    gate: Gate
    is_blocking: bool = False
    checkpoints: Checkpoints | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    url: str = ""
    has_answered: asyncio.Event = field(default_factory=asyncio.Event)

    def serve(self, *functions: Function[Any]) -> None:
        self.handler = CommHandler(client=self.client, framework="test", functions=functions)
        if self.checkpoints is not None:
            self.handler._checkpoints = self.checkpoints  # type: ignore[assignment]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST":
            self.calls.append(msgspec.json.decode(body))
        comm_request = CommRequest(
            body=body,
            headers=dict(request.headers),
            query_params=dict(request.query),
            raw_request=request,
            request_url=self.url,
        )
        if self.is_blocking:
            response = await asyncio.to_thread(self.handler.handle_sync, request.method, comm_request)
        else:
            response = await self.handler.handle(request.method, comm_request)
        if response.stream is not None:
            return await self._stream(request, response.status_code, response.headers, response.stream())
        if request.method == "POST":
            self.answers.append((int(response.status_code), msgspec.json.decode(response.body)))
            self.has_answered.set()
        return web.Response(status=response.status_code, body=response.body, headers=response.headers)

    async def _stream(
        self, request: web.Request, status: int, headers: dict[str, str], chunks: AsyncIterator[bytes]
    ) -> web.StreamResponse:
        streamed = web.StreamResponse(status=status, headers=headers)
        await streamed.prepare(request)
        content = b""
        async for chunk in chunks:
            content += chunk
            await streamed.write(chunk)
        answer = msgspec.json.decode(content)
        self.answers.append((answer["status"], msgspec.json.decode(answer["body"])))
        return streamed

    @property
    def discoveries(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["ctx"]["step_id"] == "step"]

    def ops(self) -> list[list[tuple[str, str | None]]]:
        """Opcode and the user's id of the ops of each answer that has any."""
        return [[(op["op"], op.get("displayName")) for op in body] for status, body in self.answers if status == 206]

    async def run(self, function: Function[Any], **data: Any) -> Any:
        """The output of a run of the function."""
        run = await self.run_to_end(function, **data)
        assert run.status == "Completed", run.output
        return msgspec.json.decode(run.output or b"null")

    async def run_to_end(self, function: Function[Any], **data: Any) -> Run:
        run_id = await self.start(function, **data)
        return await self.ended(run_id)

    async def start(self, function: Function[Any], **data: Any) -> str:
        self.serve(function)
        async with ClientSession() as session, session.put(self.url) as response:
            assert response.status == 200, await response.text()
        (event_id,) = await self.engine.engine.send_events([Event(name="go", data=data)])
        (run,) = await self.engine.engine.event_runs(event_id)
        return run.id

    async def ended(self, run_id: str) -> Run:
        with self.engine.engine.watch() as updates:
            while True:
                run = await self.engine.engine.get_run(run_id)
                assert run is not None
                if run.status.has_ended:
                    return run
                await anext(updates)


@asynccontextmanager
async def listening(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The origin at which a handler is served."""
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineServer]:
    async with await serve_database(tmp_path / "engine.db", SETTINGS, port=0) as server:
        yield server


@pytest.fixture
async def gate(engine: EngineServer) -> AsyncIterator[Gate]:
    async with ClientSession() as session:
        gate = Gate(engine.origin, session)
        async with listening(gate.handle) as gate.url:
            yield gate


@pytest.fixture
async def app(engine: EngineServer, gate: Gate) -> AsyncIterator[App]:
    client = Client(app_id="app", is_production=False, api_base_url=gate.url, event_api_base_url=gate.url)
    app = App(client, engine, gate)
    async with listening(app.handle) as origin:
        app.url = f"{origin}/api/inngest"
        yield app


def durable(app: App, handler: Callable[..., Any], **options: Any) -> Function[Any]:
    """A function with checkpointing, triggered by the event ``go``."""
    trigger = TriggerEvent(event="go")
    return app.client.create_function(
        **({"fn_id": handler.__name__.strip("_"), "trigger": trigger, "checkpointing": True} | options)
    )(handler)
