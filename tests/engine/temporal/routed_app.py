"""Small apps on the engine on Temporal: calls are made in this process."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from temporalio.client import Client
from ulid import ULID

from durably.engine.core.calls import Answer, CallData, build_body, read_answer
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue, make_run_id, run_workflow_id
from durably.engine.temporal.messages import CallInput
from durably.protocol.call import decode_call
from durably.protocol.events import EventReceipt
from durably.protocol.sync import SyncRequest

from ...waiting import async_eventually
from ..small_app import SmallApp, Steps

PATIENCE = 60.0
_numbers = itertools.count()
_DEFAULT = EngineSettings()


class RoutedApp(SmallApp):
    """A small app with a unique id, on a shared server. ``event`` makes event names unique.

    Ids do not begin like those of ``apps.py``, which counts separately.
    """

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        super().__init__(f"routed{os.getpid()}x{next(_numbers)}")
        self.client = client
        self.engine = WorkflowEngine(client, settings)
        self.url = "embedded://app"

    def event(self, name: str) -> str:
        return f"{self.app_id}/{name}"

    def id_of(self, function: str) -> str:
        return f"{self.app_id}-{function}"

    async def sync(self) -> Any:
        return await self.engine.sync_app(self.sync_request(), in_process=True)

    async def send(self, name: str, *, id: str = "", seed: str | None = None, **data: Any) -> EventReceipt:
        event = {"name": self.event(name), "data": data, **({"id": id} if id else {})}
        return await self.engine.receive_events(msgspec.json.encode(event), seed=seed)

    def run_id(self, receipt: EventReceipt, function: str) -> str:
        """The id of the run that an event without an id of its sender starts."""
        event_id = receipt.ids[0]
        return make_run_id(ULID.from_str(event_id).milliseconds, event_id, self.id_of(function))

    async def call(self, call: CallInput, data: CallData) -> Answer:
        body = build_body(data)
        decoded = decode_call(body)
        self.calls.append(decoded)
        async with self.called:
            self.called.notify_all()
        await self.gate.wait()
        reply = self.run(Steps(self, decoded, msgspec.json.decode(body)["steps"], data.call.step_id), data.function_id)
        assert isinstance(reply.body, bytes)
        return read_answer(reply.status, {name.lower(): text for name, text in reply.headers.items()}, reply.body, 0)

    async def result(self, run_id: str) -> Any:
        """The output of a completed or skipped run. Raises ``WorkflowFailureError`` otherwise."""
        handle = self.client.get_workflow_handle(run_workflow_id(run_id))
        async with asyncio.timeout(PATIENCE):
            return await handle.result()

    async def run_to_end(self, name: str, function: str, **data: Any) -> Any:
        return await self.result(self.run_id(await self.send(name, **data), function))

    async def history_length(self, workflow_id: str) -> int:
        """The number of events, once the workflow has nothing more to do."""
        described = await async_eventually(
            self.client.get_workflow_handle(workflow_id).describe,
            f"{workflow_id} has no pending task",
            is_right=lambda found: not found.raw_description.HasField("pending_workflow_task"),
        )
        return described.history_length


@asynccontextmanager
async def routed_app(address: str, settings: EngineSettings = _DEFAULT) -> AsyncIterator[RoutedApp]:
    client = await Client.connect(address, data_converter=DATA_CONVERTER)
    app = RoutedApp(client, settings)
    async with running(app):
        yield app


@asynccontextmanager
async def running(app: RoutedApp) -> AsyncIterator[None]:
    """The app with workers."""
    workers = app.engine.make_workers([app_queue(app.app_id)], app.call)
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        app.gate.set()
        await asyncio.gather(*(worker.shutdown() for worker in workers))
        await asyncio.gather(*tasks)


def data_of(steps: Steps) -> Mapping[str, Any]:
    assert steps.event is not None
    return steps.event.data


def sync_request(app: SmallApp, **changes: Any) -> SyncRequest:
    return msgspec.structs.replace(app.sync_request(), **changes)
