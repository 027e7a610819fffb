"""Workers of a process that start again."""

import logging

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue
from durably.engine.temporal.workers import ProcessWorkers, WorkerGroup

from ...temporal.dev_server import DevServer
from ...temporal.proxy import Proxy
from ...waiting import async_eventually
from .running_apps import make_client


@pytest.mark.slow
async def test_workers_start_once_their_server_is_back(server: DevServer, caplog: pytest.LogCaptureFixture) -> None:
    """The server was unreachable between the connection and the start of the workers."""
    proxy = Proxy(server.port)
    client = await Client.connect(proxy.address, data_converter=DATA_CONVERTER)
    engine = WorkflowEngine(client, EngineSettings())
    app = make_client()

    async def call(*_: object) -> object:
        raise AssertionError("no function is called")

    def make() -> ProcessWorkers:
        return engine.make_workers([app_queue(app.app_id)], call)  # type: ignore[arg-type]

    proxy.leave()
    group = WorkerGroup(make, EngineSettings().close_grace)
    with caplog.at_level(logging.ERROR, "durably.engine"):
        group.start()
        await async_eventually(lambda: "start again" in caplog.text, "the next start is logged")
        proxy.come_back()
        await async_eventually(lambda: are_running(group._workers), "the workers are running")
        assert "Registration of multiple workers" not in caplog.text
        assert "Stack backtrace" not in caplog.text
    await group.stop()
    proxy.close()


def are_running(workers: ProcessWorkers) -> bool:
    return bool(workers) and all(worker.is_running for worker in workers if isinstance(worker, Worker))
