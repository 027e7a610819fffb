"""Tests of apps with Temporal workflows, on a real server.

The server is the development server, or one that skips time. The app uses the test's server instead of its own, its
declared workers run during the test, and mocks may replace activities. ``replay_histories`` replays stored histories.
All of it runs on the background event loop, so sync and async tests are alike.
"""

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from temporalio import activity, worker
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer

from durably.errors import Error
from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, Workers
from durably.temporal.client.connection import runtime_of_process
from durably.temporal.compat import activity_definition, replay_error, workflow_parts
from durably.temporal.declarations import WorkerDeclaration, by_task_queue
from durably.temporal.errors import TemporalWorkerError, find_program
from durably.temporal.namespace import declared_types, register_and_wait
from durably.temporal.worker.sandbox import explain, make_runner

__all__ = ["HistoryError", "MockError", "TemporalServer", "mock_activities", "replay_histories"]

Activity = Callable[..., Any]
Mocks = Mapping[Activity | str, Any]

_GRACE = timedelta(0)
_PATIENCE = timedelta(seconds=10)


class MockError(Error):
    """A mock is for an activity that no worker has.

    The message names the existing activities.
    """


class TemporalServer:
    """A server for tests on a free port of this machine; a context manager.

    It is Temporal's development server, which has every feature. With ``time_skipping`` it is the test server, which
    skips the time that a workflow waits while its result is awaited. Raises ``ProgramMissingError`` if its package is
    not installed.
    """

    def __init__(self, *, time_skipping: bool = False) -> None:
        self.time_skipping = time_skipping
        self._environment: WorkflowEnvironment | None = None

    def __enter__(self) -> Self:
        runtime = runtime_of_process()
        if self.time_skipping:
            path = str(find_program("temporal-test-server"))
            starting = WorkflowEnvironment.start_time_skipping(test_server_existing_path=path, runtime=runtime)
        else:
            path = str(find_program("temporal"))
            starting = WorkflowEnvironment.start_local(
                dev_server_existing_path=path, dev_server_log_level="never", runtime=runtime
            )
        self._environment = get_background_loop().run(starting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        get_background_loop().run(self.environment.shutdown())
        self._environment = None

    @property
    def environment(self) -> WorkflowEnvironment:
        """The server's ``temporalio.testing`` environment, on the background event loop."""
        if self._environment is None:
            raise RuntimeError("the server has not been started: use it in a with statement")
        return self._environment

    @property
    def address(self) -> str:
        return self.environment.client.service_client.config.target_host

    def client(self, temporal: Temporal) -> Client:
        """A client of this server with the app's data converter and interceptors."""
        config = self.environment.client.config()
        config["data_converter"] = temporal.data_converter
        config["interceptors"] = [*config["interceptors"], *temporal.interceptors]
        config["plugins"] = temporal.plugins
        return Client(**config)

    @contextmanager
    def connected(self, temporal: Temporal) -> Iterator[Client]:
        """The app uses this server within ``with``, in the whole process.

        The app's search attributes are registered. Raises ``SearchAttributeError`` if the server has one of them with
        another type.
        """
        client = self.client(temporal)
        if declared := declared_types(temporal.search_attributes):
            get_background_loop().run(register_and_wait(client, declared, _PATIENCE))
        with temporal.override(client):
            yield client

    @contextmanager
    def working(
        self,
        temporal: Temporal,
        *,
        mocks: Mocks | None = None,
        declarations: Sequence[WorkerDeclaration] | None = None,
    ) -> Iterator[Workers]:
        """The app uses this server, and its declared workers run.

        ``mocks`` replace activities, which are given as functions or names. A mock is a function, an exception to
        raise, or a value to return. ``declarations`` replace ``temporal.workers``, such as Django's ``discover()``.
        Raises ``MockError``, ``TemporalWorkerError``, ``SearchAttributeError``.
        """
        declared = temporal.workers if declarations is None else declarations
        replaced = mock_activities(declared, mocks or {})
        with self.connected(temporal) as client:
            workers = Workers(temporal, replaced, client=client, grace=_GRACE, versioned=False)
            running = get_background_loop().submit(workers.run())
            try:
                get_background_loop().run(
                    _until_started(workers, asyncio.wrap_future(running, loop=get_background_loop().loop))
                )
                yield workers
            finally:
                get_background_loop().run(_stop(asyncio.wrap_future(running, loop=get_background_loop().loop)))

    def skip(self, duration: timedelta) -> None:
        """Advance the server's time.

        On the development server, that takes as long as ``duration``.
        """
        get_background_loop().run(self.environment.sleep(duration))

    def now(self) -> datetime:
        """The server's time."""
        return get_background_loop().run(self.environment.get_current_time())


async def _until_started(workers: Workers, running: asyncio.Future[None]) -> None:
    started = asyncio.ensure_future(workers.started())
    await asyncio.wait((started, running), return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if running.done():
        running.result()


async def _stop(running: asyncio.Future[None]) -> None:
    running.cancel()
    await asyncio.wait([running])


def mock_activities(declarations: Sequence[WorkerDeclaration], mocks: Mocks) -> list[WorkerDeclaration]:
    """The declarations with mocks instead of activities.

    Raises ``MockError`` for a mock without a matching activity.
    """
    by_name = {each if isinstance(each, str) else _name_to_mock(each): mock for each, mock in mocks.items()}
    names = {_name(each) for declaration in declarations for each in declaration.activities}
    known = sorted(name for name in names if name is not None)
    if unknown := sorted(set(by_name) - set(known)):
        raise MockError(f"no worker has the activity {unknown[0]!r} to mock; there are {', '.join(known) or 'none'}")
    return [
        replace(
            declaration,
            activities=tuple(
                _mock(each, by_name[name]) if (name := _name(each)) in by_name else each
                for each in declaration.activities
            ),
        )
        for declaration in declarations
    ]


def _name(of: Activity) -> str | None:
    """``None`` for a dynamic activity, which takes the calls of all other names."""
    if (found := activity_definition(of)) is None:
        raise MockError(f"{getattr(of, '__qualname__', of)} is not an activity: decorate it with @activity.defn")
    return found.name


def _name_to_mock(of: Activity) -> str:
    if (name := _name(of)) is None:
        raise MockError(f"{of} is a dynamic activity, which has no name to mock it by")
    return name


def _mock(original: Activity, mock: Any) -> Activity:
    """An activity with the name and types of ``original``, which returns the mock.

    Its arguments have the same types as well.
    """

    async def call(*arguments: Any) -> Any:
        if isinstance(mock, BaseException):
            raise mock
        result = mock(*arguments) if callable(mock) else mock
        return await result if inspect.isawaitable(result) else result

    functools.update_wrapper(call, original, updated=())
    return activity.defn(name=_name(original))(call)


# Replays

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


def replay_histories(
    temporal: Temporal, directory: str | Path, *, declarations: Sequence[WorkerDeclaration] | None = None
) -> dict[str, int]:
    """Replay the histories of ``directory`` and below against the workflows of the app's workers.

    ``declarations`` are replayed instead of ``temporal.workers``: Django's ``discover()``. The files are as
    ``temporal workflow show -o json`` prints them. No server is needed. Returns the number of replayed histories by
    workflow type. A history without a completed workflow task is not replayed.

    Raises ``AssertionError``, which names each history that does not fit, and the event that the code does not produce;
    ``HistoryError`` for a directory without histories.
    """
    report = get_background_loop().run(replay(temporal, read_histories(directory), declarations))
    if report.failures:
        count = sum(report.replayed.values()) + len(report.failures)
        lines = [f"{len(report.failures)} of {count} histories do not fit the code:", *report.failures]
        raise AssertionError("\n".join(lines))
    return dict(report.replayed)
