"""The private parts of ``temporalio`` that Durably uses: each matches the installed version, or an error says so."""

import asyncio
import importlib.metadata
import logging
import re
import threading
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import pytest
import temporalio.workflow
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import RawValue
from temporalio.service import RetryConfig
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from durably.temporal import Temporal, TemporalVersionError, compat
from durably.temporal.compat import (
    PAUSED,
    ActivityDefinition,
    Eviction,
    ObservedRunner,
    activity_definition,
    connect_failure,
    evict,
    handler_name,
    release_task_queue,
    request_id,
    workflow_parts,
)

from ..ports import free_port
from ..waiting import async_eventually
from .workflows import TASK_QUEUE, Order, OrderWorkflow, SleepingWorkflow


@workflow.defn(name="Parcel")
class ParcelWorkflow:
    @workflow.run
    async def run(self) -> None: ...

    @workflow.signal(name="send-off", description="Send it.")
    def send(self) -> None: ...

    @workflow.signal(dynamic=True)
    def other_signal(self, name: str, args: Sequence[RawValue]) -> None: ...

    @workflow.query
    def place(self) -> str:
        return ""

    @workflow.update
    def readdress(self, address: str) -> None: ...


class PlainClass:
    def run(self) -> None: ...


@activity.defn(name="weigh-parcel")
def weigh() -> None: ...


@activity.defn(dynamic=True)
async def weigh_anything(args: Sequence[RawValue]) -> None: ...


INSTALLED = importlib.metadata.version("temporalio")


@pytest.mark.parametrize("defined", [ParcelWorkflow, ParcelWorkflow.run], ids=["class", "run"])
def test_a_workflow_definition_is_read(defined: Any) -> None:
    found = workflow_parts(defined)
    assert found is not None
    assert (found.name, found.cls, found.run) == ("Parcel", ParcelWorkflow, ParcelWorkflow.run)
    assert [(each.name, each.function, each.description) for each in found.signals.values()] == [
        ("send-off", ParcelWorkflow.send, "Send it.")
    ]
    assert (list(found.queries), list(found.updates)) == (["place"], ["readdress"])


def test_other_callables_have_no_definition() -> None:
    assert workflow_parts(PlainClass) is None
    assert workflow_parts(PlainClass.run) is None
    assert workflow_parts(type("SubParcel", (ParcelWorkflow,), {})) is None
    assert activity_definition(PlainClass.run) is None


def test_handler_names_are_read() -> None:
    assert handler_name("signal", ParcelWorkflow.send) == "send-off"
    assert handler_name("query", ParcelWorkflow.place) == "place"
    assert handler_name("update", ParcelWorkflow.readdress) == "readdress"
    assert handler_name("update", ParcelWorkflow.send) is None
    assert handler_name("signal", ParcelWorkflow.other_signal) is None


def test_activity_definitions_are_read() -> None:
    assert activity_definition(weigh) == ActivityDefinition("weigh-parcel")
    assert activity_definition(weigh_anything) == ActivityDefinition(None)


def test_the_paused_status_is_read() -> None:
    status = WorkflowExecutionStatus(8)
    assert status is PAUSED
    assert (status.name, status.value) == ("PAUSED", 8)
    with pytest.raises(ValueError, match="99"):
        WorkflowExecutionStatus(99)


class OtherStatus(StrEnum):
    RUNNING = "running"


