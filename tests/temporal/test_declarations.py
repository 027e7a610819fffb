"""Declarations for workers: one worker for each task queue, and clear errors."""

import pytest

from durably.temporal import Temporal, TemporalSettingsError, TemporalWorkerError, Workers
from durably.temporal.declarations import by_task_queue
from durably.temporal.worker.sandbox import declared_modules

from .workflows import OrderWorkflow, SleepingWorkflow, SumWorkflow, charge


def test_declarations_for_one_task_queue_are_one_worker() -> None:
    temporal = Temporal(task_queue="orders")
    temporal.add_worker(workflows=[OrderWorkflow], activities=[charge])
    temporal.add_worker("sums", workflows=[SumWorkflow], max_concurrent_workflow_tasks=5)
    temporal.add_worker("orders", workflows=[SleepingWorkflow, OrderWorkflow], max_concurrent_activities=2)

    orders, sums = by_task_queue(temporal.workers, "orders")
    assert (orders.task_queue, orders.workflows) == ("orders", (OrderWorkflow, SleepingWorkflow))
    assert orders.activities == (charge,)
    assert orders.options == {"max_concurrent_activities": 2}
    assert (sums.task_queue, sums.workflows, sums.activities) == ("sums", (SumWorkflow,), ())


def declared(task_queue: str | None = None, **work: object) -> Temporal:
    temporal = Temporal(task_queue=task_queue)
    temporal.add_worker(**work)  # type: ignore[arg-type]
    return temporal


@pytest.mark.parametrize(
    ("temporal", "message"),
    [
        (Temporal(), "nothing to run: declare workers with temporal.add_worker"),
        (declared(workflows=[OrderWorkflow]), "without a task queue"),
        (declared("orders"), '"orders" has neither workflows nor activities'),
    ],
)
def test_invalid_declarations_are_refused(temporal: Temporal, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEMPORAL_TASK_QUEUE", raising=False)
    with pytest.raises(TemporalWorkerError, match=message):
        Workers(temporal)


def test_an_option_given_twice_is_refused() -> None:
    temporal = Temporal(task_queue="orders")
    temporal.add_worker(activities=[charge], max_concurrent_activities=2)
    temporal.add_worker(activities=[charge], max_concurrent_activities=3)
    with pytest.raises(TemporalWorkerError, match='max_concurrent_activities of the task queue "orders"'):
        Workers(temporal)


def test_a_task_queue_that_is_not_declared_is_refused() -> None:
    temporal = declared("orders", activities=[charge])
    with pytest.raises(TemporalWorkerError, match='"mails", but for orders'):
        Workers(temporal, task_queues=["mails"])


def test_modules_of_activities_are_shared_with_workflows_and_those_of_workflows_are_not() -> None:
    def send_mail() -> None: ...

    send_mail.__module__ = "shop.activities"
    temporal = declared("orders", workflows=[OrderWorkflow], activities=[charge, send_mail])
    [declaration] = by_task_queue(temporal.workers, "orders")
    assert declared_modules(declaration) == {"durably", "shop.activities"}


def test_metrics_with_a_custom_runtime_are_refused() -> None:
    from temporalio.runtime import Runtime, TelemetryConfig

    temporal = Temporal(runtime=lambda: Runtime(telemetry=TelemetryConfig()))
    with pytest.raises(TemporalSettingsError, match="PrometheusConfig"):
        temporal.serve_metrics("127.0.0.1:0")
