"""Temporal for synchronous code."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDConflictPolicy

from durably.temporal import StartOperation, Temporal, TemporalSettingsError
from durably.temporal.declarations import fill_arguments

from ..dev_server import DevServer
from ..workflows import (
    TASK_QUEUE,
    ChainWorkflow,
    Order,
    OrderWorkflow,
    Pair,
    Receipt,
    SleepingWorkflow,
    SumWorkflow,
)

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def order() -> Order:
    return Order(order_id=uuid.uuid4().hex, amount=2, lines=["wait"])


def test_a_workflow_from_start_to_end(temporal: Temporal, order: Order) -> None:
    handle = temporal.sync.start_workflow(OrderWorkflow.run, order, id=order.order_id)
    assert handle.describe().id == handle.id == order.order_id
    with pytest.raises(TimeoutError):
        handle.result(timeout=timedelta(milliseconds=50))
    handle.signal(OrderWorkflow.add_note, "fragile")
    assert handle.query(OrderWorkflow.note, 0) == "fragile"
    assert handle.execute_update(OrderWorkflow.change_address, "here") == ""
    update = handle.start_update("change_address", "there")
    assert update.result() == "here"
    assert handle.get_update_handle(update.id, result_type=str).result() == "here"
    with pytest.raises(WorkflowUpdateFailedError):
        handle.execute_update(OrderWorkflow.change_address, "")
    handle.signal("ship")
    assert handle.result() == Receipt(order_id=order.order_id, paid=2, note="fragile")
    assert handle.fetch_history().events


def test_a_handle_to_an_existing_workflow(temporal: Temporal, order: Order) -> None:
    started = temporal.sync.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue=TASK_QUEUE)
    for handle in (
        temporal.sync.get_workflow_handle_for(OrderWorkflow.run, order.order_id),
        temporal.sync.get_workflow_handle(order.order_id, result_type=Receipt),
        started.for_run(started.result_run_id or ""),
    ):
        assert handle.query("state") in ("placed", "charged")
    started.cancel(reason="no")
    with pytest.raises(WorkflowFailureError):
        started.result()


def test_a_workflow_with_several_arguments_is_executed(temporal: Temporal) -> None:
    result = temporal.sync.execute_workflow(SumWorkflow.run, args=[Pair(1, [2]), 3], id=uuid.uuid4().hex)
    assert result == 9


def test_arguments_that_are_left_out_get_their_defaults(temporal: Temporal) -> None:
    """A worker reads fewer arguments than parameters without their types: its task would fail repeatedly."""
    handle = temporal.sync.start_workflow(SumWorkflow.run, args=[Pair(1, [2])], id=uuid.uuid4().hex)
    try:
        assert handle.result(timeout=timedelta(seconds=30)) == 3
    except TimeoutError:
        handle.terminate()
        raise
    for args, words in (([], "needs an argument for pair"), ([Pair(1), 2, 3], "takes 2 arguments, and 3 were given")):
        for call in (temporal.sync.start_workflow, temporal.sync.execute_workflow):
            with pytest.raises(TypeError, match=words):
                call(SumWorkflow.run, args=args, id=uuid.uuid4().hex)


class Handlers:
    def note(self, text: str, urgent: bool = False, copies: int = 1) -> None: ...

    def rest(self, *texts: str) -> None: ...


@pytest.mark.parametrize(
    ("arg", "options", "expected"),
    [
        ((), {"args": ["a"]}, ((), {"args": ["a", False, 1]})),
        (("a",), {"x": 1}, ((), {"x": 1, "args": ["a", False, 1]})),
        ((), {"args": ["a", True, 2]}, ((), {"args": ["a", True, 2]})),
    ],
)
def test_arguments_are_filled_in_however_they_are_given(
    arg: tuple[Any, ...], options: dict[str, Any], expected: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    assert fill_arguments(Handlers.note, arg, options) == expected
    assert fill_arguments("note", arg, options) == (arg, options)


def test_all_parameters_with_defaults_and_any_number_of_arguments() -> None:
    assert fill_arguments(ChainWorkflow.run, ("wait",), {}) == ((), {"args": ["wait", 1]})
    assert fill_arguments(Handlers.rest, (), {"args": ["a", "b"]}) == ((), {"args": ["a", "b"]})
    assert fill_arguments(SleepingWorkflow.run, (), {}) == ((), {})


def test_signals_queries_and_updates_get_defaults_too(temporal: Temporal, order: Order) -> None:
    handle = temporal.sync.start_workflow(OrderWorkflow.run, order, id=order.order_id)
    for call in (handle.signal, handle.query, handle.execute_update, handle.start_update):
        with pytest.raises(TypeError, match="needs an argument for urgent"):
            call(NeedsTwo.note, "a")
    start = StartOperation(
        SumWorkflow.run, args=[], id=order.order_id, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    with pytest.raises(TypeError, match="needs an argument for urgent"):
        temporal.sync.execute_update_with_start_workflow(NeedsTwo.note, "a", start=start)
    with pytest.raises(TypeError, match="needs an argument for pair"):
        temporal.sync.execute_update_with_start_workflow(OrderWorkflow.change_address, "a", start=start)
    handle.terminate()


class NeedsTwo:
    def note(self, text: str, urgent: bool) -> None: ...


def test_lists_are_read_page_by_page(temporal: Temporal) -> None:
    ids = {temporal.sync.start_workflow("SleepingWorkflow", id=uuid.uuid4().hex).id for _ in range(3)}
    listed = set[str]()
    while not ids <= listed:
        listed = {found.id for found in temporal.sync.list_workflows("WorkflowType='SleepingWorkflow'", page_size=2)}
    assert temporal.sync.count_workflows("WorkflowType='SleepingWorkflow'").count >= 3


def test_update_with_start_starts_a_missing_workflow(temporal: Temporal, order: Order) -> None:
    start = StartOperation(
        OrderWorkflow.run, order, id=order.order_id, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    update = temporal.sync.execute_update_with_start_workflow
    assert update(OrderWorkflow.change_address, "here", start=start) == ""
    again = StartOperation(
        OrderWorkflow.run, order, id=order.order_id, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )
    assert update(OrderWorkflow.change_address, "there", start=again) == "here"


def test_a_missing_task_queue_is_named(server: DevServer) -> None:
    with pytest.raises(TemporalSettingsError, match="TEMPORAL_TASK_QUEUE"):
        Temporal(server.address).sync.start_workflow("any", id="any")
