"""The workers of one process: connected when the server is there, run until stopped, and stopped gracefully.

This is what ``durably temporal worker``, Django's and Flask's commands, a web app in development and tests run. It
knows the event loop that it is on, and no signals, terminals or frameworks.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RetryConfig, RPCError
from temporalio.worker import Worker

from .connect_failures import unknown_namespace
from .declarations import WorkerDeclaration, by_task_queue
from .errors import TemporalUnreachableError, TemporalWorkerError
from .sandbox import explain, make_runner
from .settings import ConnectionSettings
from .versioning import explain_versioning, worker_version
from .worker_log import LogInterceptor

DEFAULT_GRACE = timedelta(seconds=30)
DEFAULT_ACTIVITIES = 100
"""Activities that a worker runs at once if it is not told otherwise: the SDK's own figure."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

_logger = logging.getLogger("durably.temporal.worker")


class Connection(Protocol):
    """What workers need of a ``Temporal``."""

    workers: list[WorkerDeclaration]

    @cached_property
    def settings(self) -> ConnectionSettings: ...

    async def connect(self, *, retry_config: RetryConfig | None = None) -> Client: ...


class Workers:
    """The workers that a ``Temporal`` declares, one for each task queue.

    ``grace`` is how long activities that run when the workers are stopped may take to end; then they are cancelled.
    ``client`` is used instead of connecting, by tests. Unless ``versioned``, the settings of worker versioning do not
    count. Raises ``TemporalWorkerError`` for what can be seen before.
    """

    def __init__(
        self,
        temporal: Connection,
        declarations: Sequence[WorkerDeclaration] | None = None,
        *,
        task_queues: Sequence[str] = (),
        grace: timedelta = DEFAULT_GRACE,
        client: Client | None = None,
        versioned: bool = True,
    ) -> None:
        self.temporal = temporal
        self.grace = grace
        self._client = client
        declared = temporal.workers if declarations is None else declarations
        self.declarations = _choose(by_task_queue(declared, temporal.settings.task_queue), task_queues)
        self.version = worker_version(temporal.settings) if versioned else None
        self._running: list[Worker] = []
        self._executors: list[ThreadPoolExecutor] = []
        self._started = asyncio.Event()

    @property
    def task_queues(self) -> dict[str, bool]:
        """The task queues, and whether their workers run."""
        running = {worker.task_queue for worker in self._running if worker.is_running}
        return {_queue(declaration): _queue(declaration) in running for declaration in self.declarations}

    async def check_server(self, timeout: timedelta) -> str | None:
        """What keeps the server from answering the workers, if anything does."""
        if not self._running:
            return "the workers do not run"
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                client = self._running[0].client
                request = DescribeNamespaceRequest(namespace=client.namespace)
                await client.workflow_service.describe_namespace(request)
        except TimeoutError:
            return "the Temporal server does not answer"
        except RPCError as error:
            return f"the Temporal server answers {error.status.name}: {error.message}"
        return None

    async def started(self) -> None:
        """Wait until all workers take tasks."""
        await self._started.wait()

    async def run(self) -> None:
        """Work until cancelled; then stop gracefully. A server that is away is waited for, and said in the log.

        Raises ``TemporalWorkerError`` when a worker cannot be made, or fails: then the others are stopped too.
        """
        client = self._client or await self._connect()
        try:
            self._running = [self._make(client, declaration) for declaration in self.declarations]
            await self._work()
        finally:
            self._running = []
            for executor in self._executors:
                executor.shutdown(wait=False)

    async def _connect(self) -> Client:
        pause = _FIRST_PAUSE
        while True:
            try:
                # A worker has nobody waiting for it: calls are repeated for as long as the SDK thinks right.
                return await self.temporal.connect(retry_config=RetryConfig())
            except TemporalUnreachableError as error:
                _logger.warning("%s Trying again in %g seconds.", error.message, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _make(self, client: Client, declaration: WorkerDeclaration) -> Worker:
        options = {"graceful_shutdown_timeout": self.grace, **declaration.options}
        options.setdefault("workflow_runner", make_runner(declaration))
        options["interceptors"] = [LogInterceptor(), *options.get("interceptors", ())]
        if "activity_executor" not in options:
            options["activity_executor"] = self._make_executor(declaration)
        if self.version is not None:
            options.setdefault("deployment_config", self.version)
        queue = _queue(declaration)
        try:
            return Worker(
                client,
                task_queue=queue,
                workflows=declaration.workflows,
                activities=declaration.activities,
                **options,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = explain(error, declaration) or explain_versioning(error) or _reason(error)
            raise TemporalWorkerError(f'no worker for the task queue "{queue}": {reason}') from error

    def _make_executor(self, declaration: WorkerDeclaration) -> ThreadPoolExecutor:
        threads = declaration.options.get("max_concurrent_activities", DEFAULT_ACTIVITIES)
        self._executors.append(ThreadPoolExecutor(threads, f"activities-{declaration.task_queue}"))
        return self._executors[-1]

    async def _work(self) -> None:
        tasks = [asyncio.create_task(_run(worker, self.temporal.settings)) for worker in self._running]
        started = asyncio.create_task(self._await_start())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await done.pop()
        finally:
            started.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _await_start(self) -> None:
        while not all(self.task_queues.values()):  # noqa: ASYNC110  The SDK tells nobody.
            await asyncio.sleep(0.01)
        self._started.set()


async def _run(worker: Worker, settings: ConnectionSettings) -> None:
    try:
        await worker.run()
    except Exception as error:
        said = _reason(error)
        reason = unknown_namespace(said, settings) or said
        raise TemporalWorkerError(f'the worker of the task queue "{worker.task_queue}" failed: {reason}') from error


def _queue(declaration: WorkerDeclaration) -> str:
    assert declaration.task_queue is not None
    return declaration.task_queue


def _choose(declarations: list[WorkerDeclaration], task_queues: Sequence[str]) -> list[WorkerDeclaration]:
    known = [_queue(declaration) for declaration in declarations]
    for queue in task_queues:
        if queue not in known:
            raise TemporalWorkerError(f'no worker is declared for the task queue "{queue}", but for {", ".join(known)}')
    return [each for each in declarations if not task_queues or each.task_queue in task_queues]


def _reason(error: BaseException) -> str:
    """What the SDK says, with the causes that it names last."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(str(cause) or type(cause).__name__)
        cause = cause.__cause__
    return ": ".join(messages)


def describe(declaration: WorkerDeclaration) -> str:
    """``orders: OrderWorkflow; charge, ship``, for whoever starts the worker."""
    workflows = ", ".join(workflow.__name__ for workflow in declaration.workflows) or "no workflows"
    activities = ", ".join(_name(activity) for activity in declaration.activities) or "no activities"
    return f"{declaration.task_queue}: {workflows}; {activities}"


def _name(activity: Callable[..., Any]) -> str:
    return getattr(activity, "__name__", type(activity).__name__)
