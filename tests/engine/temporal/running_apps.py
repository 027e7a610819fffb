"""Apps on the engine on Temporal. Workers run in the test's event loop, and call functions in process."""

import asyncio
import datetime as dt
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import Worker
from ulid import ULID

import durably
from durably.comm.handler import CommHandler
from durably.embedded.calls import EngineCheckpoints, run_call, sync_of
from durably.engine.core.calls import Answer, CallData
from durably.engine.model.runs import Run
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue, make_run_id, run_workflow_id
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs.activities import ActivityCaller
from durably.engine.temporal.workers import ProcessWorkers
from durably.functions.function import Function
from durably.protocol.limits import MAX_STEPS

from ...waiting import async_eventually

_numbers = itertools.count()
QUICK = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    allow_private_addresses=True,
    close_grace=dt.timedelta(milliseconds=100),
    max_event_bytes=10_000_000,
    max_steps=MAX_STEPS * 100,
)


def make_client() -> durably.Client:
    """The client of an app with a unique name, because tests share a server."""
    name = f"app{os.getpid()}x{next(_numbers)}"
    return durably.Client(app_id=name, is_production=False, engine="http://localhost:1")


class RunningApp:
    """An app whose functions run on Temporal.

    ``caller`` makes its calls; tests may replace it.
    """

    def __init__(self, app: durably.Client, functions: Sequence[Function[Any]], client: Client, engine: WorkflowEngine):
        self.id = app.app_id
        self.client = client
        self.engine = engine
        self.handler = CommHandler(client=app, framework="test", functions=[*functions])
        self.caller: ActivityCaller = self.call_function
        self.workers = ProcessWorkers([], [])
        loop = asyncio.get_running_loop()
        self._checkpoints = EngineCheckpoints(
            engine.checkpoint, lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result()
        )

    async def call_function(self, call: CallInput, data: CallData) -> Answer:
        return await run_call(self.handler, data, self._checkpoints, QUICK.clock)

    async def call(self, call: CallInput, data: CallData) -> Answer:
        return await self.caller(call, data)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Workers of one process."""
        self.workers = self.engine.make_workers([app_queue(self.id)], self.call)
        async with _all_of(self.workers):
            yield

    async def start(self, function: str, data: dict[str, Any] | None = None) -> "RunOfApp":
        """Send the event that triggers a function, and find its run."""
        event = {"name": f"{self.id}/{function}", "data": data or {}}
        (event_id,) = (await self.engine.receive_events(msgspec.json.encode(event))).ids
        run_id = make_run_id(ULID.from_str(event_id).milliseconds, event_id, f"{self.id}-{function}")
        return RunOfApp(run_id, self.client.get_workflow_handle(run_workflow_id(run_id), result_type=Any))

    async def sync(self) -> None:
        await self.engine.sync_app(sync_of(self.handler), in_process=True)


class RunOfApp:
    def __init__(self, run_id: str, handle: WorkflowHandle[Any, Any]) -> None:
        self.id = run_id
        self.handle = handle

    async def result(self) -> Any:
        return await self.handle.result()

    async def history(self) -> WorkflowHistory:
        return await self.handle.fetch_history()

    async def event_types(self) -> list[str]:
        from temporalio.api.enums.v1 import EventType

        return [EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in (await self.history()).events]


@asynccontextmanager
async def _all_of(workers: Sequence[Worker]) -> AsyncIterator[None]:
    """Run workers, and stop all of them at the same time."""
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        await asyncio.gather(*(worker.shutdown() for worker in workers))
        await asyncio.gather(*running)


@asynccontextmanager
async def running(
    address: str,
    app: durably.Client,
    *functions: Function[Any],
    settings: EngineSettings = QUICK,
    converter: DataConverter = DATA_CONVERTER,
    namespace: str = "default",
) -> AsyncIterator[RunningApp]:
    """Sync the app, and run its workers."""
    client = await Client.connect(address, namespace=namespace, data_converter=converter)
    app_on_temporal = RunningApp(app, functions, client, WorkflowEngine(client, settings))
    try:
        async with app_on_temporal.working():
            await app_on_temporal.sync()
            yield app_on_temporal
    finally:
        await app_on_temporal.engine.close()


@asynccontextmanager
async def serving(
    address: str, app: durably.Client, functions: Sequence[Function[Any]], **options: Any
) -> AsyncIterator[WorkflowEngine]:
    """The engine of a running app. ``options`` are those of ``running``."""
    async with running(address, app, *functions, **{"settings": EngineSettings(), **options}) as on_temporal:
        yield on_temporal.engine


def on(app: durably.Client, function: str) -> durably.TriggerEvent:
    """The trigger of a function for ``RunningApp.start``."""
    return durably.TriggerEvent(event=f"{app.app_id}/{function}")


async def send(engine: WorkflowEngine, name: str, data: dict[str, Any] | None = None, **fields: Any) -> str:
    """Send an event. Returns its id."""
    (event_id,) = (await engine.receive_events(msgspec.json.encode({"name": name, "data": data or {}, **fields}))).ids
    return event_id


async def ended_runs(engine: WorkflowEngine, event_id: str, count: int = 1) -> list[Run]:
    """The runs that an event started, once all of them have ended."""
    runs = await async_eventually(
        lambda: engine.event_runs(event_id),
        "the runs of the event are listed",
        is_right=lambda runs: len(runs) >= count,
    )
    return [await engine.wait_for_run(run.id) for run in runs]
