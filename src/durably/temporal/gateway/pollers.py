"""Whether a worker is there: the most frequent reason for which a workflow does not go on."""

import datetime as dt
import threading
import time

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

_SILENCE = dt.timedelta(seconds=90)
"""A worker that lives asks for work at least once a minute; the server remembers those that died for five."""

_REMEMBERED = 3.0
"""Seconds for which an answer holds, since a page that shows workflows asks about the same queue each time."""

_MAXIMUM_REMEMBERED = 1000


class Pollers:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notices: dict[tuple[str, str], tuple[float, str | None]] = {}

    async def notice(self, client: Client, task_queue: str, timeout: dt.timedelta) -> str | None:
        """What to tell of a queue from which nobody takes work; ``None`` if somebody does, or if it is not known."""
        key = (client.namespace, task_queue)
        with self._lock:
            made, notice = self._notices.get(key, (-_REMEMBERED, None))
        if time.monotonic() - made < _REMEMBERED:
            return notice
        try:
            notice = await _ask(client, task_queue, timeout)
        except RPCError:
            return None
        with self._lock:
            if len(self._notices) >= _MAXIMUM_REMEMBERED:
                self._notices.clear()
            self._notices[key] = (time.monotonic(), notice)
        return notice


async def _ask(client: Client, task_queue: str, timeout: dt.timedelta) -> str | None:
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    response = await client.workflow_service.describe_task_queue(request, timeout=timeout)
    seen = [poller.last_access_time.ToDatetime(dt.UTC) for poller in response.pollers]
    if not seen:
        return f'no worker polls the task queue "{task_queue}": is one running, with that queue and namespace?'
    silent = dt.datetime.now(dt.UTC) - max(seen)
    if silent > _SILENCE:
        seconds = int(silent.total_seconds())
        return f'no worker has polled the task queue "{task_queue}" for {seconds} seconds: is one running?'
    return None
