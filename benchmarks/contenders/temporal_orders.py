"""Orders on Temporal: the workflow, and what an app's endpoints do with it, by hand and with the library.

``HAND`` is a bare call on one client that is shared by all requests. ``CONNECT`` connects a client for each request, as
the examples that one finds do; its views in threads run an event loop each. ``DIRECT`` is the same endpoint with
``durably.temporal``. All start and describe the same workflows. No worker is needed: what an app waits for is only that
the server has taken the order.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import TLSConfig

with workflow.unsafe.imports_passed_through():
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway, expose

HAND, CONNECT, DIRECT, GATEWAY = "hand", "connect", "direct", "gateway"
QUEUE = "orders"

T = TypeVar("T")
Connect = Callable[[], Awaitable[Client]]


@dataclass
class Order:
    order_id: str
    amount: int
    lines: list[str] = field(default_factory=list)


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, order: Order) -> float:
        """When the order was shipped, which takes no time: seconds since 1970."""
        return workflow.now().timestamp()


def workflow_id(order: Order) -> str:
    return f"order-{order.order_id}"


def make_gateway(temporal: Temporal) -> Gateway:
    """At ``/orders`` and ``/orders/{workflow_id}``, where the endpoints written by hand are."""
    return Gateway(temporal, [expose(OrderWorkflow, name="orders", id="order-{order_id}")], allow_anonymous=True)


def started(handle: Any) -> dict[str, Any]:
    return {"workflow_id": handle.id, "run_id": handle.result_run_id, "status": "started"}


def described(description: WorkflowExecutionDescription) -> dict[str, Any]:
    return {"workflow_id": description.id, "run_id": description.run_id, "status": str(description.status)}


async def start(client: Client, order: Order) -> dict[str, Any]:
    return started(await client.start_workflow(OrderWorkflow.run, order, id=workflow_id(order), task_queue=QUEUE))


async def describe(client: Client, id: str) -> dict[str, Any]:
    return described(await client.get_workflow_handle(id).describe())


@dataclass(frozen=True)
class Server:
    """The address of Temporal's server, and a connection by hand."""

    address: str
    tls: TLSConfig | None

    async def connect(self) -> Client:
        return await Client.connect(self.address, tls=self.tls)

    async def get_client(self, way: str) -> Connect:
        """The source of the client of the async frameworks' endpoints."""
        if way == DIRECT:
            return Temporal(self.address, task_queue=QUEUE).client
        if way == CONNECT:
            return self.connect
        client = await self.connect()

        async def shared() -> Client:
            return client

        return shared


class Orders(Protocol):
    """The work of the endpoints in threads."""

    def start(self, order: Order) -> dict[str, Any]: ...

    def describe(self, id: str) -> dict[str, Any]: ...


class _ByHand:
    def __init__(self, run: Callable[[Callable[[Client], Awaitable[dict[str, Any]]]], dict[str, Any]]) -> None:
        self._run = run

    def start(self, order: Order) -> dict[str, Any]:
        return self._run(lambda client: start(client, order))

    def describe(self, id: str) -> dict[str, Any]:
        return self._run(lambda client: describe(client, id))


class _Direct:
    def __init__(self, temporal: Temporal) -> None:
        self._sync = temporal.sync

    def start(self, order: Order) -> dict[str, Any]:
        return started(self._sync.start_workflow(OrderWorkflow.run, order, id=workflow_id(order), task_queue=QUEUE))

    def describe(self, id: str) -> dict[str, Any]:
        return described(self._sync.get_workflow_handle(id).describe())


@asynccontextmanager
async def open_orders(server: Server, way: str, temporal: Temporal) -> AsyncIterator[Orders]:
    """The endpoints in threads, of any way but the gateway's."""
    if way == DIRECT:
        yield _Direct(temporal)
        return
    if way == CONNECT:

        def run_anew(call: Callable[[Client], Awaitable[T]]) -> T:
            async def connect_and_call() -> T:
                return await call(await server.connect())

            return asyncio.run(connect_and_call())

        yield _ByHand(run_anew)
        return
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    client = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(server.connect(), loop))

    async def call_shared(call: Callable[[Client], Awaitable[T]]) -> T:
        return await call(client)

    yield _ByHand(lambda call: asyncio.run_coroutine_threadsafe(call_shared(call), loop).result())
    loop.call_soon_threadsafe(loop.stop)
