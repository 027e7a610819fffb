"""Replay of stored workflow histories against the app's code.

It finds changes that running workflows do not survive. ``durably.testing.temporal.replay_histories`` uses it. A replay
has the settings of the app's workers: the converter, encryption, interceptors and sandbox. Activities do not run.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from temporalio import worker
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import Replayer

from durably.errors import Error
from durably.temporal.client.connection import Temporal, runtime_of_process

from .compat import replay_error, workflow_parts
from .declarations import WorkerDeclaration, by_task_queue
from .errors import TemporalWorkerError
from .worker.sandbox import explain, make_runner

_NO_TASK_QUEUE = "replay"
"""The task queue of declarations without one, which a replay does not need."""


class HistoryError(Error):
    """A directory has no histories, or a file is not a history. The message names it."""


@dataclass(frozen=True)
class StoredHistory:
    source: str
    history: WorkflowHistory
    workflow_type: str
    task_queue: str


def read_histories(directory: str | Path) -> Iterator[StoredHistory]:
    """The histories of all ``*.json`` files of a directory and below.

    The files are as ``temporal workflow show -o json`` prints them. Raises ``HistoryError``.
    """
    paths = sorted(Path(directory).rglob("*.json"))
    if not paths:
        raise HistoryError(
            f"{directory} has no *.json files: `temporal workflow show --workflow-id … -o json` prints a history"
        )
    for path in paths:
        try:
            history = WorkflowHistory.from_json(path.stem, path.read_text("utf-8"))
        except Exception as error:  # Errors of the JSON and protobuf libraries.
            raise HistoryError(f"{path} is not a workflow's history: {error}") from error
        if not history.events or not history.events[0].HasField("workflow_execution_started_event_attributes"):
            raise HistoryError(f"{path} is not a workflow's history: it does not begin with WorkflowExecutionStarted")
        started = history.events[0].workflow_execution_started_event_attributes
        yield StoredHistory(
            str(path),
            WorkflowHistory(started.workflow_id or path.stem, history.events),
            started.workflow_type.name,
            started.task_queue.name,
        )


@dataclass
class ReplayReport:
    """``replayed`` counts histories by workflow type.

    A line of ``failures`` names a history that does not fit the code, and the error of the SDK, which names the event.
    """

    replayed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


async def replay(
    temporal: Temporal, histories: Iterator[StoredHistory], declarations: Sequence[WorkerDeclaration] | None = None
) -> ReplayReport:
    """Replay ``histories`` one after the other, without those that have no completed workflow task.

    ``declarations`` are those of ``temporal`` by default. Raises ``TemporalWorkerError`` if a workflow cannot be
    loaded.
    """
    declared = temporal.workers if declarations is None else declarations
    queue = temporal.settings.task_queue or _NO_TASK_QUEUE
    by_type: dict[str | None, list[WorkerDeclaration]] = {}
    for declaration in by_task_queue(declared, queue):
        for workflow in declaration.workflows:
            if (parts := workflow_parts(workflow)) is not None:
                by_type.setdefault(parts.name, []).append(declaration)
    report = ReplayReport()
    replayers: dict[str | None, Replayer] = {}
    for stored in histories:
        having = by_type.get(stored.workflow_type) or by_type.get(None)  # A dynamic workflow has no name.
        title = f"{stored.workflow_type} {stored.history.workflow_id} ({stored.source})"
        if having is None:
            known = ", ".join(sorted(filter(None, by_type))) or "no workflows"
            report.failures.append(f"{title}: no worker has this workflow type, only {known}")
            continue
        completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        if not any(event.event_type == completed for event in stored.history.events):
            continue
        chosen = next((each for each in having if each.task_queue == stored.task_queue), having[0])
        if chosen.task_queue not in replayers:
            replayers[chosen.task_queue] = _make_replayer(temporal, chosen)
        replayer = replayers[chosen.task_queue]
        result = await replayer.replay_workflow(stored.history, raise_on_replay_failure=False)
        if result.replay_failure is None:
            report.replayed[stored.workflow_type] += 1
        else:
            report.failures.append(f"{title}: {replay_error(result.replay_failure)}")
    return report


def _make_replayer(temporal: Temporal, declaration: WorkerDeclaration) -> Replayer:
    options = declaration.options
    of_connection = [each for each in temporal.interceptors if isinstance(each, worker.Interceptor)]
    plugins = [each for each in temporal.plugins if isinstance(each, worker.Plugin)]
    try:
        return Replayer(
            workflows=declaration.workflows,
            workflow_runner=options.get("workflow_runner") or make_runner(declaration),
            namespace=temporal.settings.namespace,
            data_converter=temporal.data_converter,
            interceptors=[*of_connection, *options.get("interceptors", ())],
            plugins=[*plugins, *options.get("plugins", ())],
            workflow_failure_exception_types=options.get("workflow_failure_exception_types", ()),
            runtime=runtime_of_process(_quiet_runtime),
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise TemporalWorkerError(explain(error, declaration) or str(error)) from error


def _quiet_runtime() -> Runtime:
    """A runtime without the SDK's log, which writes each failure to stdout."""
    return Runtime(telemetry=TelemetryConfig(logging=None))
