"""Streams of changes, as the browser reads them."""

import asyncio
import re
from collections.abc import AsyncGenerator

import pytest

from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.messages import DashboardResponse
from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import only_run, send, step_is
from ...small_app import SmallApp, Steps
from .dashboard_client import get, header, page


@pytest.fixture
def dashboard(engine: SqliteEngine) -> Dashboard:
    return Dashboard(engine, allow_anonymous=True)


def chunks(response: DashboardResponse) -> AsyncGenerator[bytes, None]:
    assert response.status_code == 200
    assert header(response, "content-type") == "text/event-stream; charset=utf-8"
    assert response.stream is not None
    return response.stream()


async def position_in(stream: AsyncGenerator[bytes, None]) -> int:
    """The position of the next event."""
    async for chunk in stream:
        if match := re.search(rb"^id: (\d+)\ndata: \1\n\n$", chunk, re.M):
            return int(match[1])
    raise AssertionError("the stream has ended")


async def start(app: SmallApp, engine: SqliteEngine) -> str:
    @app.function("nap")
    def nap(step: Steps) -> None:
        step.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    return await nap_of(engine)


async def nap_of(engine: SqliteEngine) -> str:
    """A run that sleeps."""
    run_id = await only_run(engine, await send(engine, "nap"))
    await step_is(engine, run_id, "long", "sleeping")
    return run_id


async def test_a_change_is_reported_after_the_position_of_the_page(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    first = await start(app, engine)
    text = await page(dashboard, "/runs", mount="/durably")
    [query] = re.findall(r'data-live-url="/durably/live\?(after=\d+)"', text)
    stream = chunks(await get(dashboard, "/live", query))
    assert await anext(stream) == b"retry: 2000\n\n"
    waiting = asyncio.ensure_future(position_in(stream))
    await engine.cancel_run(first)
    position = await waiting
    assert position > int(query.removeprefix("after="))
    await stream.aclose()


async def test_a_stream_continues_after_the_last_event(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    await start(app, engine)
    now = (await engine.wait_for_changes()).position
    headers = {"host": "localhost", "last-event-id": str(now - 1)}
    stream = chunks(await get(dashboard, "/live", f"after={now}", headers=headers))
    assert await position_in(stream) >= now
    await stream.aclose()


async def test_a_stream_of_a_run_is_silent_about_others(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    first = await start(app, engine)
    other = await nap_of(engine)
    text = await page(dashboard, f"/runs/{first}")
    [query] = re.findall(r'data-live-url="/live\?([^"]+)"', text)
    assert query.endswith(f"run={first}")
    stream = chunks(await get(dashboard, "/live", query.replace("&amp;", "&")))
    waiting = asyncio.ensure_future(position_in(stream))
    await engine.cancel_run(other)
    await engine.wait_for_changes(after=(await engine.wait_for_changes()).position - 1)
    assert not waiting.done()
    await engine.cancel_run(first)
    await waiting
    await stream.aclose()


async def test_a_worker_that_may_not_wait_is_polled(app: SmallApp, engine: SqliteEngine, dashboard: Dashboard) -> None:
    await start(app, engine)
    whole = [chunk async for chunk in chunks(await get(dashboard, "/live", "after=1", stream_seconds=0))]
    assert re.fullmatch(rb"retry: 5000\n\nid: (\d+)\ndata: \1\n\n", b"".join(whole))
    position = (await engine.wait_for_changes()).position
    [unchanged] = [
        chunk async for chunk in chunks(await get(dashboard, "/live", f"after={position}", stream_seconds=0))
    ]
    assert unchanged == b"retry: 5000\n\n: no change\n\n"


async def test_a_stream_ends_with_the_engine(app: SmallApp, engine: SqliteEngine, dashboard: Dashboard) -> None:
    await start(app, engine)
    stream = chunks(await get(dashboard, "/live"))
    await position_in(stream)
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    await engine.close()
    assert await waiting is None
