"""The dashboard and the command line on an engine on Temporal, through its HTTP API."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

import durably
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.http.application import create_api
from durably.engine.api.http.requests import ApiKeys
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.engine import WorkflowEngine
from durably.protocol.headers import ServerKind

from ...ports import free_port
from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving

UI = "http://temporal.example"


@contextlib.asynccontextmanager
async def api_of(engine: WorkflowEngine) -> AsyncIterator[str]:
    """The URL of the engine's HTTP API, with the dashboard."""
    dashboard = Dashboard(engine, allow_anonymous=True)
    runner = web.AppRunner(
        create_api(engine, ApiKeys(server_kind=ServerKind.DEV), dashboard=dashboard), access_log=None
    )
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def durably_command(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "durably.cli", *arguments, "--url", url]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
async def test_pages_and_commands_show_the_engine(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/go"

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=event), retries=0)
    async def go(ctx: durably.Context) -> str:
        if ctx.event.data.get("fails"):
            raise ValueError("it is refused")
        return await ctx.step.run("greet", lambda: "hello")

    async with (
        serving(server.address, app, [go], settings=EngineSettings(temporal_ui=UI)) as engine,
        api_of(engine) as url,
        aiohttp.ClientSession() as http,
    ):
        event_id = await send(engine, event)
        (run,) = await ended_runs(engine, event_id)
        (failed,) = await ended_runs(engine, await send(engine, event, {"fails": True}))
        await async_eventually(
            engine.list_apps, "the app is listed", is_right=lambda apps: any(each.id == app.app_id for each in apps)
        )

        async def page(path: str, status: int = 200) -> str:
            async with http.get(url + path) as answer:
                text = await answer.text()
                assert answer.status == status, text
                return text

        lagging = "which lags behind"
        runs = await page(f"/runs?function={app.app_id}-go")
        assert run.id in runs
        # Operations that this engine refuses are not offered.
        assert ('value="Running"' in runs, 'value="Scheduled"' in runs) == (True, False)
        assert app.app_id in await page("/apps")
        await page("/cron", 501)
        of_run = await page(f"/runs/{run.id}")
        assert "greet" in of_run
        assert f"{UI}/namespaces/default/workflows/durably%2Frun%2F{run.id}" in of_run
        assert "it is refused" in await page(f"/runs/{failed.id}")

        async with http.get(f"{url}/v1/search/events") as answer:
            assert answer.status == 501
            assert (await answer.json())["code"] == "NotSupportedError"

        listed = await durably_command(url, "runs", "list", "--function", f"{app.app_id}-go")
        assert failed.id in listed.stdout
        assert lagging in listed.stderr
        assert f"{app.app_id}-go" in (await durably_command(url, "functions", "list")).stdout
        assert "greet" in (await durably_command(url, "runs", "show", run.id)).stdout


@pytest.mark.parametrize(
    ("ui", "link"), [(f"{UI}/", f"{UI}/namespaces/default/workflows/durably%2Frun%2F{{run_id}}"), (None, None)]
)
async def test_runs_link_to_temporals_ui(server: DevServer, ui: str | None, link: str | None) -> None:
    async with serving(server.address, make_client(), [], settings=EngineSettings(temporal_ui=ui)) as engine:
        assert (await engine.describe_engine()).run_url == link
