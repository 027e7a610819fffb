"""Requests to the Temporal server by tasks that are cancelled."""

import asyncio

import pytest
from temporalio.client import Client
from ulid import ULID

from durably.comm import CommHandler
from durably.embedded.calls import sync_of
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import run_workflow_id

from ...temporal.dev_server import DevServer
from .running_apps import make_client

SECONDS = 0.3


@pytest.fixture
async def engine(server: DevServer) -> WorkflowEngine:
    """An engine without workers, so that Updates wait."""
    return WorkflowEngine(await Client.connect(server.address, data_converter=DATA_CONVERTER), EngineSettings())


async def test_an_update_in_a_cancelled_task_is_cancelled(engine: WorkflowEngine, server: DevServer) -> None:
    run_id = str(ULID())
    client = await Client.connect(server.address)
    await client.start_workflow("Unknown", id=run_workflow_id(run_id), task_queue="without-workers")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SECONDS):
            await engine._client.get_workflow_handle(run_workflow_id(run_id)).execute_update("checkpoint")


async def test_an_update_with_start_in_a_cancelled_task_is_cancelled(engine: WorkflowEngine) -> None:
    await engine.prepare()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SECONDS):
            await engine.sync_app(sync_of(CommHandler(client=make_client(), framework="test", functions=[])))
