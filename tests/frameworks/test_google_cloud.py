"""The entry points of a source for Google Cloud, in ``functions-framework``, with an engine elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import functions_framework
import msgspec
import pytest

from durably.engine.api.http.server import EngineServer
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.channels import NewMessage

from ..engine.conftest import ended, only_run, output, send
from .servers import werkzeug_serving

SOURCE = """
import os

import durably
import durably.google_cloud

client = durably.Client(app_id="shop", engine=os.environ["ENGINE"], is_production=False)


@client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="came"))
def greet(ctx: durably.ContextSync) -> str:
    return ctx.step.run("greet", lambda: f"Hello, {ctx.event.data['visitor']}!")


def is_ada(request):
    return request.headers.get("x-user") == "ada"


main = durably.google_cloud.serve(client, [greet])
dashboard = durably.google_cloud.dashboard(client, authorize=lambda action: is_ada(action.request))
streams = durably.google_cloud.streams(client, authorize=lambda request, channel: is_ada(request))
"""
ADA = {"x-user": "ada"}

EntryPoint = Callable[[str], Any]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineServer]:
    async with await serve_database(tmp_path / "engine.db", EngineSettings(), port=0) as server:
        yield server


@pytest.fixture
def entry_point(engine: EngineServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    """Makes the app in which an entry point answers."""
    monkeypatch.setenv("ENGINE", engine.origin)
    source = tmp_path / "main.py"
    source.write_text(SOURCE)
    return lambda name: functions_framework.create_app(name, str(source), "http")


async def test_runs_are_called_and_seen(engine: EngineServer, entry_point: EntryPoint) -> None:
    main, dashboard = entry_point("main"), entry_point("dashboard").test_client()
    with werkzeug_serving(main) as origin:
        synced = await asyncio.to_thread(main.test_client().put, "/", base_url=origin)
        assert synced.status_code == 200, synced.text
        run_id = await only_run(engine.engine, await send(engine.engine, "came", visitor="Ada"))
        assert output(await ended(engine.engine, run_id)) == "Hello, Ada!"
    page = await asyncio.to_thread(dashboard.get, f"/runs/{run_id}", headers=ADA)
    assert (page.status_code, "Hello, Ada!" in page.text) == (200, True)
    assert 'href="/runs' in page.text
    assert (await asyncio.to_thread(dashboard.get, "/runs")).status_code == 403


async def test_messages_are_streamed(engine: EngineServer, entry_point: EntryPoint) -> None:
    http = entry_point("streams").test_client()
    assert http.get("/?channel=news").status_code == 403
    answer = await asyncio.to_thread(http.get, "/?channel=news", headers=ADA)
    assert answer.status_code == 200
    await engine.engine.publish_messages([NewMessage("news", "words", msgspec.Raw(b'"hello"'))])
    text = b""
    while b"hello" not in text:
        text += await asyncio.to_thread(next, answer.response)
    await asyncio.to_thread(answer.close)
