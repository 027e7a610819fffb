"""One development server and one worker for all tests of Temporal, started when first needed."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from durably.temporal import Temporal

from .app_server import QUICK, AppServer, running
from .dev_server import DevServer
from .serve import SERVERS
from .worker_thread import working
from .workflows import ACTIVITIES, TASK_QUEUE, WORKFLOWS


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    server = DevServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def temporal(server: DevServer) -> Temporal:
    """The connection that tests share."""
    return Temporal(server.address, task_queue=TASK_QUEUE, connect_timeout=timedelta(seconds=60))


@pytest.fixture(scope="module", params=SERVERS)
def quick_app(request: pytest.FixtureRequest, server: DevServer, worker: None) -> Iterator[AppServer]:
    """In each framework; long polls and streams of events end at once."""
    with running(request.param, server.address, **QUICK) as app:
        yield app


@pytest.fixture(scope="session")
def worker(temporal: Temporal) -> Iterator[None]:
    """Runs the tests' workflows, in a thread of its own."""
    with working(temporal, TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES):
        yield
