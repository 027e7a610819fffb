"""The workers of one process.

They connect when the server answers, run until stopped, and stop gracefully.

``durably temporal worker``, Django's and Flask's commands, tests and, in development, web apps (``Lifespan``) run them.
Signals and terminals are in ``process``.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self

from temporalio.client import Client
from temporalio.client import Interceptor as ClientInterceptor
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RetryConfig
from temporalio.worker import Worker, WorkerDeploymentConfig

from durably.io.background_loop import get_background_loop
from durably.temporal.client.connect_failures import connect_with_retries, explain_refusal
from durably.temporal.declarations import WorkerDeclaration, by_task_queue
from durably.temporal.errors import TemporalSettingsError, TemporalWorkerError
from durably.temporal.namespace import namespace_problem
from durably.temporal.settings import ConnectionSettings, with_own_names

from .log import LogInterceptor
from .sandbox import explain, make_runner

DEFAULT_GRACE = timedelta(seconds=30)
DEFAULT_ACTIVITIES = 100
"""Maximum number of concurrent activities of a worker without ``max_concurrent_activities``: the SDK's own default."""
WEB_GRACE = timedelta(seconds=2)
"""Time for activities when a web process with a worker ends. In development, a reload should be quick."""
_CHECK_SECONDS = 1.0
"""Seconds for the checks of other workers when a worker has failed."""

_logger = logging.getLogger("durably.temporal.worker")


class Connection(Protocol):
    """The part of a ``Temporal`` that is used here."""

    workers: list[WorkerDeclaration]
    web_worker: "Lifespan | None"

    @cached_property
    def settings(self) -> ConnectionSettings: ...

    async def client(self) -> Client: ...

    async def connect(
        self, *, retry_config: RetryConfig | None = None, interceptors: Sequence[ClientInterceptor] | None = None
    ) -> Client: ...


class Workers:
    """The workers that a ``Temporal`` declares, one for each task queue.

    - ``grace``: the time of running activities when the workers are stopped. Then they are cancelled.
    - ``client``: used in tests. With it the workers do not connect.
    - ``versioned=False``: ignores the settings of worker versioning.

    Raises ``TemporalWorkerError`` for errors that are visible before the start.
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
        merged = by_task_queue(declared, temporal.settings.task_queue)
        known = [_queue(declaration) for declaration in merged]
        for queue in task_queues:
            if queue not in known:
                raise TemporalWorkerError(
                    f'no worker is declared for the task queue "{queue}", but for {", ".join(known)}'
                )
        self.declarations = [each for each in merged if not task_queues or each.task_queue in task_queues]
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
        """The reason if the server does not answer the workers; ``None`` if it does."""
        if not self._running:
            return "the workers do not run"
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await namespace_problem(self._running[0].client)
        except TimeoutError:
            return "the Temporal server does not answer"

    async def started(self) -> None:
        """Wait until all workers take tasks."""
        await self._started.wait()

    async def run(self) -> None:
        """Work until cancelled, then stop gracefully.

        Waits for an unreachable server, and logs that.

        Raises ``TemporalWorkerError`` if a worker cannot be created or fails. The others are stopped then.
        """
        client = self._client or await connect_with_retries(
            self.temporal.connect,
            lambda error: _logger.warning("%s Trying again until it answers.", error.message),
            interceptors=None,
        )
        try:
            self._running = [self._make(client, declaration) for declaration in self.declarations]
            await self._work()
        finally:
            self._running = []
            for executor in self._executors:
                executor.shutdown(wait=False)

    def _make(self, client: Client, declaration: WorkerDeclaration) -> Worker:
        options = {"graceful_shutdown_timeout": self.grace, **declaration.options}
        options.setdefault("workflow_runner", make_runner(declaration))
        options["interceptors"] = [LogInterceptor(), *options.get("interceptors", ())]
        if "activity_executor" not in options:
            threads = declaration.options.get("max_concurrent_activities", DEFAULT_ACTIVITIES)
            self._executors.append(ThreadPoolExecutor(threads, f"activities-{declaration.task_queue}"))
            options["activity_executor"] = self._executors[-1]
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
            reason = explain(error, declaration) or _reason(error)
            raise TemporalWorkerError(f'no worker for the task queue "{queue}": {reason}') from error

    async def _work(self) -> None:
        tasks = [asyncio.create_task(_run(worker, self.temporal.settings)) for worker in self._running]
        started = asyncio.create_task(self._await_start())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # The SDK prints a traceback if the event loop closes during the check of the namespace by another worker.
            if checking := [task for task, worker in zip(tasks, self._running, strict=True) if not worker.is_running]:
                await asyncio.wait(checking, timeout=_CHECK_SECONDS)
            await done.pop()
        finally:
            started.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _await_start(self) -> None:
        while not all(self.task_queues.values()):  # noqa: ASYNC110  The SDK has no event for it.
            await asyncio.sleep(0.01)
        self._started.set()


async def _run(worker: Worker, settings: ConnectionSettings) -> None:
    try:
        await worker.run()
    except Exception as error:
        reason = explain_refusal(_reason(error), settings)
        raise TemporalWorkerError(f'the worker of the task queue "{worker.task_queue}" failed: {reason}') from error


def _queue(declaration: WorkerDeclaration) -> str:
    assert declaration.task_queue is not None
    return declaration.task_queue


def _reason(error: BaseException) -> str:
    """The SDK's message and those of its causes."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(str(cause) or type(cause).__name__)
        cause = cause.__cause__
    return ": ".join(messages)


