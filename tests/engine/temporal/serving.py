"""Functions that an engine on Temporal serves in the test's own process."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from temporalio.client import Client
from temporalio.converter import DataConverter

import durably
from durably.comm.handler import CommHandler
from durably.embedded.calls import EngineCheckpoints, run_call, sync_of
from durably.engine.core.calls import Answer, CallData
from durably.engine.model.runs import Run
from durably.engine.model.settings import EngineSettings, SystemClock
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue
from durably.engine.temporal.messages import CallInput
from durably.protocol.call import CheckpointRequest

from ...waiting import async_eventually

T = TypeVar("T")

_PATIENCE = 30.0


def new_app() -> durably.Client:
    """An app with a unique id."""
    return durably.Client(app_id=f"app-{uuid.uuid4().hex[:8]}", is_production=False, engine="http://localhost:1")


@contextlib.asynccontextmanager
async def serving(
    address: str,
    app: durably.Client,
    functions: Sequence[durably.Function[Any]],
    *,
    settings: EngineSettings | None = None,
    converter: DataConverter = DATA_CONVERTER,
    namespace: str = "default",
) -> AsyncIterator[WorkflowEngine]:
    """The engine, with workers for the functions."""
    client = await Client.connect(address, namespace=namespace, data_converter=converter)
    engine = WorkflowEngine(client, settings or EngineSettings())
    handler = CommHandler(client=app, framework="test", functions=list(functions))
    clock = SystemClock()

    async def checkpoint(run_id: str, request: CheckpointRequest) -> None:
        await engine.checkpoint(run_id, request)

    loop = asyncio.get_running_loop()

    def block(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    checkpoints = EngineCheckpoints(checkpoint, block)

    async def make(call: CallInput, data: CallData) -> Answer:
        return await run_call(handler, data, checkpoints, clock)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        for worker in engine.make_workers([app_queue(app.app_id)], make):
            await stack.enter_async_context(worker)
        await engine.sync_app(sync_of(handler), in_process=True)
        yield engine


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
