import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from durably.engine.api.codec import HttpEngine, HttpRequest, HttpResponse
from durably.engine.api.http.application import create_api
from durably.engine.api.http.requests import ApiKeys
from durably.engine.model.runs import Run, UpdateKind
from durably.engine.model.settings import EngineSettings, SystemClock
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.events import Event
from durably.protocol.headers import ServerKind

from .small_app import SmallApp, serve

QUICK = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    unreached_backoff=lambda failures, jitter: dt.timedelta(milliseconds=20),
    close_grace=dt.timedelta(milliseconds=100),
    allow_private_addresses=True,
)
ENDS = {UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED, UpdateKind.RUN_CANCELLED}


class ShiftedClock(SystemClock):
    """The wall clock, set to another time; ``offset`` is in milliseconds and may be changed."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def now(self) -> int:
        return super().now() + self.offset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.db"


@pytest.fixture
async def app() -> AsyncIterator[SmallApp]:
    async with serve(SmallApp()) as served:
        yield served


@asynccontextmanager
async def opened(path: Path, settings: EngineSettings = QUICK) -> AsyncIterator[SqliteEngine]:
    engine = await SqliteEngine.open(path, settings)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[SqliteEngine]:
    async with opened(path) as engine:
        yield engine


@pytest.fixture
async def client(engine: SqliteEngine, tmp_path: Path) -> AsyncIterator[HttpEngine]:
    """A client of an engine's API on a Unix socket."""
    runner = web.AppRunner(create_api(engine, ApiKeys(server_kind=ServerKind.DEV)))
    await runner.setup()
    path = str(tmp_path / "api")
    await web.UnixSite(runner, path).start()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:

        async def exchange(request: HttpRequest) -> HttpResponse:
            url = URL("http://localhost" + request.target, encoded=True)
            async with session.request(request.method, url, data=request.body, headers=request.headers) as response:
                return HttpResponse(response.status, await response.read())

        yield HttpEngine(exchange)
    await runner.cleanup()


async def until(engine: SqliteEngine, done: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so, looking whenever something happens to a run."""
    with engine.watch() as updates:
        if await done():
            return
        async for _ in updates:
            if await done():
                return


async def ended(engine: SqliteEngine, run_id: str) -> Run:
    return await engine.wait_for_run(run_id)


async def only_run(engine: SqliteEngine, event_id: str) -> str:
    (run,) = await engine.event_runs(event_id)
    return run.id


async def send(engine: SqliteEngine, name: str, **data: Any) -> str:
    (event_id,) = await engine.send_events([Event(name=name, data=data)])
    return event_id


async def run_to_end(engine: SqliteEngine, name: str, **data: Any) -> Run:
    """Send an event that triggers one function, and wait for its run's end."""
    return await ended(engine, await only_run(engine, await send(engine, name, **data)))


async def step_is(engine: SqliteEngine, run_id: str, step_id: str, *statuses: str) -> None:
    """Wait until a step of a run has one of the statuses."""

    async def is_so() -> bool:
        return any(step.id == step_id and step.status in statuses for step in await engine.run_steps(run_id))

    await until(engine, is_so)


def output(run: Run) -> Any:
    assert run.output is not None
    return msgspec.json.decode(run.output)
