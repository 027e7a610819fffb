"""One development server and one worker for all tests of Temporal, started when first needed."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta

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
    return Temporal(server.address, task_queue=TASK_QUEUE, connect_timeout=timedelta(seconds=60))


@pytest.fixture(scope="session")
def worker(temporal: Temporal) -> Iterator[None]:
    """Runs the tests' workflows, in a thread of its own."""
    started: Future[None] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        client = await temporal.connect()
        async with Worker(client, task_queue=TASK_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES):
            started.set_result(None)
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(work())
        except Exception as error:
            started.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    started.result(60)
    yield
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
