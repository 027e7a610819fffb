"""Replay of histories with the settings of the app's workers.

The settings are the converter, encryption, interceptors and sandbox.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from temporalio import worker, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner

from durably.temporal.client.connection import Temporal
from durably.temporal.client.runtimes import runtime_of_process
from durably.temporal.compat import RecordedTask, RecordingRunner, replay_error, workflow_parts
from durably.temporal.declarations import WorkerDeclaration, by_task_queue
from durably.temporal.errors import TemporalWorkerError
from durably.temporal.worker.sandbox import explain, make_runner

from .histories import StoredHistory
from .mismatches import NO_MISMATCH, Mismatch, find_mismatch

REPLAYS_AT_ONCE = 4
"""Maximum number of histories in memory, and of threads that replay them."""

REPLAY_SECONDS = 120.0
"""A replay that takes longer is cancelled. No workflow task takes as long on a worker."""

_NO_TASK_QUEUE = "replay"
"""The task queue of declarations without one, which a replay does not need."""


class ReplayOutcome(StrEnum):
    """The outcome of a replay.

    ``NONDETERMINISTIC``: the code differs from the history. ``ERROR``: the code raised, or blocked.

    ``UNKNOWN_TYPE``: the app has no such workflow. ``SKIPPED``: no workflow task is completed yet.
    """

    REPLAYED = "replayed"
    SKIPPED = "skipped"
    NONDETERMINISTIC = "nondeterministic"
    ERROR = "error"
    UNKNOWN_TYPE = "unknown_type"


_FINE = (ReplayOutcome.REPLAYED, ReplayOutcome.SKIPPED)


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """The result of the replay of one history.

    ``source`` is the file of a stored history. ``message`` is the error's text, empty if there is none.

    ``event_id`` and ``event`` are the event that the code does not produce, ``instead`` is what the code does.
    """

    workflow_type: str
    workflow_id: str
    run_id: str
    outcome: ReplayOutcome
    source: str | None = None
    message: str = ""
    event_id: int | None = None
    event: str | None = None
    instead: str | None = None

    @property
    def failed(self) -> bool:
        return self.outcome not in _FINE

    def describe(self) -> str:
        """One line about the result.

        The line has the workflow, the event that differs, what the code does instead, and the error.
        """
        where = f"{self.workflow_type} {self.workflow_id} (run {self.run_id}"
        parts = [f"{where}, {self.source})" if self.source else f"{where})"]
        if self.event_id is not None:
            parts.append(f"event {self.event_id} {self.event}")
        if self.instead is not None:
            parts.append(f"the code {self.instead} instead")
        return ": ".join([*parts, self.message] if self.message else parts)


def _quiet_runtime() -> Runtime:
    """A runtime without the SDK's log.

    The log writes each failure to stdout, between the lines of the report.
    """
    return Runtime(telemetry=TelemetryConfig(logging=None))


class HistoryReplayer:
    """Replays histories against the workflows of declarations.

    ``declarations`` are ``temporal``'s if not given. Raises ``TemporalWorkerError`` if a worker cannot be made from
    them.
    """

    def __init__(self, temporal: Temporal, declarations: Sequence[WorkerDeclaration] | None = None) -> None:
        self._temporal = temporal
        declared = temporal.workers if declarations is None else declarations
        queue = temporal.settings.task_queue or _NO_TASK_QUEUE
        self._declarations = [each for each in by_task_queue(declared, queue) if each.workflows]
        if not self._declarations:
            raise TemporalWorkerError(
                "there are no workflows to replay: declare them with temporal.add_worker(workflows=[…])"
            )
        self._executor = ThreadPoolExecutor(REPLAYS_AT_ONCE, "replay")

    @property
    def workflow_types(self) -> list[str]:
        """The names of the declared workflows, without the dynamic one."""
        names = {name for declaration in self._declarations for name in _names(declaration) if name is not None}
        return sorted(names)

    async def replay(self, stored: StoredHistory) -> ReplayResult:
        """Replay a history. Never raises an error of the workflow.

        Raises ``TemporalWorkerError`` if the workflow cannot be loaded.
        """
        declaration = self._declaration_of(stored)
        if declaration is None:
            message = f"the app has no workflow {stored.workflow_type}, only {', '.join(self.workflow_types)}"
            return _result(stored, ReplayOutcome.UNKNOWN_TYPE, message)
        completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        if not any(event.event_type == completed for event in stored.history.events):
            return _result(stored, ReplayOutcome.SKIPPED)
        recorded: list[RecordedTask] = []
        error = await self._run(stored, declaration, recorded.append)
        if error is None:
            return _result(stored, ReplayOutcome.REPLAYED)
        return _failure(stored, error, recorded[-1] if recorded else None)

    async def _run(
        self, stored: StoredHistory, declaration: WorkerDeclaration, record: Callable[[RecordedTask], None]
    ) -> Exception | None:
        replayer = self._make(declaration, record)
        try:
            async with asyncio.timeout(REPLAY_SECONDS):
                result = await replayer.replay_workflow(stored.history, raise_on_replay_failure=False)
        except TimeoutError:
            return RuntimeError(f"the replay does not end in {REPLAY_SECONDS:g} seconds")
        return result.replay_failure

    def _make(self, declaration: WorkerDeclaration, record: Callable[[RecordedTask], None]) -> Replayer:
        options = declaration.options
        runner: WorkflowRunner = options.get("workflow_runner") or make_runner(declaration)
        of_connection = [each for each in self._temporal.interceptors if isinstance(each, worker.Interceptor)]
        plugins = [each for each in self._temporal.plugins if isinstance(each, worker.Plugin)]
        try:
            return Replayer(
                workflows=declaration.workflows,
                workflow_task_executor=self._executor,
                workflow_runner=RecordingRunner(runner, record),
                unsandboxed_workflow_runner=RecordingRunner(UnsandboxedWorkflowRunner(), record),
                namespace=self._temporal.settings.namespace,
                data_converter=self._temporal.data_converter,
                interceptors=[*of_connection, *options.get("interceptors", ())],
                plugins=[*plugins, *options.get("plugins", ())],
                workflow_failure_exception_types=options.get("workflow_failure_exception_types", ()),
                runtime=runtime_of_process(_quiet_runtime),
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise TemporalWorkerError(explain(error, declaration) or str(error)) from error

    def _declaration_of(self, stored: StoredHistory) -> WorkerDeclaration | None:
        """A declaration with the history's workflow type, or with a dynamic workflow.

        One of the history's task queue is preferred.
        """
        for name in (stored.workflow_type, None):
            having = [each for each in self._declarations if name in _names(each)]
            if having:
                return next((each for each in having if each.task_queue == stored.task_queue), having[0])
        return None


def _names(declaration: WorkerDeclaration) -> set[str | None]:
    return {parts.name for each in declaration.workflows if (parts := workflow_parts(each)) is not None}


def _failure(stored: StoredHistory, error: Exception, last: RecordedTask | None) -> ReplayResult:
    if last is not None and last.error is not None:
        started = [each for each in stored.history.events if each.event_id == last.history_length]
        mismatch = find_mismatch(started, None, f"HistoryEvent(id: {last.history_length}")
        return _result(stored, ReplayOutcome.ERROR, last.error, mismatch)
    message = replay_error(error)
    if not isinstance(error, workflow.NondeterminismError):
        return _result(stored, ReplayOutcome.ERROR, message)
    return _result(stored, ReplayOutcome.NONDETERMINISTIC, message, find_mismatch(stored.history.events, last, message))


def _result(
    stored: StoredHistory, outcome: ReplayOutcome, message: str = "", mismatch: Mismatch = NO_MISMATCH
) -> ReplayResult:
    return ReplayResult(
        workflow_type=stored.workflow_type,
        workflow_id=stored.history.workflow_id,
        run_id=stored.history.run_id,
        outcome=outcome,
        source=stored.source,
        message=message,
        event_id=mismatch.event_id,
        event=mismatch.event,
        instead=mismatch.instead,
    )


@dataclass
class TypeReport:
    """Counts of a workflow type's replayed and skipped histories, and its failures.

    ``failures`` are the results of failed histories.
    """

    workflow_type: str
    replayed: int = 0
    skipped: int = 0
    failures: list[ReplayResult] = field(default_factory=list)

    def add(self, result: ReplayResult) -> None:
        if result.failed:
            self.failures.append(result)
        elif result.outcome is ReplayOutcome.SKIPPED:
            self.skipped += 1
        else:
            self.replayed += 1


async def replay_all(
    replayer: HistoryReplayer,
    histories: AsyncIterator[StoredHistory] | Iterable[StoredHistory],
    *,
    reported: Sequence[str] = (),
) -> list[TypeReport]:
    """Replay ``histories``, ``REPLAYS_AT_ONCE`` at a time. Only as many are in memory.

    There is a report for each workflow type, also for those of ``reported`` without a history.
    """
    reports = {each: TypeReport(each) for each in reported}
    source = _as_async(histories)

    async def work() -> None:
        while (stored := await _next(source, reading)) is not None:
            result = await replayer.replay(stored)
            reports.setdefault(result.workflow_type, TypeReport(result.workflow_type)).add(result)

    reading = asyncio.Lock()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(REPLAYS_AT_ONCE):
                group.create_task(work())
    except* Exception as several:
        raise several.exceptions[0] from None
    return [reports[each] for each in sorted(reports)]


async def _next(source: AsyncIterator[StoredHistory], reading: asyncio.Lock) -> StoredHistory | None:
    async with reading:
        return await anext(source, None)


async def _as_async(histories: AsyncIterator[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(histories, AsyncIterator):
        async for each in histories:
            yield each
        return
    for each in histories:
        yield each
