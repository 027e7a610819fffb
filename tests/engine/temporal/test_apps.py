"""Syncs of apps on the engine on Temporal."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.model.overview import SyncResult
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.apps import AppSync
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_workflow_id, function_workflow_id, schedule_id, topic_workflow_id
from durably.engine.temporal.messages import AppRecord, SyncInput
from durably.protocol.engine_errors import ConfigInvalidError

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from ..small_app import Steps
from .routed_app import RoutedApp, data_of, routed_app


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


def serve(app: RoutedApp, *names: str, **config: Any) -> None:
    """Functions that are triggered by ``go``, and by events of their own names."""
    app.functions.clear()
    for name in names:

        @app.function(name, triggers=[{"event": app.event("go")}, {"event": app.event(name)}], **config)
        def function(steps: Steps) -> object:
            return data_of(steps).get("n")


async def actions(app: RoutedApp) -> int:
    ids = [app_workflow_id(app.app_id), topic_workflow_id(app.event("go")), function_workflow_id(app.id_of("a"))]
    return sum([await app.history_length(each) for each in ids])


async def record(app: RoutedApp) -> AppRecord:
    found = await app.engine._router.records.read(app_workflow_id(app.app_id), "app", AppRecord)
    assert found is not None
    return found


async def test_sync_reports_its_changes(app: RoutedApp) -> None:
    serve(app, "a", "b")
    a, b, c = map(app.id_of, "abc")
    assert await app.sync() == SyncResult(app_id=app.app_id, modified=True, added=(a, b))
    before = await actions(app)
    assert await app.sync() == SyncResult(app_id=app.app_id, modified=False)
    assert await actions(app) == before
    serve(app, "a", "c", retries=1)
    request = msgspec.structs.replace(app.sync_request(), app_version="2")
    result = await app.engine.sync_app(request, in_process=True)
    assert (result.added, result.changed, result.removed) == ((c,), (a,), (b,))
    assert (result.version, result.previous_version, result.previous_url) == ("2", None, None)
    moved = msgspec.structs.replace(request, url="embedded://other")
    assert (await app.engine.sync_app(moved, in_process=True)).previous_url == app.url


async def test_functions_missing_in_a_sync_start_no_runs_but_their_runs_continue(app: RoutedApp) -> None:
    serve(app, "a", "b")
    await app.sync()
    app.gate.clear()
    started = await app.send("b", n=1)
    await app.wait_for_calls(1)
    left_out = app.functions[app.id_of("b")]
    serve(app, "a")
    await app.sync()
    app.functions[app.id_of("b")] = left_out
    app.gate.set()
    assert await app.result(app.run_id(started, "b")) == 1
    receipt = await app.send("go", n=2)
    assert await app.result(app.run_id(receipt, "a")) == 2
    assert await app.engine.get_run(app.run_id(receipt, "b")) is None
    assert list((await app.send("b")).unmatched) == [app.event("b")]
    await app.sync()
    assert await app.run_to_end("b", "b", n=3) == 3


async def test_two_apps_cannot_have_a_function_of_the_same_id(app: RoutedApp) -> None:
    serve(app, "a")
    await app.sync()
    other = RoutedApp(app.client, EngineSettings())
    other.functions = dict(app.functions)
    with pytest.raises(ConfigInvalidError, match=f"is taken by a function of app '{app.app_id}'"):
        await other.sync()
    serve(app)
    await app.sync()
    await other.sync()
    assert (await record(other)).added == (app.id_of("a"),)


async def test_concurrent_syncs_end_in_one_of_the_configurations(app: RoutedApp) -> None:
    requests = []
    for names in (("a", "b"), ("b", "c"), ("a", "c")):
        serve(app, *names)
        requests.append(app.sync_request())
    await asyncio.gather(*(app.engine.sync_app(request, in_process=True) for request in requests))
    synced = set((await record(app)).functions)
    assert synced in [{function.id for function in request.functions} for request in requests]
    routes = {
        name: (await app.engine._router.records.find_topic(app.event(name))).triggers for name in ("go", "a", "b", "c")
    }
    assert {each.function_id for each in routes["go"]} == synced
    for name in "abc":
        assert [each.function_id for each in routes[name]] == [app.id_of(name)] * (app.id_of(name) in synced)


async def test_a_sync_survives_the_process_that_asked_for_it(app: RoutedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, is_applying = asyncio.Event(), asyncio.Event()
    apply = AppSync._check_owners

    async def wait_and_apply(self: AppSync, sync: SyncInput) -> None:
        is_applying.set()
        await may_go_on.wait()
        await apply(self, sync)

    async def is_synced() -> bool:
        found = await app.engine._router.records.read(app_workflow_id(app.app_id), "app", AppRecord)
        return found is not None and list(found.functions) == [app.id_of("a")]

    monkeypatch.setattr(AppSync, "_check_owners", wait_and_apply)
    serve(app, "a")
    asking = asyncio.create_task(app.sync())
    await is_applying.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not await is_synced()
    may_go_on.set()
    await async_eventually(is_synced, "the sync is applied")
    assert await app.run_to_end("go", "a", n=1) == 1


async def test_app_that_is_served_in_two_ways_is_logged(app: RoutedApp, caplog: pytest.LogCaptureFixture) -> None:
    serve(app, "a")
    await app.sync()
    await app.sync()
    assert "no longer" not in caplog.text
    request = msgspec.structs.replace(app.sync_request(), url="http://127.0.0.1:1/")
    for function in request.functions:
        function.steps["step"].runtime.url = "http://127.0.0.1:1/"
    await app.engine.sync_app(request)
    assert f"app '{app.app_id}' are now called at its URL, and no longer in its own processes" in caplog.text


async def test_terminated_records_are_started_again(app: RoutedApp, caplog: pytest.LogCaptureFixture) -> None:
    serve(app, "a")
    await app.sync()
    ended = [topic_workflow_id(app.event("go")), function_workflow_id(app.id_of("a"))]
    for each in ended:
        await app.client.get_workflow_handle(each).terminate()
    assert await app.run_to_end("go", "a", n=1) == 1
    assert caplog.text.count("was terminated on Temporal, and is started again with its record") == 2
    for each in ended:
        assert (await app.client.get_workflow_handle(each).describe()).status is WorkflowExecutionStatus.RUNNING


async def test_starting_process_restores_deleted_records(app: RoutedApp) -> None:
    serve(app, "a")
    app.functions[app.id_of("a")][1]["triggers"].append({"cron": "0 1 * * *"})
    await app.sync()
    cron = app.client.get_schedule_handle(schedule_id(app.id_of("a"), "0 1 * * *", 0))

    async def restart() -> None:
        await WorkflowEngine(app.client, EngineSettings()).sync_app(app.sync_request(), in_process=True)

    for deleted in (topic_workflow_id(app.event("go")), function_workflow_id(app.id_of("a"))):
        await delete(app, deleted)
        await restart()
        assert await app.run_to_end("go", "a", n=1) == 1
    await cron.delete()
    await restart()
    await cron.describe()


async def delete(app: RoutedApp, workflow_id: str) -> None:
    """Delete workflows, as the server does some time after their end."""
    await app.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow_id)
        )
    )

    async def is_gone() -> bool:
        try:
            await app.client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await async_eventually(is_gone, "the workflow is deleted")
