"""Functions with flow control on the development server. Each test has its own app and events."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from temporalio.client import Client as TemporalClient
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from durably import Client, Context, Function, TriggerEvent
from durably.embedded.calls import sync_of
from durably.engine.core.calls import Answer, CallData
from durably.engine.core.flow.config import read_flow
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue, bucket_workflow_id, run_workflow_id
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.routing.limit_queue import QueueCounts
from durably.protocol.sync import FunctionConfig, SyncRequest

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ..running_apps import RunningApp

PATIENCE = 30.0


class Limit:
    """Blocks calls until the test releases them. ``inside`` has the blocked ones."""

    def __init__(self) -> None:
        self.inside: list[Any] = []
        self.entered: list[Any] = []
        self.most_inside = 0
        self._changed = asyncio.Condition()
        self._may_leave: dict[Any, asyncio.Event] = {}
        self._is_open = False

    async def pass_through(self, who: Any) -> Any:
        self.inside.append(who)
        self.entered.append(who)
        self.most_inside = max(self.most_inside, len(self.inside))
        async with self._changed:
            self._changed.notify_all()
        try:
            if not self._is_open:
                await self._may_leave.setdefault(who, asyncio.Event()).wait()
        finally:
            self.inside.remove(who)
        async with self._changed:
            self._changed.notify_all()
        return who

    async def wait_for(self, *who: Any) -> None:
        """Wait until these calls, and no others, are inside."""
        await self.wait_until(lambda: sorted(self.inside) == sorted(who))

    async def wait_until(self, is_right: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(is_right)

    def let_go(self, who: Any) -> None:
        self._may_leave.setdefault(who, asyncio.Event()).set()

    def open(self) -> None:
        self._is_open = True
        for event in self._may_leave.values():
            event.set()


class World:
    def __init__(self, temporal: TemporalClient) -> None:
        self.app_id = f"flow-{uuid.uuid4().hex[:8]}"
        self.client = Client(app_id=self.app_id, is_production=False, engine="http://localhost:1")
        self.temporal = temporal
        self.engine = WorkflowEngine(temporal, EngineSettings())
        self.limit = Limit()
        self.seen: list[Any] = []
        self.run_ids: dict[Any, str] = {}
        self._noted = asyncio.Condition()
        self.functions: dict[str, Function[Any]] = {}
        self._workers = contextlib.AsyncExitStack()

    def function(self, fn_id: str, **options: Any) -> Callable[[Any], Function[Any]]:
        options.setdefault("trigger", TriggerEvent(event=self.event(fn_id)))
        options.setdefault("retries", 0)

        def decorate(handler: Any) -> Function[Any]:
            function = self.client.create_function(fn_id=fn_id, **options)(handler)
            self.functions[fn_id] = function
            return function

        return decorate

    def event(self, name: str) -> str:
        return f"{self.app_id}/{name}"

    def recording(self, fn_id: str, **options: Any) -> Function[Any]:
        """A function that records the ``n`` of its events, and returns it."""

        @self.function(fn_id, **options)
        async def record(ctx: Context) -> Any:
            noted = [event.data["n"] for event in ctx.events] if len(ctx.events) > 1 else ctx.event.data["n"]
            self.seen.append(noted)
            await self.note()
            return noted

        return record

    def gated(self, fn_id: str, **options: Any) -> Function[Any]:
        """A function of one step, which waits at the limit as the ``n`` of its event."""

        @self.function(fn_id, **options)
        async def wait_at_gate(ctx: Context) -> Any:
            self.run_ids[ctx.event.data["n"]] = ctx.run_id
            return await ctx.step.run("gate", lambda: self.limit.pass_through(ctx.event.data["n"]))

        return wait_at_gate

    async def note(self) -> None:
        async with self._noted:
            self._noted.notify_all()

    def queue_of(self, fn_id: str, **data: Any) -> WorkflowHandle[Any, Any]:
        """The queue of a function with one limit, for an event with some data."""
        config = self.config_of(fn_id)
        (limit,) = read_flow(config).concurrency
        queue_id = bucket_workflow_id(config.id, "concurrency", limit.bucket_id(config.id, {"data": data}, 0))
        return self.temporal.get_workflow_handle(queue_id)

    def config_of(self, fn_id: str) -> FunctionConfig:
        (config,) = (each for each in self.sync_request().functions if each.id == f"{self.app_id}-{fn_id}")
        return config

    def sync_request(self) -> SyncRequest:
        return sync_of(self._app.handler)

    async def wait_for_queue(self, fn_id: str, counts: QueueCounts) -> None:
        await self.wait_for_counts(self.queue_of(fn_id), counts)

    async def wait_for_counts(self, queue: WorkflowHandle[Any, Any], counts: QueueCounts) -> None:
        await async_eventually(
            lambda: _counts_of(queue), f"the queue has {counts}", is_right=lambda found: found == counts
        )

    async def wait_for_seen(self, *expected: Any) -> None:
        """Wait until functions have recorded these numbers, and no others, in any order."""
        async with asyncio.timeout(PATIENCE), self._noted:
            await self._noted.wait_for(lambda: len(self.seen) >= len(expected))
        assert sorted(self.seen, key=repr) == sorted(expected, key=repr)

    async def open(self) -> None:
        await self.start_workers()
        await self.sync()

    async def start_workers(self) -> None:
        for worker in self.engine.make_workers([app_queue(self.app_id)], self._call):
            await self._workers.enter_async_context(worker)

    async def stop_workers(self) -> None:
        await self._workers.aclose()
        self._workers = contextlib.AsyncExitStack()

    async def sync(self) -> None:
        self._app = RunningApp(self.client, [*self.functions.values()], self.temporal, self.engine)
        await self._app.sync()

    async def close(self) -> None:
        self.limit.open()
        await self._workers.aclose()
        await self.engine.close()

    async def _call(self, call: CallInput, data: CallData) -> Answer:
        return await self._app.call_function(call, data)

    async def send(self, name: str, *, seed: str | None = None, **data: Any) -> str:
        body = msgspec.json.encode({"name": self.event(name), "data": data})
        (event_id,) = (await self.engine.receive_events(body, seed=seed)).ids
        return event_id

    def run(self, n: Any) -> WorkflowHandle[Any, Any]:
        """The workflow of the gated function's run for an event."""
        return self.temporal.get_workflow_handle(run_workflow_id(self.run_ids[n]))


async def _counts_of(queue: WorkflowHandle[Any, Any]) -> QueueCounts | None:
    """The counts, or ``None`` before the first call has joined."""
    try:
        found: QueueCounts = await queue.query("counts", result_type=QueueCounts)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None
    return found


@pytest.fixture
async def world(server: DevServer) -> AsyncIterator[World]:
    world = World(await TemporalClient.connect(server.address, data_converter=DATA_CONVERTER))
    try:
        yield world
    finally:
        await world.close()
