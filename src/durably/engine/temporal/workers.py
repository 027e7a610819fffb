"""The workers of a process: their workflows, activities and polls, and the runs that they keep in memory.

They run until they are stopped. If one fails, all are created again.
"""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from durably.engine.model.requests import OutboundClient
from durably.engine.temporal.apps import AppSync, CronActivities, CronTickWorkflow
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, process_queue
from durably.engine.temporal.observers import report_eviction
from durably.engine.temporal.records import AppWorkflow, FunctionWorkflow, TopicWorkflow
from durably.engine.temporal.routing.bucket import BucketWorkflow
from durably.engine.temporal.routing.limit_queue import LimitQueueWorkflow
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.routing.workflows import EventWorkflow, SignalWorkflow, WaitWorkflow
from durably.engine.temporal.runs.activities import ActivityCaller, CallActivities, LocalActivities, StepRequests
from durably.engine.temporal.runs.call_slots import CallSlots, tuner_of
from durably.engine.temporal.runs.contents import CACHED
from durably.engine.temporal.runs.run_workflow import RunWorkflow
from durably.protocol.text import get_logger
from durably.temporal.compat import Eviction, ObservedRunner, evict, release_task_queue

MAX_CACHED_BYTES = 1024 * 1024 * 1024
"""Maximum size of the contents of all workflows in memory. One run has at most 32 MB."""
IDLE_SECONDS = 30.0
"""Seconds without use before an eviction. A run that is evicted during a task, such as during a local activity, waits
until the task times out."""


class CachedRuns:
    """Evicts idle runs if all contents exceed ``max_bytes``.

    It begins with the least recently used one. The next task of an evicted run reads its history again. ``evict`` and
    the methods are called in threads of a worker (see ``CacheObserver``).
    """

    def __init__(self, evict: Callable[[workflow.Info], None], max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._evict = evict
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, tuple[workflow.Info, int, float]] = OrderedDict()
        self._bytes = 0

    def note_activated(self, info: workflow.Info) -> None:
        cached = CACHED.get(info.run_id)
        now = time.monotonic()
        with self._lock:
            self._drop(info.run_id)
            if cached is not None:
                size = cached.content.size
                self._runs[info.run_id] = info, size, now
                self._bytes += size
            evicted = self._take_idle(now - IDLE_SECONDS)
        for each in evicted:
            self._evict(each)

    def _take_idle(self, used_before: float) -> list[workflow.Info]:
        taken = []
        while self._bytes > self._max_bytes:
            info, _, used_at = next(iter(self._runs.values()))
            if used_at > used_before:
                break
            self._drop(info.run_id)
            taken.append(info)
        return taken

    def note_evicted(self, info: workflow.Info, eviction: Eviction) -> None:
        with self._lock:
            self._drop(info.run_id)
        if (cached := CACHED.pop(info.run_id, None)) is not None:
            cached.release()
        report_eviction(info, eviction)

    def _drop(self, run_id: str) -> None:
        dropped = self._runs.pop(run_id, None)
        if dropped is not None:
            self._bytes -= dropped[1]


_COMMON_WORKFLOWS: Sequence[type] = (
    AppWorkflow,
    CronTickWorkflow,
    LimitQueueWorkflow,
    EventWorkflow,
    FunctionWorkflow,
    BucketWorkflow,
    SignalWorkflow,
    TopicWorkflow,
    WaitWorkflow,
)
WORKFLOWS = (RunWorkflow, *_COMMON_WORKFLOWS)

_STICKY_TIMEOUT = dt.timedelta(seconds=3)
"""Seconds after which another worker takes over the workflow of a lost worker."""

_CALL_POLLS = 2
"""Number of polls for calls. Most calls need none: they come with the answers to workflow tasks. A poll of a worker
that stops may bring a call that it has to return."""

_RUN_POLLS = 16
"""Number of polls for the tasks of runs. A task that finds no waiting poll is written to the server's database and read
again. With Temporal's default of 5 that happens to most tasks of 20 busy runs."""
MAX_CACHED_RUNS = 1000
"""Runs of an app, or of apps over HTTP, whose workflows a process keeps in memory, with their outputs. ``CachedRuns``
limits the size of the outputs."""

