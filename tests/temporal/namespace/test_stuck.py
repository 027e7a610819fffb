"""Stuck workflows are named: in the gateway's notices, by the command, and in the workers' metric."""

import asyncio
import datetime as dt
import json
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flask
import pytest
from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.api.workflow.v1 import PendingActivityInfo, PendingWorkflowTaskInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionResponse,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from durably.temporal import SyncWorkflowHandle, Temporal
from durably.temporal.flask import init_app
from durably.temporal.gateway import Gateway, expose
from durably.temporal.namespace.inspection import Inspector, keep_metric
from durably.temporal.namespace.notices import HistoryTail, Reason, TaskQueueState, find_notices

from ...cli.conftest import Run, directory, run, write
from ...ports import free_port
from ...waiting import async_eventually, eventually
from ..dev_server import DevServer
from ..gateway.test_gateway import ask
from ..stuck_workflows import (
    ACTIVITIES,
    WORKFLOWS,
    AbandonedWorkflow,
    BrokenWorkflow,
    LargeWorkflow,
    PatientWorkflow,
    RetryingWorkflow,
)
from ..worker_thread import working

__all__ = ["directory", "run"]

STUCK = {
    "BrokenWorkflow": Reason.WORKFLOW_TASK_FAILING,
    "LargeWorkflow": Reason.PAYLOAD_TOO_LARGE,
    "RetryingWorkflow": Reason.ACTIVITY_RETRYING,
    "AbandonedWorkflow": Reason.NO_POLLER,
}
EXPOSED = [AbandonedWorkflow, BrokenWorkflow, LargeWorkflow, PatientWorkflow, RetryingWorkflow]
Handles = Mapping[str, SyncWorkflowHandle[None, None]]


