"""Operations on functions, apps, events and loads of an engine on Temporal."""

import asyncio
import datetime as dt

import pytest

import durably
from durably.engine.model.runs import RunStatus
from durably.protocol.engine_errors import FunctionNotFoundError, NotSupportedError, RunNotFoundError

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving


async def test_functions_and_apps_are_listed_paused_and_resumed(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="go", name="Go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> None: ...

    @app.create_function(fn_id="daily", trigger=durably.TriggerCron(cron="0 3 * * *"))
    async def daily(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [go, daily]) as engine:
        apps = await async_eventually(
            engine.list_apps, "the app is listed", is_right=lambda apps: any(each.id == app.app_id for each in apps)
        )
        (own,) = [each for each in apps if each.id == app.app_id]
        assert own.function_count == 2
        assert own.last_sync is not None
        assert len(own.last_sync.added) == 2
        functions = await engine.list_app_functions(app.app_id)
        assert functions is not None
        assert functions[0].name == "Go"
        assert {each.id for each in functions} <= {each.id for each in await engine.list_functions()}
        assert await engine.list_app_functions("unknown") is None

        await engine.pause_function(f"{app.app_id}-go")
        (paused,) = [each for each in await engine.list_functions() if each.id == f"{app.app_id}-go"]
        assert paused.is_paused
        event_id = await send(engine, app.app_id)
        (skipped,) = await async_eventually(lambda: engine.event_runs(event_id), "the event has its skipped run")
        assert skipped.status is RunStatus.SKIPPED
        await engine.resume_function(f"{app.app_id}-go")
        (run,) = await ended_runs(engine, await send(engine, app.app_id))
        assert run.status is RunStatus.COMPLETED
        with pytest.raises(FunctionNotFoundError, match="unknown"):
            await engine.pause_function("unknown")


async def test_events_are_those_that_started_runs(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/go"

    @app.create_function(fn_id="one", trigger=durably.TriggerEvent(event=event))
    async def one(ctx: durably.Context) -> None: ...

    @app.create_function(fn_id="two", trigger=durably.TriggerEvent(event=event))
    async def two(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [one, two]) as engine:
        ids = [await send(engine, event, {"n": n}) for n in range(3)]
        for event_id in ids:
            await ended_runs(engine, event_id, 2)
        got = await engine.get_event(ids[2])
        assert got is not None
        assert got.data == {"n": 2}
        unmatched = await send(engine, f"{event}/unknown")
        with pytest.raises(NotSupportedError, match="stores events in the runs that they start"):
            await engine.get_event(unmatched)
        assert await engine.event_runs(unmatched) == []


async def test_cancellations_and_invocations_return_the_run(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="nap", trigger=durably.TriggerEvent(event=app.app_id))
    async def nap(ctx: durably.Context) -> None:
        await ctx.step.sleep("long", dt.timedelta(hours=1))

    async with serving(server.address, app, [nap]) as engine:
        changes = await engine.wait_for_changes()
        waiting = asyncio.create_task(engine.wait_for_changes(after=changes.position))
        receipt = await engine.invoke(f"{app.app_id}-nap", {"n": 1})
        assert receipt.run_id is not None
        assert (await waiting).position != changes.position
        run_id = receipt.run_id
        assert await async_eventually(lambda: engine.get_run(run_id), "the engine knows the run")
        assert await engine.cancel_run(run_id)
        with pytest.raises(RunNotFoundError, match="unknown"):
            await engine.cancel_run("unknown")