_BEHAVIORS = {"pinned": VersioningBehavior.PINNED, "auto-upgrade": VersioningBehavior.AUTO_UPGRADE}
"""``pinned``: a workflow stays on the version that began it. ``auto-upgrade``: it continues on the current version."""

_NAME, _BUILD_ID, _BEHAVIOR = "TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID", "TEMPORAL_VERSIONING_BEHAVIOR"


def worker_version(settings: ConnectionSettings) -> WorkerDeploymentConfig | None:
    """The version of the app's workers, for Temporal's worker versioning.

    ``None`` without a deployment name and build id. Without a behavior, each workflow's decorator must give one. Raises
    ``TemporalSettingsError``.
    """
    name, build_id, behavior = settings.deployment_name, settings.build_id, settings.versioning_behavior
    problem = None
    if (name is None) != (build_id is None) or (behavior is not None and name is None):
        problem = f"worker versioning needs both {_NAME} and {_BUILD_ID}: only one is set, or only {_BEHAVIOR}"
    elif behavior is not None and behavior not in _BEHAVIORS:
        problem = f"{_BEHAVIOR} is {behavior!r}; known are {', '.join(_BEHAVIORS)}"
    if problem is not None:
        raise TemporalSettingsError(with_own_names(problem, settings))
    if name is None or build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(name, build_id),
        use_worker_versioning=True,
        default_versioning_behavior=_BEHAVIORS.get(behavior or "", VersioningBehavior.UNSPECIFIED),
    )


class Lifespan:
    """The lifespan of a web app that uses Temporal.

    Use ``FastAPI(lifespan=temporal.lifespan())``, or ``async with temporal.lifespan():`` in the app's own lifespan.
    """

    def __init__(self, temporal: Connection, *, worker: bool) -> None:
        self._temporal = temporal
        self._worker = worker
        self._workers: Workers | None = None
        self._working: asyncio.Task[None] | None = None

    @property
    def worker_problem(self) -> str | None:
        """The reason why workers of this web process do not run.

        ``None`` if they do, or if the process has no worker.
        """
        if self._workers is None or self._working is None:
            return None
        if self._working.done():
            return f"the worker in this web process has ended: {_end_of(self._working)}"
        stopped = [queue for queue, is_running in self._workers.task_queues.items() if not is_running]
        return f"the worker in this web process has not started yet for {', '.join(stopped)}" if stopped else None

    def __call__(self, app: object = None) -> Self:
        """Return the lifespan itself. A framework calls it with its app.

        A process may enter it several times, one after another, as tests do.
        """
        return self

    async def __aenter__(self) -> None:
        get_background_loop().submit(self._temporal.client()).add_done_callback(_forget_failure)
        if self._worker:
            self._workers = Workers(self._temporal, grace=WEB_GRACE)
            self._working = asyncio.create_task(self._workers.run())
            self._working.add_done_callback(_log_end)
            self._temporal.web_worker = self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        working, self._working, self._workers = self._working, None, None
        if self._temporal.web_worker is self:
            self._temporal.web_worker = None
        if working is not None:
            working.cancel()
            await asyncio.wait([working])


def _forget_failure(connecting: concurrent.futures.Future[Any]) -> None:
    """The first request reports the failure."""
    if not connecting.cancelled():
        connecting.exception()


def _log_end(working: asyncio.Task[None]) -> None:
    if not working.cancelled():
        _logger.error(
            "The worker in this web process has ended, and the app continues without it: %s", _end_of(working)
        )


def _end_of(working: asyncio.Task[None]) -> str:
    if working.cancelled():
        return "its task was cancelled"
    return str(working.exception() or "it stopped without an error")
