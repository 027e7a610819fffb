"""Whether a worker is there: the most frequent reason for which a workflow does not go on."""

import datetime as dt
import threading
import time

from temporalio.api.enums.v1 import PendingActivityState, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError

from durably.temporal.connection import Temporal

_SILENCE = dt.timedelta(seconds=90)
"""A worker that lives asks for work at least once a minute; the server remembers those that died for five."""

_REMEMBERED = 3.0
"""Seconds for which an answer holds, since a page that shows workflows asks about the same queue each time."""

_MAXIMUM_REMEMBERED = 1000

_WORKFLOWS = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
_ACTIVITIES = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
_FOR: dict[TaskQueueType.ValueType, str] = {_WORKFLOWS: "", _ACTIVITIES: " for activities"}


_WORKER_ENDED = "the worker in this web process does not run; the app's log says why"


class Pollers:
    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._lock = threading.Lock()
        self._notices: dict[tuple[str, str, int], tuple[float, str | None]] = {}

    async def notices(
        self, client: Client, description: WorkflowExecutionDescription, timeout: dt.timedelta
    ) -> list[str]:
        """Of the task queue of a workflow that runs, and of those on which its activities wait to be begun."""
        if description.status is not WorkflowExecutionStatus.RUNNING:
            return []
        waiting = {
            activity.activity_options.task_queue.name
            for activity in description.raw_description.pending_activities
            if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        }
        own = await self.notice(client, description.task_queue, timeout)
        # Servers of older versions do not say where an activity waits.
        others = sorted(waiting - {""} - ({description.task_queue} if own else set()))
        found = [own, *[await self.notice(client, queue, timeout, _ACTIVITIES) for queue in others]]
        ended = [] if self._temporal.worker_problem is None else [_WORKER_ENDED]
        return ended + [notice for notice in found if notice is not None]

    async def notice(
        self,
        client: Client,
        task_queue: str,
        timeout: dt.timedelta,
        kind: TaskQueueType.ValueType = _WORKFLOWS,
    ) -> str | None:
        """What to tell of a queue from which nobody takes work; ``None`` if somebody does, or if it is not known."""
        key = (client.namespace, task_queue, kind)
        with self._lock:
            made, notice = self._notices.get(key, (-_REMEMBERED, None))
        if time.monotonic() - made < _REMEMBERED:
            return notice
        try:
            notice = await _ask(client, task_queue, timeout, kind)
        except RPCError:
            return None
        with self._lock:
            if len(self._notices) >= _MAXIMUM_REMEMBERED:
                self._notices.clear()
            self._notices[key] = (time.monotonic(), notice)
        return notice


async def _ask(client: Client, task_queue: str, timeout: dt.timedelta, kind: TaskQueueType.ValueType) -> str | None:
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=kind,
    )
    response = await client.workflow_service.describe_task_queue(request, timeout=timeout)
    seen = [poller.last_access_time.ToDatetime(dt.UTC) for poller in response.pollers]
    if not seen:
        return (
            f'no worker polls the task queue "{task_queue}"{_FOR[kind]}: is one running, with that queue and namespace?'
        )
    silent = dt.datetime.now(dt.UTC) - max(seen)
    if silent > _SILENCE:
        seconds = int(silent.total_seconds())
        return f'no worker has polled the task queue "{task_queue}"{_FOR[kind]} for {seconds} seconds: is one running?'
    return None
