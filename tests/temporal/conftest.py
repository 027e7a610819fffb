"""One development server and one worker for all tests of Temporal, started when first needed."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from temporalio.worker import Worker

from durably.temporal import Temporal

from .dev_server import DevServer
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
    return Temporal(server.address, task_queue=TASK_QUEUE)


@pytest.fixture(scope="session")
def worker(temporal: Temporal) -> Iterator[None]:
    """Runs the tests' workflows, in a thread of its own."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        client = await temporal.connect()
        async with Worker(client, task_queue=TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    assert started.wait(30)
    yield
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
