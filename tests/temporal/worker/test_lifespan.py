"""A web process in development that also runs workers: ``temporal.lifespan(worker=True)``."""

import asyncio
import logging
import uuid
from datetime import timedelta

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from temporalio.client import Client

from durably.temporal import Temporal

from ...ports import free_port
from ...waiting import async_eventually, eventually
from ..dev_server import DevServer
from ..workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow


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


def test_app_starts_and_ends_while_the_server_is_unreachable() -> None:
    temporal = Temporal(f"127.0.0.1:{free_port()}", task_queue="orders", connect_timeout=timedelta(seconds=1))
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    with TestClient(make_app(temporal, worker=True)) as client:
        assert client.get("/openapi.json").status_code == 200


def test_failed_worker_is_in_the_log_and_the_health_check(server: DevServer, caplog: pytest.LogCaptureFixture) -> None:
    temporal = Temporal(server.address, task_queue=uuid.uuid4().hex)
    temporal.add_worker(workflows=[dict])
    app = make_app(temporal, worker=True)

    @app.get("/ready")
    async def ready() -> tuple[bool, str | None]:
        health = await temporal.check_health(timedelta(seconds=30))
        return health.ok, health.problem

    with caplog.at_level(logging.ERROR, "durably.temporal.worker"), TestClient(app) as client:
        eventually(lambda: "has ended" in caplog.text, "the worker's end is logged")
        ok, problem = client.get("/ready").json()
    assert "Workflow dict missing attributes" in caplog.text
    assert not ok
    assert problem.startswith("the worker in this web process has ended: no worker for the task queue")


def test_a_worker_that_has_not_started_is_a_problem(server: DevServer) -> None:
    temporal = Temporal(server.address, task_queue="orders")
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)

    async def live() -> list[str | None]:
        assert temporal.worker_problem is None
        async with temporal.lifespan(worker=True):
            before = temporal.worker_problem
            await async_eventually(lambda: temporal.worker_problem is None, "the worker runs")
        return [before, temporal.worker_problem]

    assert asyncio.run(live()) == ["the worker in this web process has not started yet for orders", None]