class RecordingService:
    """Receives requests as ``Client.workflow_service`` does."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def start_workflow_execution(self, request: Any, **options: Any) -> None:
        self.ids.append(request.request_id)

    signal_with_start_workflow_execution = signal_workflow_execution = start_workflow_execution
    update_workflow_execution = start_workflow_execution


class StubClient:
    def __init__(self, service: object) -> None:
        self.workflow_service: Any = service


async def test_requests_get_the_chosen_id_only_inside_of_the_block() -> None:
    service = RecordingService()
    client: Any = StubClient(service)
    for _ in range(2):
        with request_id(client, "chosen"):
            await client.workflow_service.signal_workflow_execution(SignalWorkflowExecutionRequest(request_id="own"))
        await client.workflow_service.start_workflow_execution(StartWorkflowExecutionRequest(request_id="own"))
    assert service.ids == ["chosen", "own"] * 2


async def test_the_server_carries_out_a_signal_of_one_id_once(temporal: Temporal, worker: None) -> None:
    client: Client = await temporal.client()
    handle = await client.start_workflow(SleepingWorkflow.run, id=uuid.uuid4().hex, task_queue=TASK_QUEUE)
    chosen = str(uuid.uuid4())
    for _ in range(2):
        with request_id(client, chosen):
            await handle.signal("anything")
    await handle.terminate()  # A signal that arrived during a task of the workflow is in its history now.
    history = await handle.fetch_history()
    assert sum(event.HasField("workflow_execution_signaled_event_attributes") for event in history.events) == 1


async def test_headers_are_kept_with_signals_and_updates(temporal: Temporal, worker: None) -> None:
    client: Client = await temporal.client()
    order = Order(order_id=uuid.uuid4().hex, amount=1, lines=["wait"])
    handle = await client.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue=TASK_QUEUE)
    headers = {"x-test": Payload(data=b"1")}
    with request_id(client, str(uuid.uuid4()), headers):
        await handle.execute_update(OrderWorkflow.change_address, "here")
    with request_id(client, str(uuid.uuid4()), headers):
        await handle.signal(OrderWorkflow.ship)
    await handle.result()
    found = [
        event.workflow_execution_update_accepted_event_attributes.accepted_request.input.header
        if event.HasField("workflow_execution_update_accepted_event_attributes")
        else event.workflow_execution_signaled_event_attributes.header
        for event in (await handle.fetch_history()).events
    ]
    assert [dict(header.fields) for header in found if header.fields] == [headers, headers]


def without(monkeypatch: pytest.MonkeyPatch, part: str) -> Any:
    """A call that uses a private part of ``temporalio``, which is missing or has changed."""
    other: Any = StubClient(object())
    match part:
        case "temporalio.workflow._Definition":
            monkeypatch.delattr(temporalio.workflow, "_Definition")
            return workflow_parts(ParcelWorkflow)
        case "temporalio.activity._Definition":
            monkeypatch.delattr(activity, "_Definition")
            return activity_definition(weigh)
        case "__temporal_signal_definition of a signal handler":
            monkeypatch.setattr(ParcelWorkflow.send, "__temporal_signal_definition", object())
            return handler_name("signal", ParcelWorkflow.send)
        case "enumeration temporalio.client.WorkflowExecutionStatus":
            return compat._find_or_add_paused(OtherStatus)  # type: ignore[arg-type]
        case "workflow_service.start_workflow_execution":
            with request_id(other, "chosen"):
                return None
        case "request_workflow_eviction":
            return evict(other, "run")


@pytest.mark.parametrize(
    "part",
    [
        "temporalio.workflow._Definition",
        "temporalio.activity._Definition",
        "__temporal_signal_definition of a signal handler",
        "enumeration temporalio.client.WorkflowExecutionStatus",
        "workflow_service.start_workflow_execution",
        "request_workflow_eviction",
    ],
)
def test_a_missing_part_is_named(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    with pytest.raises(TemporalVersionError, match=re.escape(part)) as missing:
        without(monkeypatch, part)
    assert f"temporalio {INSTALLED}" in str(missing.value)


def test_an_id_that_no_request_got_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    client: Any = StubClient(RecordingService())
    with caplog.at_level(logging.ERROR, "durably.temporal"), request_id(client, "chosen"):
        pass
    assert f"temporalio {INSTALLED}" in caplog.text
    assert "had no effect" in caplog.text


async def test_a_worker_that_never_ran_leaves_its_task_queue_to_others(temporal: Temporal) -> None:
    client = await temporal.client()

    def make() -> Worker:
        return Worker(client, task_queue=f"left-{id(client)}", activities=[weigh_anything])

    first = make()
    with pytest.raises(RuntimeError, match="multiple workers"):
        make()
    release_task_queue(first)
    async with make() as running:
        await async_eventually(lambda: running.is_running, "the worker is running")
        release_task_queue(running)
        assert not running.is_shutdown


async def test_the_reason_of_a_failed_connect_is_found() -> None:
    with pytest.raises(RuntimeError) as caught:
        await Client.connect(f"127.0.0.1:{free_port()}", retry_config=RetryConfig(max_retries=0))
    assert connect_failure(caught.value).startswith("Connection refused")
    assert connect_failure(RuntimeError("refused")) == "refused"


class Observer:
    """Notes what a worker's runtime does with its workflows."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Eviction | None]] = []

    def note_activated(self, info: workflow.Info) -> None:
        self.seen.append((info.run_id, None))

    def note_evicted(self, info: workflow.Info, eviction: Eviction) -> None:
        self.seen.append((info.run_id, eviction))

    async def wait_for(self, run_id: str | None, eviction: Eviction | None) -> None:
        await async_eventually(lambda: (run_id, eviction) in self.seen, f"the worker reports {run_id}")

    def evictions(self) -> list[Eviction]:
        return [eviction for _, eviction in self.seen if eviction is not None]


