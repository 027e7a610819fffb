"""Operations on functions, apps, events and loads of an engine on Temporal."""

import asyncio
import datetime as dt

import pytest

import durably
from durably.engine.model.runs import RunStatus
from durably.protocol.engine_errors import FunctionNotFoundError, NotSupportedError, RunNotFoundError

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .serving import ended_runs, new_app, send, serving


async def test_functions_and_apps_are_listed_paused_and_resumed(server: DevServer) -> None:
    app = new_app()

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
        (report,) = [each for each in await engine.inspect_apps() if each.app.id == app.app_id]
        assert report.last_sync is not None
        assert len(report.last_sync.added) == 2
        functions = await engine.list_app_functions(app.app_id)
        assert functions is not None
        assert functions[0].name == "Go"
        assert {each.id for each in functions} <= {each.id for each in await engine.list_functions()}
        assert await engine.list_app_functions("unknown") is None

        schedules = [each for each in await engine.list_schedules() if each.function_id == f"{app.app_id}-daily"]
        assert [each.schedule for each in schedules] == ["0 3 * * *"]
        assert [tick.hour for tick in schedules[0].next_ticks] == [3] * 5

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
    app = new_app()
    event = f"{app.app_id}/go"

    @app.create_function(fn_id="one", trigger=durably.TriggerEvent(event=event))
    async def one(ctx: durably.Context) -> None: ...

    @app.create_function(fn_id="two", trigger=durably.TriggerEvent(event=event))
    async def two(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [one, two]) as engine:
        ids = [await send(engine, event, {"n": n}) for n in range(3)]
        for event_id in ids:
            await ended_runs(engine, event_id, 2)
        page = await engine.search_events(name=event)
        assert [each.id for each in page.events] == ids[::-1]
        assert [len(each.runs) for each in page.events] == [2, 2, 2]
        assert [each.id for each in await engine.list_events(name=event, limit=2)] == ids[:0:-1]
        assert [each.id for each in await engine.list_events(name=event, cursor=ids[1])] == [ids[0]]
        first = await engine.search_events(name=event, limit=1)
        second = await engine.search_events(name=event, limit=2, cursor=first.cursor)
        assert [each.id for each in (*first.events, *second.events)] == ids[::-1]
        found = await engine.search_events(name=event, if_exp="event.data.n == 1")
        assert [each.id for each in found.events] == [ids[1]]
        assert [each.id for each in (await engine.search_events(id=ids[0])).events] == [ids[0]]
        got = await engine.get_event(ids[2])
        assert got is not None
        assert got.data == {"n": 2}
        with pytest.raises(NotSupportedError, match="has none that matched nothing"):
            await engine.search_events(is_unmatched=True)
        unmatched = await send(engine, f"{event}/unknown")
        with pytest.raises(NotSupportedError, match="stores events in the runs that they start"):
            await engine.get_event(unmatched)
        assert await engine.event_runs(unmatched) == []


@pytest.mark.slow
async def test_loads_count_runs_by_function_and_time(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app()
    event = f"{app.app_id}/go"
    waits, mended = asyncio.Event(), asyncio.Event()

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=event), retries=0)
    async def go(ctx: durably.Context) -> None:
        if ctx.event.data.get("fails") and not mended.is_set():
            raise ValueError("refused")
        if ctx.event.data.get("waits"):
            await waits.wait()

    async with serving(server.address, app, [go]) as engine:
        function_id = f"{app.app_id}-go"
        await ended_runs(engine, await send(engine, event))
        [failed] = await ended_runs(engine, await send(engine, event, {"fails": True}))
        await send(engine, event, {"waits": True})
        await async_eventually(
            lambda: engine.list_runs(function_id=function_id),
            "three runs are listed",
            is_right=lambda runs: len(runs) == 3,
        )

        async def counted() -> tuple[int, ...]:
            engine._loads._kept.clear()
            report = await engine.inspect_function(function_id)
            assert report is not None
            created = sum(each.created for each in report.load.counts)
            ends = (sum(each.completed for each in report.load.counts), sum(each.failed for each in report.load.counts))
            return (report.load.live, created, *ends)

        assert await async_eventually(counted, "the runs are counted", is_right=lambda counts: counts == (1, 3, 1, 1))
        monkeypatch.setattr("durably.engine.temporal.reports.loads._MOST_READ", 0)
        assert await async_eventually(counted, "the runs are counted", is_right=lambda counts: counts == (1, 3, 1, 1))
        overview = await engine.overview(since=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
        assert sum(each.failed for each in overview.counts) >= 1
        assert [each.subject for each in overview.concerns if each.subject == function_id] == [function_id]
        report = await engine.inspect_function(function_id)
        assert report is not None
        assert report.sampled == 2
        monkeypatch.undo()
        mended.set()
        await engine.rerun(failed.id)

        async def left() -> tuple[int, int, list[str]]:
            engine._loads._kept.clear()
            overview = await engine.overview(since=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
            (load,) = [each for each in overview.functions if each.function_id == function_id]
            concerns = [each.subject for each in overview.concerns if each.subject == function_id]
            return sum(each.failed for each in load.counts), sum(each.open_failures for each in load.counts), concerns

        assert await async_eventually(left, "no call is left", is_right=lambda found: found == (1, 0, []))
        metrics = {each.name: each for each in await engine.read_metrics()}
        assert (function_id,) in [sample.labels for sample in metrics["runs_live"].samples]
        waits.set()


async def test_cancellations_and_invocations_return_the_run(server: DevServer) -> None:
    app = new_app()

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
        run = await engine.get_run(run_id)
        assert run is not None
        assert run.status is RunStatus.CANCELLED
        assert "cancelled by request" in run.decode_output()["message"]
        assert not await engine.cancel_run(run_id)
        with pytest.raises(RunNotFoundError, match="unknown"):
            await engine.cancel_run("unknown")
