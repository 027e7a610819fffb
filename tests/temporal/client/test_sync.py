"""Temporal for synchronous code."""

import uuid
from datetime import timedelta

import pytest
from temporalio.client import Client, WithStartWorkflowOperation, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDConflictPolicy

from durably.temporal import Temporal, TemporalSettingsError

from ...waiting import eventually
from ..workflows import TASK_QUEUE, Order, OrderWorkflow, Receipt

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def order() -> Order:
    return Order(order_id=uuid.uuid4().hex, amount=2, lines=["wait"])


def test_a_workflow_from_start_to_end(temporal: Temporal, order: Order) -> None:
    handle = temporal.sync.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue=TASK_QUEUE)
    assert handle.describe().id == handle.id == order.order_id
    with pytest.raises(TimeoutError):
        handle.result(timeout=timedelta(milliseconds=50))
    handle.signal(OrderWorkflow.add_note, "fragile")
    assert handle.query(OrderWorkflow.note, 0) == "fragile"
    assert handle.execute_update(OrderWorkflow.change_address, "here") == ""
    with pytest.raises(WorkflowUpdateFailedError):
        handle.execute_update(OrderWorkflow.change_address, "")
    handle.signal("ship")
    assert handle.result() == Receipt(order_id=order.order_id, paid=2, note="fragile")
    assert handle.fetch_history().events


def test_a_handle_to_an_existing_workflow(temporal: Temporal, order: Order) -> None:
    started = temporal.sync.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue=TASK_QUEUE)
    for handle in (
        temporal.sync.get_workflow_handle_for(OrderWorkflow.run, order.order_id),
        temporal.sync.get_workflow_handle(order.order_id, run_id=started.result_run_id, result_type=Receipt),
    ):
        assert handle.query("state") in ("placed", "charged")
    started.cancel(reason="no")
    with pytest.raises(WorkflowFailureError):
        started.result()


def test_lists_are_read_page_by_page(temporal: Temporal) -> None:
    ids = {
        temporal.sync.start_workflow("SleepingWorkflow", id=uuid.uuid4().hex, task_queue=TASK_QUEUE).id
        for _ in range(3)
    }
    query = "WorkflowType='SleepingWorkflow'"
    eventually(
        lambda: {found.id for found in temporal.sync.list_workflows(query, page_size=2)},
        "the started workflows are listed",
        is_right=lambda listed: ids <= listed,
    )
    assert temporal.sync.count_workflows(query).count >= 3


def test_any_method_of_the_client_is_called(temporal: Temporal, order: Order) -> None:
    async def change(client: Client) -> str:
        start = WithStartWorkflowOperation(
            OrderWorkflow.run,
            order,
            id=order.order_id,
            task_queue=TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        return await client.execute_update_with_start_workflow(
            OrderWorkflow.change_address, "here", start_workflow_operation=start
        )

    assert [temporal.sync.run(change), temporal.sync.run(change)] == ["", "here"]


def test_the_task_queue_of_the_connection() -> None:
    assert Temporal(task_queue="orders").task_queue == "orders"
    with pytest.raises(TemporalSettingsError, match="TEMPORAL_BILLING_TASK_QUEUE"):
        _ = Temporal(name="billing").task_queue
