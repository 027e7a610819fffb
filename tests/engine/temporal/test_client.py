"""Requests to the Temporal server: those of cancelled tasks, and reads that requests share."""

import asyncio

import pytest
from temporalio.client import Client

from durably.comm import CommHandler
from durably.embedded.calls import sync_of
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER, SharedReads
from durably.engine.temporal.engine import WorkflowEngine

from ...temporal.dev_server import DevServer
from .running_apps import make_client

SECONDS = 0.3


@pytest.fixture
async def engine(server: DevServer) -> WorkflowEngine:
    """An engine without workers, so that Updates wait."""
    return WorkflowEngine(await Client.connect(server.address, data_converter=DATA_CONVERTER), EngineSettings())


async def test_an_update_with_start_in_a_cancelled_task_is_cancelled(engine: WorkflowEngine) -> None:
    await engine.prepare()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SECONDS):
            await engine.sync_app(sync_of(CommHandler(client=make_client(), framework="test", functions=[])))


class Source:
    """A value that can change while it is read."""

    def __init__(self) -> None:
        self.value = 0
        self.reads = 0
        self.error: Exception | None = None
        self.has_begun = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def read(self, key: str) -> str:
        self.reads += 1
        self.has_begun.set()
        value = self.value
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return f"{key}{value}"


async def begun(source: Source, read: SharedReads[str], count: int = 1) -> list["asyncio.Task[str]"]:
    tasks = [asyncio.create_task(read("a")) for _ in range(count)]
    await source.has_begun.wait()
    return tasks


async def test_requests_share_the_next_read_and_never_get_an_older_answer() -> None:
    source = Source()
    read = SharedReads(source.read)
    (first,) = await begun(source, read)
    source.value = 1
    later = [asyncio.create_task(read("a")) for _ in range(10)]
    other = asyncio.create_task(read("b"))
    await asyncio.sleep(0)
    source.may_answer.set()
    assert [await first, *await asyncio.gather(*later), await other] == ["a0", *["a1"] * 10, "b1"]
    assert source.reads == 3
    source.value = 2
    assert await read("a") == "a2"


async def test_each_request_gets_the_error_and_the_next_one_reads_again() -> None:
    source = Source()
    read = SharedReads(source.read)
    source.error = ConnectionError("away")
    (first,) = await begun(source, read)
    second = asyncio.create_task(read("a"))
    source.may_answer.set()
    for task in (first, second):
        with pytest.raises(ConnectionError, match="away"):
            await task
    source.error = None
    assert await read("a") == "a0"