@pytest.fixture(scope="module")
def connection(server: DevServer) -> Temporal:
    return Temporal(server.address, task_queue=f"stuck-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def stuck(connection: Temporal) -> Iterator[Handles]:
    """One workflow of each type, stuck for long enough to have its notice."""
    queue = str(connection.settings.task_queue)
    with working(connection, queue, workflows=WORKFLOWS, activities=ACTIVITIES), ExitStack() as stack:
        handles = {}
        for each in EXPOSED:
            name = each.__name__
            own = f"unpolled-{queue}" if each is AbandonedWorkflow else queue
            handles[name] = connection.sync.start_workflow(name, id=f"{name}-{queue}", task_queue=own)
            stack.callback(handles[name].terminate)
        eventually(
            lambda: all(reasons(connection, handles[name]) == [STUCK[name]] for name in STUCK),
            "each workflow is stuck for its reason",
        )
        yield handles


def reasons(connection: Temporal, handle: SyncWorkflowHandle[None, None]) -> list[Reason]:
    description = handle.describe()
    inspector = Inspector(connection)
    return [notice.reason for notice in connection.sync.run(lambda client: inspector.notices(client, description))]


@pytest.fixture
def gateway(connection: Temporal) -> Gateway:
    return Gateway(connection, [expose(each) for each in EXPOSED], allow_anonymous=True)


async def notices(gateway: Gateway, handle: SyncWorkflowHandle[None, None]) -> list[str]:
    workflow = handle.id.partition("-")[0]
    exposure = next(each for each in gateway.exposures.values() if each.workflow_type == workflow)
    found: list[str] = (await ask(gateway, "GET", f"{exposure.name}/{handle.id}")).json["notices"]
    return found


@pytest.mark.slow
async def test_descriptions_show_why_a_workflow_is_stuck(gateway: Gateway, stuck: Handles) -> None:
    [broken] = await notices(gateway, stuck["BrokenWorkflow"])
    assert broken.startswith("the workflow's task fails, attempt ")
    assert "workflow worker unhandled failure: KeyError: 'token=***" in broken
    [large] = await notices(gateway, stuck["LargeWorkflow"])
    assert "larger than the server allows" in large
    [retrying] = await notices(gateway, stuck["RetryingWorkflow"])
    assert retrying.startswith("the activity call_bank has been retried for ")
    assert retrying.endswith("ConnectionError: the bank is away, password=***")
    assert await notices(gateway, stuck["PatientWorkflow"]) == []


@pytest.mark.slow
def test_the_command_lists_stuck_workflows(
    run: Run, directory: Path, server: DevServer, connection: Temporal, stuck: Handles
) -> None:
    queue = connection.settings.task_queue
    write(
        directory / "shop.py",
        f"""
        from durably.temporal import Temporal
        from durably.temporal.gateway import Gateway, expose
        from stuck_workflows import *
        temporal = Temporal(task_queue="{queue}")
        exposed = [AbandonedWorkflow, BrokenWorkflow, LargeWorkflow, PatientWorkflow, RetryingWorkflow]
        gateway = Gateway(temporal, [expose(each) for each in exposed], allow_anonymous=True)
        healthy = Gateway(temporal, [expose(PatientWorkflow)], allow_anonymous=True)
        """,
    )
    write(directory / "stuck_workflows.py", (Path(__file__).parents[1] / "stuck_workflows.py").read_text())
    found = run("temporal", "check", "shop:gateway", TEMPORAL_ADDRESS=server.address)
    assert found.status == 1, found.stderr
    *lines, summary = found.stdout.splitlines()
    for name, reason in STUCK.items():
        assert any(line.startswith(f"{stuck[name].id} ({name}, run ") and f"): {reason}: " in line for line in lines)
    assert not any("PatientWorkflow" in line for line in lines)
    assert summary == "4 of 5 running workflows are stuck"
    healthy = run("temporal", "check", "shop:healthy", "--json", TEMPORAL_ADDRESS=server.address)
    assert (healthy.status, json.loads(healthy.stdout)) == (0, {"stuck": 0, "checked": 1, "running": 1})
    away = run("temporal", "check", "shop:healthy", TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert away.status == 2
    assert "cannot be reached" in away.stderr


def test_flasks_command_lists_stuck_workflows(server: DevServer, connection: Temporal, stuck: Handles) -> None:
    app, temporal = flask.Flask("shop"), Temporal(server.address, task_queue=connection.settings.task_queue)
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    init_app(app, temporal)
    found = app.test_cli_runner().invoke(args=["temporal", "check"])
    assert found.exit_code == 1
    assert f"{stuck['BrokenWorkflow'].id} (BrokenWorkflow, run " in found.output
    assert found.output.endswith("3 of 4 running workflows are stuck\n")
    patient = app.test_cli_runner().invoke(args=["temporal", "check", "--activity-attempts", "1000000", "--json"])
    reasons = [json.loads(line) for line in patient.output.splitlines()]
    assert (patient.exit_code, reasons[-1]["checked"]) == (1, 4)
    assert "activity-retrying" not in patient.output


def test_unchecked_workflows_are_reported(connection: Temporal, stuck: Handles) -> None:
    inspector = Inspector(connection)
    check = connection.sync.run(lambda client: inspector.check(client, list(STUCK), limit=1))
    assert (check.checked, check.running) == (1, 4)


async def test_workers_and_gateways_count_stuck_workflows(
    server: DevServer, connection: Temporal, stuck: Handles
) -> None:
    port = free_port()
    measured = Temporal(server.address, task_queue=connection.settings.task_queue)
    measured.serve_metrics(f"127.0.0.1:{port}")
    gateway = Gateway(measured, [expose(each) for each in EXPOSED], allow_anonymous=True)
    assert await notices(gateway, stuck["BrokenWorkflow"])
    counting = asyncio.create_task(keep_metric(measured, list(STUCK)))
    wanted = [("durably_temporal_stuck_workflows", name, reason) for name, reason in STUCK.items()]
    wanted.append(("durably_gateway_notices_total", "BrokenWorkflow", Reason.WORKFLOW_TASK_FAILING))

    async def missing() -> list[object]:
        return [each for each in wanted if not await asyncio.to_thread(is_one, port, *each)]

    await async_eventually(missing, "each stuck workflow is counted", is_right=lambda left: not left)
    counting.cancel()


def is_one(port: int, metric: str, workflow_type: str, reason: str) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    labels = (f'workflow_type="{workflow_type}"', f'reason="{reason}"')
    found = [line for line in lines if line.startswith(f"{metric}{{") and all(each in line for each in labels)]
    return [line.rpartition(" ")[2] for line in found] == ["1"]


def test_versioned_workers_without_a_current_version(server: DevServer, connection: Temporal) -> None:
    queue = f"versioned-{uuid.uuid4().hex[:8]}"
    version = WorkerDeploymentVersion(deployment_name=f"shop-{queue}", build_id="b1")
    config = WorkerDeploymentConfig(
        version=version, use_worker_versioning=True, default_versioning_behavior=VersioningBehavior.PINNED
    )
    with working(connection, queue, workflows=[PatientWorkflow], deployment_config=config):
        handle = connection.sync.start_workflow("PatientWorkflow", id=queue, task_queue=queue)
        eventually(
            lambda: reasons(connection, handle) == [Reason.NO_CURRENT_VERSION], "the workflow has no current version"
        )
        inspector, description = Inspector(connection), handle.describe()
        [notice] = connection.sync.run(lambda client: inspector.notices(client, description))
        assert "with `durably temporal deployment set-current-version MODULE:TEMPORAL`" in notice.text
        connection.sync.run(lambda client: set_current(client, version))
        eventually(lambda: reasons(connection, handle) == [], "the workflow is not stuck")
    handle.terminate()


async def set_current(client: Client, version: WorkerDeploymentVersion) -> None:
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=version.deployment_name, build_id=version.build_id
    )
    await client.workflow_service.set_worker_deployment_current_version(request)


NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
POLLED = TaskQueueState(name="orders", polls={None: NOW})


def described(**parts: Any) -> DescribeWorkflowExecutionResponse:
    found = DescribeWorkflowExecutionResponse(**parts)
    found.workflow_execution_info.task_queue = "orders"
    return found


def find(
    found: DescribeWorkflowExecutionResponse, queue: TaskQueueState = POLLED, tail: HistoryTail | None = None
) -> list[Reason]:
    return [notice.reason for notice in find_notices(found, [queue], tail or HistoryTail(), NOW)]


@pytest.mark.parametrize(("attempt", "expected"), [(2, []), (3, [Reason.WORKFLOW_TASK_FAILING])])
def test_a_workflow_task_fails_from_the_third_attempt_on(attempt: int, expected: list[Reason]) -> None:
    assert find(described(pending_workflow_task=PendingWorkflowTaskInfo(attempt=attempt))) == expected


@pytest.mark.parametrize(
    ("attempt", "minutes", "expected"),
    [(1, 600, []), (9, 59, []), (10, 1, [Reason.ACTIVITY_RETRYING]), (2, 60, [Reason.ACTIVITY_RETRYING])],
)
def test_an_activity_is_retried_too_often_or_for_too_long(attempt: int, minutes: int, expected: list[Reason]) -> None:
    activity = PendingActivityInfo(activity_id="1", attempt=attempt)
    tail = HistoryTail(scheduled={"1": NOW - dt.timedelta(minutes=minutes)})
    assert find(described(pending_activities=[activity]), tail=tail) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(60, []), (61, [Reason.WORKFLOW_TASK_WAITING])])
def test_a_task_that_waits_although_a_worker_polls(seconds: int, expected: list[Reason]) -> None:
    task = PendingWorkflowTaskInfo(state=PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED, attempt=1)
    task.scheduled_time.FromDatetime(NOW - dt.timedelta(seconds=seconds))
    assert find(described(pending_workflow_task=task)) == expected


def test_a_version_without_a_worker_is_named() -> None:
    silent = NOW - dt.timedelta(seconds=91)
    queue = TaskQueueState(name="orders", polls={"shop.b1": silent, "shop.b2": NOW}, current_version="shop.b1")
    [notice] = find_notices(described(), [queue], HistoryTail(), NOW)
    assert notice.reason is Reason.NO_POLLER_OF_VERSION
    assert "a worker of version shop.b1" in notice.text
    assert "there are workers of shop.b2" in notice.text
    assert find(described(), TaskQueueState(name="orders", polls={"shop.b1": silent})) == [Reason.NO_POLLER]
