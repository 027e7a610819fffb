"""Reasons why workflows are stuck, found by requests to the server.

The requests are about task queues, histories, and all workflows of some types. ``notices`` evaluates the answers.
Workers that serve metrics count stuck workflows (``keep_metric``).
"""

import asyncio
import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, TaskQueueType, WorkerVersioningMode, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    GetWorkflowExecutionHistoryReverseRequest,
)
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import MetricMeter
from temporalio.service import RPCError, RPCStatusCode

from durably.protocol.text import get_logger
from durably.temporal.client.connection import Temporal
from durably.temporal.compat import PAUSED

from .notices import (
    DEFAULT_THRESHOLDS,
    HistoryTail,
    Notice,
    Reason,
    TaskQueueState,
    Thresholds,
    find_notices,
    needs_tail,
    poller_notice,
    queues_of,
)

_REMEMBERED = 3.0
"""Seconds for which an answer about a task queue is cached. A page of workflows needs the same queue each time."""

_MAXIMUM_REMEMBERED = 1000

_TAIL_EVENTS = 100
"""Number of events that are read from the end of a history."""

_AT_A_TIME = 10
"""Maximum number of workflows that are described concurrently."""

DEFAULT_LIMIT = 1000
DEFAULT_TIMEOUT = dt.timedelta(seconds=10)

_logger = get_logger("durably.temporal")
_worker_logger = get_logger("durably.temporal.worker")

OPEN_FILTER = "CloseTime IS NULL"
"""A list filter for open workflows. Old servers refuse the status Paused in a query."""

METRIC = "durably_temporal_stuck_workflows"
METRIC_PERIOD = dt.timedelta(minutes=1)
METRIC_LIMIT = 200
"""Maximum number of workflows that a worker checks in each period."""

_ENDED = Notice(Reason.WORKER_ENDED, "the worker in this web process does not run; the app's log says why")


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow has not ended."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED


@dataclass(frozen=True)
class StuckWorkflow:
    """A stuck workflow, and the reasons."""

    workflow_id: str
    run_id: str
    workflow_type: str
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Check:
    """The result for ``checked`` of ``running`` workflows."""

    stuck: tuple[StuckWorkflow, ...]
    checked: int
    running: int


class Inspector:
    """Finds notices of workflows.

    A process shares one, because it caches the state of task queues.
    """

    def __init__(self, temporal: Temporal, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        self._temporal = temporal
        self._thresholds = thresholds
        self._lock = threading.Lock()
        self._queues: dict[tuple[str, str, bool], tuple[float, TaskQueueState]] = {}

    async def notices(
        self, client: Client, description: WorkflowExecutionDescription, timeout: dt.timedelta = DEFAULT_TIMEOUT
    ) -> list[Notice]:
        """Reasons why a running workflow is stuck; empty if it is not.

        Raises ``RPCError``.
        """
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return []
        described = description.raw_description
        own, others = queues_of(described)
        queues = [await self._queue(client, own, False, timeout)]
        if poller_notice(queues[0], _now(), self._thresholds):
            others -= {own}  # The same worker is missing.
        queues += [await self._queue(client, name, True, timeout) for name in sorted(others)]
        tail = HistoryTail()
        if needs_tail(described, self._thresholds):
            tail = await _read_tail(client, description, timeout)
        found = find_notices(described, queues, tail, _now(), self._thresholds)
        return found if self._temporal.worker_problem is None else [_ENDED, *found]

    async def known_notices(
        self, client: Client, description: WorkflowExecutionDescription, timeout: dt.timedelta = DEFAULT_TIMEOUT
    ) -> list[Notice]:
        """``notices``, or none if the server does not answer.

        In this case it logs a line.
        """
        try:
            return await self.notices(client, description, timeout)
        except RPCError as error:
            _logger.warning("Cannot check whether workflow %s is stuck: %s", description.id, error)
            return []

    async def poller_notice(self, client: Client, task_queue: str, timeout: dt.timedelta) -> Notice | None:
        """A notice if no worker polls a task queue for workflows. Raises ``RPCError``."""
        return poller_notice(await self._queue(client, task_queue, False, timeout), _now(), self._thresholds)

    async def _queue(self, client: Client, name: str, is_for_activities: bool, timeout: dt.timedelta) -> TaskQueueState:
        key = (client.namespace, name, is_for_activities)
        with self._lock:
            made, known = self._queues.get(key, (-_REMEMBERED, None))
        if known is not None and time.monotonic() - made < _REMEMBERED:
            return known
        queue = await _ask_queue(client, name, is_for_activities, timeout)
        with self._lock:
            if len(self._queues) >= _MAXIMUM_REMEMBERED:
                self._queues.clear()
            self._queues[key] = (time.monotonic(), queue)
        return queue

    async def check(
        self,
        client: Client,
        workflow_types: Sequence[str],
        *,
        limit: int = DEFAULT_LIMIT,
        timeout: dt.timedelta = DEFAULT_TIMEOUT,
    ) -> Check:
        """Check running workflows of these types, ``limit`` at most. Raises ``RPCError``."""
        names = ", ".join(f"'{_escape(name)}'" for name in sorted(set(workflow_types)))
        query = f"WorkflowType IN ({names}) AND ExecutionStatus = 'Running'"
        running = (await client.count_workflows(query, rpc_timeout=timeout)).count
        free = asyncio.Semaphore(_AT_A_TIME)

        async def look(workflow_id: str, run_id: str) -> StuckWorkflow | None:
            async with free:
                return await self._look(client, workflow_id, run_id, timeout)

        looks = [asyncio.ensure_future(look(*ids)) async for ids in _running(client, query, limit, timeout)]
        found = await asyncio.gather(*looks)
        return Check(tuple(each for each in found if each is not None), len(found), max(running, len(found)))

    async def _look(self, client: Client, workflow_id: str, run_id: str, timeout: dt.timedelta) -> StuckWorkflow | None:
        handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        try:
            description = await handle.describe(rpc_timeout=timeout)
            notices = await self.notices(client, description, timeout)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None  # It has ended, and the server has deleted it.
            raise
        if not notices:
            return None
        return StuckWorkflow(workflow_id, run_id, description.workflow_type, tuple(notices))


async def _running(client: Client, query: str, limit: int, timeout: dt.timedelta) -> AsyncIterator[tuple[str, str]]:
    async for each in client.list_workflows(query, limit=limit, rpc_timeout=timeout):
        yield each.id, each.run_id


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "''")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def _ask_queue(client: Client, name: str, is_for_activities: bool, timeout: dt.timedelta) -> TaskQueueState:
    kind = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY if is_for_activities else TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=name), task_queue_type=kind
    )
    response = await client.workflow_service.describe_task_queue(request, timeout=timeout)
    return _read_queue(name, is_for_activities, response)


