"""One development server and one worker for all tests of Temporal, started when first needed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from durably.temporal import Temporal

from ..cli.conftest import command_server
from ..variants import variants
from .app_server import QUICK, AppServer, running
from .dev_server import DevServer
from .serve import SERVERS
from .worker_thread import working
from .workflows import ACTIVITIES, TASK_QUEUE, WORKFLOWS

__all__ = ["command_server"]

SOME = ["fastapi", "flask", "django-wsgi"]
"""The frameworks of ``make test``."""


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    with DevServer() as server:
        yield server


@pytest.fixture(scope="session")
def temporal(server: DevServer) -> Temporal:
    """The connection that tests share."""
    return Temporal(server.address, task_queue=TASK_QUEUE, connect_timeout=timedelta(seconds=60))


@pytest.fixture(scope="session")
def apps(server: DevServer) -> Iterator[Callable[..., AppServer]]:
    """``apps(framework, **variables)`` is an app in front of the server, started at the first use."""
    started: dict[Any, AppServer] = {}
    with ExitStack() as stack:

        def get(name: str, **variables: str) -> AppServer:
            key = (name, *variables.items())
            if key not in started:
                started[key] = stack.enter_context(running(name, server.address, **variables))
            return started[key]

        yield get


@pytest.fixture(params=variants(SERVERS, SOME))
def app(request: pytest.FixtureRequest, apps: Callable[..., AppServer], worker: None) -> AppServer:
    """The app in each framework. ``make test`` has three of them."""
    return apps(request.param)


@pytest.fixture(params=variants(SERVERS, SOME))
def quick_app(request: pytest.FixtureRequest, apps: Callable[..., AppServer], worker: None) -> AppServer:
    """Like ``app``. Long polls and event streams end immediately."""
    return apps(request.param, **QUICK)


@pytest.fixture(params=variants(SERVERS, ["fastapi", "django-wsgi"]))
def some_app(request: pytest.FixtureRequest, apps: Callable[..., AppServer], worker: None) -> AppServer:
    """An app in each framework. ``make test`` tests two of them."""
    return apps(request.param)


@pytest.fixture(params=variants(SERVERS, ["fastapi"]))
def some_quick_app(request: pytest.FixtureRequest, apps: Callable[..., AppServer], worker: None) -> AppServer:
    """Like ``some_app``, but ``make test`` tests one of them. Long polls and event streams end immediately."""
    return apps(request.param, **QUICK)


@pytest.fixture(scope="session")
def worker(temporal: Temporal) -> Iterator[None]:
    """Runs the tests' workflows, in a separate thread."""
    with working(temporal, TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES):
        yield
