"""Tests of apps with Temporal workflows, on a real server.

The server is the development server, or one that skips time. The app uses the test's server instead of its own, its
declared workers run during the test, and mocks may replace activities. ``replay_histories`` replays stored histories.
All of it runs on the background event loop, so sync and async tests are alike.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from temporalio import activity
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from durably.errors import Error
from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, Workers
from durably.temporal.client.connection import runtime_of_process
from durably.temporal.compat import activity_definition
from durably.temporal.declarations import WorkerDeclaration
from durably.temporal.errors import find_program
from durably.temporal.namespace import declared_types, register_and_wait
from durably.temporal.replay import read_histories, replay

__all__ = ["MockError", "TemporalServer", "mock_activities", "replay_histories"]

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


async def _until_started(workers: Workers, running: "asyncio.Future[None]") -> None:
    started = asyncio.ensure_future(workers.started())
    await asyncio.wait((started, running), return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if running.done():
        running.result()


async def _stop(running: "asyncio.Future[None]") -> None:
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