is_ending, may_end = threading.Event(), threading.Event()


@workflow.defn(sandboxed=False)
class EndingWorkflow:
    """Ends at once, in a task that takes as long as the test wants."""

    @workflow.run
    async def run(self) -> None:
        is_ending.set()
        may_end.wait(1)

    @workflow.signal
    def note(self) -> None: ...


@workflow.defn(sandboxed=False)
class WaitingWorkflow:
    def __init__(self) -> None:
        self.is_over = False

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self.is_over)

    @workflow.signal
    def end(self) -> None:
        self.is_over = True


def observed_worker(client: Client, observer: Observer) -> Worker:
    return Worker(
        client,
        task_queue=f"observed-{uuid.uuid4().hex}",
        workflows=[EndingWorkflow, WaitingWorkflow],
        unsandboxed_workflow_runner=ObservedRunner(UnsandboxedWorkflowRunner(), observer),
    )


async def test_the_runtime_says_whether_the_server_accepts_the_end_of_a_workflow(temporal: Temporal) -> None:
    client, observer = await temporal.client(), Observer()
    is_ending.clear()
    may_end.clear()
    async with observed_worker(client, observer) as worker:
        handle = await client.start_workflow(EndingWorkflow.run, id=uuid.uuid4().hex, task_queue=worker.task_queue)
        await asyncio.to_thread(is_ending.wait, 60)
        await handle.signal(EndingWorkflow.note)  # So the server refuses the task under way.
        may_end.set()
        await handle.result()
        await observer.wait_for(handle.first_execution_run_id, Eviction.ENDED)
        assert observer.evictions() == [Eviction.REFUSED, Eviction.ENDED]


async def test_a_workflow_is_evicted_on_request_and_continues(temporal: Temporal) -> None:
    client, observer = await temporal.client(), Observer()
    async with observed_worker(client, observer) as worker:
        handle = await client.start_workflow(WaitingWorkflow.run, id=uuid.uuid4().hex, task_queue=worker.task_queue)
        run_id = handle.first_execution_run_id
        assert run_id is not None
        await observer.wait_for(run_id, None)
        evict(worker, run_id)
        await observer.wait_for(run_id, Eviction.OTHER)
        evict(worker, run_id)  # It has none.
        await handle.signal(WaitingWorkflow.end)
        await handle.result()
        await observer.wait_for(run_id, Eviction.ENDED)
    evict(worker, run_id)  # The worker has ended.