def _read_queue(name: str, is_for_activities: bool, response: DescribeTaskQueueResponse) -> TaskQueueState:
    current = response.versioning_info.current_deployment_version
    polls: dict[str | None, dt.datetime] = {}
    for poller in response.pollers:
        version, last = _version(poller.deployment_options), poller.last_access_time.ToDatetime(dt.UTC)
        polls[version] = max(last, polls.get(version, last))
    return TaskQueueState(
        name=name,
        is_for_activities=is_for_activities,
        polls=polls,
        current_version=f"{current.deployment_name}.{current.build_id}" if current.build_id else None,
    )


def _version(options: Any) -> str | None:
    is_versioned = options.worker_versioning_mode == WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED
    return f"{options.deployment_name}.{options.build_id}" if is_versioned else None


async def _read_tail(client: Client, description: WorkflowExecutionDescription, timeout: dt.timedelta) -> HistoryTail:
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=description.id, run_id=description.run_id),
        maximum_page_size=_TAIL_EVENTS,
    )
    response = await client.workflow_service.get_workflow_execution_history_reverse(request, timeout=timeout)
    tail = await _read_task_failure(client, response.history.events)
    scheduled, failures = {}, {}
    for event in response.history.events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            id = event.activity_task_scheduled_event_attributes.activity_id
            scheduled[id] = event.event_time.ToDatetime(dt.UTC)
    for activity in description.raw_description.pending_activities:
        if activity.HasField("last_failure"):
            failures[activity.activity_id] = await _message(client, activity.last_failure)
    return replace(tail, scheduled=scheduled, failures=failures)


async def _read_task_failure(client: Client, events: Sequence[HistoryEvent]) -> HistoryTail:
    """The failure of the last workflow task; ``events`` are the last ones first."""
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
            return HistoryTail(cause="timed_out", message="no worker has answered in time")
        if event.HasField("workflow_task_failed_event_attributes"):
            failed = event.workflow_task_failed_event_attributes
            cause = WorkflowTaskFailedCause.Name(failed.cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_").lower()
            return HistoryTail(cause=cause, message=await _message(client, failed.failure))
        if event.HasField("workflow_task_completed_event_attributes"):
            break
    return HistoryTail()


async def _message(client: Client, failure: Any) -> str:
    error: BaseException | None = await client.data_converter.decode_failure(failure)
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return f"{getattr(error, 'type', None) or type(error).__name__}: {getattr(error, 'message', '') or error}"


class StuckMetric:
    """The gauge ``durably_temporal_stuck_workflows``.

    Its labels are ``workflow_type`` and ``reason``.
    """

    def __init__(self, meter: MetricMeter) -> None:
        self._gauge = meter.create_gauge(METRIC, "Running workflows that are stuck.")
        self._set: set[tuple[str, str]] = set()

    def record(self, found: Check) -> None:
        """A workflow with several reasons counts for each of them."""
        counts = Counter(
            (each.workflow_type, str(reason)) for each in found.stuck for reason in {one.reason for one in each.notices}
        )
        for key in self._set | set(counts):
            self._gauge.set(counts[key], {"workflow_type": key[0], "reason": key[1]})
        self._set |= set(counts)


async def keep_metric(
    temporal: Temporal, workflow_types: Sequence[str], *, period: dt.timedelta = METRIC_PERIOD
) -> None:
    """Count stuck workflows of these types in each ``period``, until cancelled."""
    inspector, metric = Inspector(temporal), StuckMetric(temporal.meter)
    while workflow_types:
        try:
            client = await temporal.client()
            metric.record(await inspector.check(client, workflow_types, limit=METRIC_LIMIT))
        except Exception as error:
            _worker_logger.warning("Stuck workflows cannot be counted now: %s", error)
        await asyncio.sleep(period.total_seconds())
