"""A worker in a thread of the tests' process, with its own event loop."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from durably.temporal import Temporal

# Other tests of this process import fastmcp. The import hook of its beartype would import beartype for each workflow.
RUNNER = SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules("beartype"))


@contextmanager
def working(temporal: Temporal, task_queue: str, **options: Any) -> Iterator[None]:
    started: Future[None] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        client = await temporal.connect()
        async with Worker(client, task_queue=task_queue, workflow_runner=RUNNER, **options):
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
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
