"""Apps that are down, paused functions and runs without a worker: what people and commands see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from click.testing import CliRunner, Result
from temporalio.client import Client as TemporalClient

import durably
from durably import Client, Context, TriggerEvent
from durably.cli.group import durably as durably_command
from durably.comm.handler import CommHandler
from durably.embedded.calls import sync_of
from durably.engine.model.overview import AppReport, ConcernKind
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.reports.unreached_apps import NO_PROCESS
from durably.engine.temporal.engine import WorkflowEngine

from ....conformance.temporal_engine import open_engine
from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ..flow.test_leased_slots_over_http import served
from ..serving import new_app, send, serving
from .test_dashboard_and_cli import api_of


async def call_nothing(*_: Any) -> Any:
    raise AssertionError("there is no worker for calls")


@asynccontextmanager
async def synced_without_workers(server: DevServer, app: Client, *functions: Any) -> AsyncIterator[WorkflowEngine]:
    client = await TemporalClient.connect(server.address, data_converter=DATA_CONVERTER)
    engine = WorkflowEngine(client, EngineSettings())
    handler = CommHandler(client=app, framework="test", functions=list(functions))
    async with engine.make_workers([], call_nothing)[0]:
        await engine.sync_app(sync_of(handler), in_process=True)
        yield engine
    await engine.close()


async def report_of(engine: WorkflowEngine, app_id: str) -> AppReport:
    reports = await async_eventually(
        engine.inspect_apps, "the app is listed", is_right=lambda found: app_id in {each.app.id for each in found}
    )
    return next(each for each in reports if each.app.id == app_id)


async def concerns_of(engine: WorkflowEngine, subject: str, count: int = 1) -> list[tuple[ConcernKind, int, str]]:
    async def read() -> list[tuple[ConcernKind, int, str]]:
        found = (await engine.overview()).concerns
        return [(each.kind, each.count, each.message) for each in found if each.subject == subject]

    return await async_eventually(
        read, "the concern is reported", is_right=lambda found: found and found[0][1] >= count
    )


def make_function(app: Client) -> Any:
    @app.create_function(fn_id="go", trigger=TriggerEvent(event=app.app_id))
    async def go(ctx: Context) -> str:
        return "done"

    return go


async def test_an_app_in_process_without_a_process_needs_attention_once_runs_wait(server: DevServer) -> None:
    app = new_app()
    async with synced_without_workers(server, app, make_function(app)) as engine:
        report = await report_of(engine, app.app_id)
        assert (report.unreached_since, report.unreached_error) == (None, NO_PROCESS)
        assert not any(each.subject == app.app_id for each in (await engine.overview()).concerns)
        await send(engine, app.app_id)
        [(kind, count, message)] = await concerns_of(engine, app.app_id)
        assert (kind, count) == (ConcernKind.UNREACHED_APP, 1)
        assert message.startswith(f"no process of the app {app.app_id!r} runs its functions, and 1 run of it waits")


async def test_an_app_in_process_with_a_process_answers(server: DevServer) -> None:
    app = new_app()
    async with serving(server.address, app, [make_function(app)]) as engine:
        await async_eventually(
            lambda: report_of(engine, app.app_id),
            "the app answers",
            is_right=lambda report: report.unreached_error is None,
        )


async def test_an_app_over_http_that_is_down_is_known_in_each_process(server: DevServer) -> None:
    app_id = new_app().app_id
    calling = await open_engine(server.address)
    client = Client(app_id=app_id, is_production=False, engine=calling.origin)
    async with served(client, make_function(client)) as url:
        await calling.discovery.sync(url)
    other = WorkflowEngine(
        await TemporalClient.connect(server.address, data_converter=DATA_CONVERTER), EngineSettings()
    )
    await client.send(durably.Event(name=app_id))
    for engine in (calling.engine, other):
        [(kind, count, message)] = await concerns_of(engine, app_id, 2)
        assert (kind, count >= 2) == (ConcernKind.UNREACHED_APP, True)
        assert f"the app {app_id!r} does not answer" in message
        report = await report_of(engine, app_id)
        assert report.unreached_since is not None
        assert url.partition("/api")[0].removeprefix("http://").split(":")[1] in (report.unreached_error or "")
    await calling.close()
    await other.close()


async def test_a_paused_function_that_skips_runs_needs_attention(server: DevServer) -> None:
    app = new_app()
    go = make_function(app)
    function_id = f"{app.app_id}-go"
    async with serving(server.address, app, [go]) as engine:
        await engine.pause_function(function_id)
        for _ in range(2):
            await send(engine, app.app_id)
        [(kind, count, message)] = await concerns_of(engine, function_id, 2)
        assert (kind, count) == (ConcernKind.PAUSED_FUNCTION, 2)
        assert "has skipped 2 runs" in message
        await engine.resume_function(function_id)
        assert not any(each.subject == function_id for each in (await engine.overview()).concerns)


def run(server: DevServer, *arguments: str) -> Result:
    variables = {"COLUMNS": "160", "DURABLY_ENGINE_URL": f"temporal://{server.address}/default"}
    return CliRunner().invoke(durably_command, arguments, env=variables)


async def test_a_live_run_without_a_worker_is_shown_and_its_cancellation_is_stored(server: DevServer) -> None:
    app = new_app()
    go = make_function(app)
    async with synced_without_workers(server, app, go) as engine:
        event_id = await send(engine, app.app_id)
        (run_,) = await async_eventually(lambda: engine.event_runs(event_id), "the event has its run")
        report = await engine.inspect_run(run_.id)
        assert report is not None
        assert (report.run.status, report.steps) == ("Running", [])
        assert [event.id for event in report.events] == [event_id]
        assert f"no worker of the engine answers for run {run_.id}" in (report.unavailable or "")
        shown = await asyncio.to_thread(run, server, "runs", "show", run_.id)
        assert shown.exit_code == 0, shown.output
        assert f"{app.app_id}-go" in shown.stdout
        assert "no worker of the engine answers" in shown.stderr
        async with api_of(engine) as url, aiohttp.ClientSession() as http:
            async with http.get(f"{url}/runs/{run_.id}") as answer:
                page = await answer.text()
            async with http.get(f"{url}/apps") as answer:
                of_app = (await answer.text()).partition(f'id="app-{app.app_id}"')[2].partition("</section>")[0]
        assert "no worker of the engine answers" in page
        assert f"/runs/{run_.id}/cancel" in page
        assert ("Does not answer" in of_app, "Answers" in of_app, NO_PROCESS in of_app) == (True, False, True)
        cancelled = await asyncio.to_thread(run, server, "runs", "cancel", run_.id)
        assert cancelled.exit_code == 0, cancelled.output
        assert "the cancellation is stored: the run ends when a process with its app runs" in cancelled.stderr
    async with serving(server.address, app, [go]) as engine:
        assert (await engine.wait_for_run(run_.id)).status == "Cancelled"
