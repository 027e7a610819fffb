"""Hundreds of clients wait for results of one process while it answers others."""

import asyncio
import resource
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from durably.temporal import Temporal

from ..app_server import AppServer, running
from ..dev_server import DevServer
from ..worker_thread import RUNNER
from ..workflows import Pair, SumWorkflow

MOST_POLLS, WORKFLOWS = 1_000, 50


@pytest.fixture(scope="module")
def app(server: DevServer) -> Iterator[AppServer]:
    """A process without a low limit of open files, like the clients."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, min(4 * MOST_POLLS, hard)), hard))
    with running("fastapi", server.address) as app:
        yield app
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


async def start(client: Client, task_queue: str, number: int) -> str:
    workflow_id = f"{task_queue}-{number}"
    await client.start_workflow(SumWorkflow.run, args=[Pair(number), 1], id=workflow_id, task_queue=task_queue)
    return workflow_id


class Waiting:
    """Clients that wait for one result each. ``sent`` is set when the app has all requests."""

    def __init__(self, origin: str, workflow_ids: list[str]) -> None:
        self.sent = asyncio.Event()
        self._left = len(workflow_ids)
        self._urls = [f"{origin}/open/sum-of-pair/{workflow_id}/result" for workflow_id in workflow_ids]

    async def results(self) -> list[tuple[int, Any]]:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(self._count)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing]) as session:
            return await asyncio.gather(*(self._result(session, url) for url in self._urls))

    async def _count(self, *args: Any) -> None:
        self._left -= 1
        if not self._left:
            self.sent.set()

    async def _result(self, session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
        async with session.get(url, params={"wait": 60}) as response:
            return response.status, (await response.json()).get("result")


@pytest.mark.slow
@pytest.mark.parametrize("polls", [200, pytest.param(MOST_POLLS, marks=pytest.mark.soak)])
async def test_one_process_waits_for_many_results(app: AppServer, temporal: Temporal, polls: int) -> None:
    client, task_queue = await temporal.connect(), f"late-{uuid.uuid4()}"
    workflow_ids = [await start(client, task_queue, number) for number in range(WORKFLOWS)]
    waiting = Waiting(app.origin, workflow_ids * (polls // WORKFLOWS))
    results = asyncio.create_task(waiting.results())
    async with asyncio.timeout(60):
        await waiting.sent.wait()
    other = await asyncio.to_thread(app.get, f"/open/sum-of-pair/{workflow_ids[0]}")
    assert (other.status, other.json["status"]) == (200, "running")
    assert not results.done()
    async with Worker(client, task_queue=task_queue, workflow_runner=RUNNER, workflows=[SumWorkflow]):
        assert await results == [(200, number) for number in range(WORKFLOWS)] * (polls // WORKFLOWS)
