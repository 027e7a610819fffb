"""Pytest's plugin: fixtures that open test engines, and reports of their runs.

The reports of failed tests have the timelines of the runs. It is a package next to ``durably``, because pytest loads
its plugins at each start. It imports ``durably`` when a test uses a fixture.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from durably import Client, Function
    from durably.testing.engine import SyncTestEngine, TestEngine
    from durably.testing.temporal import TemporalServer

open_sessions = 0
"""Number of pytest sessions in this process. ``durably.settings.is_test_run`` reads it."""

_open_engines = pytest.StashKey[list["SyncTestEngine"]]()


class OpenEngine(Protocol):
    """``options`` are those of ``TestEngine``."""

    def __call__(self, client: "Client", functions: "Sequence[Function[Any]]", **options: Any) -> "SyncTestEngine": ...


def pytest_load_initial_conftests() -> None:
    """The first hook of a session, before any code of the project is imported."""
    global open_sessions
    open_sessions += 1


def pytest_configure(config: pytest.Config) -> None:
    """Add the filter of ``durably.execution.asyncio_compat``.

    Pytest replaces the filters of the process.
    """
    config.addinivalue_line("filterwarnings", r"ignore:coroutine 'AsyncCall\.:RuntimeWarning")


def pytest_unconfigure() -> None:
    global open_sessions
    open_sessions -= 1


@pytest.fixture
def durably_engine() -> "type[TestEngine]":
    """Makes a ``TestEngine``.

    Use it as ``async with durably_engine(client, [function]) as engine:``.
    """
    from durably.testing.engine import TestEngine

    return TestEngine


@pytest.fixture
def durably_sync_engine(request: pytest.FixtureRequest) -> Iterator[OpenEngine]:
    """Opens a ``SyncTestEngine`` for the rest of the test.

    Use it as ``engine = durably_sync_engine(client, [function])``.
    """
    from durably.testing.engine import TestEngine

    engines = request.node.stash.setdefault(_open_engines, [])
    with ExitStack() as stack:

        def open_engine(client: "Client", functions: "Sequence[Function[Any]]", **options: Any) -> "SyncTestEngine":
            engine = stack.enter_context(TestEngine(client, functions, **options).sync())
            engines.append(engine)
            return engine

        yield open_engine


@pytest.fixture(scope="session")
def temporal_server() -> "Iterator[TemporalServer]":
    """Temporal's development server.

    Use it as ``with temporal_server.working(temporal, mocks={charge: "paid"}):``.
    """
    from durably.testing.temporal import TemporalServer

    with TemporalServer() as server:
        yield server


@pytest.fixture
def time_skipping_temporal_server() -> "Iterator[TemporalServer]":
    """A server for this test alone, which skips the time that workflows wait."""
    from durably.testing.temporal import TemporalServer

    with TemporalServer(time_skipping=True) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for engine in item.stash.get(_open_engines, []):
            report.sections.append(("durably: runs of the test engine", engine.describe_runs()))
    return report
