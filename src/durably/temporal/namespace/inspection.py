"""Whether workers poll a task queue, and whether a workflow is open."""

import datetime as dt

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus

from durably.temporal.compat import PAUSED

OPEN_FILTER = "CloseTime IS NULL"
"""A list filter for open workflows. Old servers refuse the status Paused in a query."""

SILENCE = dt.timedelta(seconds=90)
"""A live worker polls at least once a minute; the server lists a dead one for five minutes."""


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow has not ended."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED


async def missing_worker(client: Client, task_queue: str, timeout: dt.timedelta) -> str | None:
    """A sentence if no worker polls the task queue for workflows. Raises ``RPCError``."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    found = await client.workflow_service.describe_task_queue(request, timeout=timeout)
    polls = [poller.last_access_time.ToDatetime(dt.UTC) for poller in found.pollers]
    if polls and dt.datetime.now(dt.UTC) - max(polls) <= SILENCE:
        return None
    return f'no worker polls the task queue "{task_queue}": is one running, with that queue and namespace?'
