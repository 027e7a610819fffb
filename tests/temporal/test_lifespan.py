"""A web process in development that also works: ``temporal.lifespan(worker=True)``."""

import asyncio
import logging
import uuid
from datetime import timedelta

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from temporalio.client import Client

from durably.temporal import Temporal

from ..ports import free_port
from .dev_server import DevServer
from .workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow


def make_app(temporal: Temporal, *, worker: bool) -> FastAPI:
    app = FastAPI(lifespan=temporal.lifespan(worker=True) if worker else temporal.lifespan)

    @app.post("/orders/{order_id}")
    async def place(order_id: str, client: Client = Depends(temporal.client)) -> str:  # noqa: B008
        queue = temporal.settings.task_queue
        assert queue is not None
        order = Order(order_id=order_id, amount=1)
        receipt = await client.execute_workflow(OrderWorkflow.run, order, id=f"{queue}-{order_id}", task_queue=queue)
        return receipt.order_id

    return app


def test_the_worker_runs_as_long_as_the_app(server: DevServer) -> None:
    temporal = Temporal(server.address, task_queue=uuid.uuid4().hex)
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    app = make_app(temporal, worker=True)
    for order_id in ("1", "2"):  # Two lives of one app, as with several test clients.
        with TestClient(app) as client:
            assert client.post(f"/orders/{order_id}").json() == order_id


def test_an_app_starts_and_ends_while_the_server_is_away() -> None:
    temporal = Temporal(f"127.0.0.1:{free_port()}", task_queue="orders", connect_timeout=timedelta(seconds=1))
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    with TestClient(make_app(temporal, worker=True)) as client:
        assert client.get("/openapi.json").status_code == 200


def test_a_worker_that_fails_is_logged_and_the_app_goes_on(server: DevServer, caplog: pytest.LogCaptureFixture) -> None:
    temporal = Temporal(server.address, task_queue="orders")
    temporal.add_worker(workflows=[dict])

    async def live() -> None:
        async with temporal.lifespan(worker=True):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    with caplog.at_level(logging.ERROR, "durably.temporal.worker"):
        asyncio.run(asyncio.wait_for(live(), 30))
    assert "Workflow dict missing attributes" in caplog.text