_RETRY_SECONDS = 1.0
_RETURN_SECONDS = 5.0

_logger = get_logger("durably.engine")


class ProcessWorkers(list[Worker]):
    """Workers, and the slots of the calls that they make.

    The first worker executes requests of the other workers' workflows, such as the registration of a wait.
    """

    def __init__(self, workers: Iterable[Worker], slots: Sequence[CallSlots]) -> None:
        super().__init__(workers)
        self.slots = slots


def make_workers(
    client: Client,
    calls_queues: Sequence[str],
    call: ActivityCaller,
    *,
    router: Router,
    apps: AppSync,
    outbound: OutboundClient,
    max_calls: int,
) -> ProcessWorkers:
    """The workers of a process.

    One executes the workflows that all apps share. The others execute the runs of one task queue each, and their calls.
    The server gives a call to the worker that executes its run, with the answer to the workflow task.
    """
    local = [*LocalActivities(client, router, apps).activities, *router.buckets.activities]
    requests = StepRequests(process_queue(), outbound)
    common = Worker(
        client,
        task_queue=WORKFLOWS_QUEUE,
        workflows=_COMMON_WORKFLOWS,
        activities=[*local, CronActivities(router).fire],
        sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
    )
    slots = [CallSlots(max_calls) for _ in calls_queues]
    at_once = asyncio.Semaphore(max_calls)
    loop = asyncio.get_running_loop()

    def evict_run(info: workflow.Info) -> None:
        worker = runs[calls_queues.index(info.task_queue)]
        with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
            loop.call_soon_threadsafe(evict, worker, info.run_id)

    runner = ObservedRunner(UnsandboxedWorkflowRunner(), CachedRuns(evict_run))
    runs = [
        Worker(
            client,
            task_queue=queue,
            workflows=[RunWorkflow],
            unsandboxed_workflow_runner=runner,
            activities=[CallActivities(client, call, requests, queue_slots, at_once).call, *local],
            tuner=tuner_of(queue_slots),
            max_concurrent_workflow_task_polls=_RUN_POLLS,
            max_concurrent_activity_task_polls=_CALL_POLLS,
            max_cached_workflows=MAX_CACHED_RUNS,
            sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
        )
        for queue, queue_slots in zip(calls_queues, slots, strict=True)
    ]
    of_requests = Worker(client, task_queue=requests.queue, activities=[requests.request])
    return ProcessWorkers([common, *runs, of_requests], slots)


class WorkerGroup:
    """Runs the workers of a process.

    At a stop, calls get ``close_grace`` to end. Calls that have not ended get a little more time to return their steps.
    """

    def __init__(self, make: Callable[[], ProcessWorkers], close_grace: dt.timedelta) -> None:
        self._make = make
        self._grace_seconds = close_grace.total_seconds() + _RETURN_SECONDS
        self._workers = ProcessWorkers([], [])
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    def start(self) -> None:
        self._is_stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop_calls(self) -> None:
        """Accept no more calls, and wait for running ones.

        Workflows continue, so that calls can commit their steps.
        """
        self._is_stopping = True
        for slots in self._workers.slots:
            slots.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                await asyncio.gather(*(slots.wait_until_unused() for slots in self._workers.slots))

    async def stop(self) -> None:
        """Call ``stop_calls``, then stop the execution of workflows."""
        await self.stop_calls()
        if self._task is not None:
            await asyncio.gather(*(slots.wait_until_polls_are_quiet() for slots in self._workers.slots))
            # Runs end what they have begun. This process may be the only one with the first worker.
            await asyncio.gather(*(worker.shutdown() for worker in self._workers[1:]))
            await asyncio.gather(*(worker.shutdown() for worker in self._workers[:1]))
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        known = ""
        while True:
            try:
                await self._run_once()
                return
            except Exception as error:
                reason = str(error).partition("\n\nStack backtrace:")[0]
                if reason != known:
                    _logger.error("the workers of this process have stopped, and start again: %s", reason)
                known = reason
            if self._is_stopping:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _run_once(self) -> None:
        self._workers = self._make()
        running = [asyncio.create_task(worker.run()) for worker in self._workers]
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for worker in self._workers:
                release_task_queue(worker)
            self._workers = ProcessWorkers([], [])
