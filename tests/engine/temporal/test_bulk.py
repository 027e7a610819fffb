"""Reruns, bulk cancellations and replays on Temporal."""

import asyncio
import datetime as dt

import pytest

import durably
from durably.engine.core.errors import (
    CancellationNotFoundError,
    FunctionNotFoundError,
    FunctionPausedError,
    RunNotFoundError,
    StepNotFoundError,
)
from durably.engine.reports import Relation
from durably.engine.temporal.reports import bulk
from durably.engine.views import FromStep, RunStatus

from ...temporal.dev_server import DevServer
from .serving import ended_runs, eventually, new_app, send, serving


async def test_a_rerun_has_the_same_events_and_names_its_run(server: DevServer) -> None:
    app = new_app()
    seen: list[int] = []

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> int:
        seen.append(int(ctx.event.data["n"]))  # type: ignore[call-overload]
        return len(seen)

    async with serving(server.address, app, [go]) as engine:
        event_id = await send(engine, app.app_id, {"n": 7})
        (run,) = await ended_runs(engine, event_id)
        again = await engine.wait_for_run(await engine.rerun(run.id))
        assert (again.rerun_of, again.event_ids, again.decode_output()) == (run.id, [event_id], 2)
        assert seen == [7, 7]
        await eventually(lambda: engine.event_runs(event_id), lambda runs: len(runs) == 2)
        with pytest.raises(RunNotFoundError, match="nobody"):
            await engine.rerun("nobody")
        await engine.pause_function(f"{app.app_id}-go")
        with pytest.raises(FunctionPausedError):
            await engine.rerun(run.id)


async def test_a_rerun_from_a_step_has_the_results_before_it(server: DevServer) -> None:
    app = new_app()
    seen: list[str] = []

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> str:
        def do(what: str) -> str:
            seen.append(what)
            return what.upper()

        first: str = await ctx.step.run("first", do, "one")
        return first + await ctx.step.run("second", do, "two")

    async with serving(server.address, app, [go]) as engine:
        (run,) = await ended_runs(engine, await send(engine, app.app_id))
        again = await engine.rerun(run.id, from_step=FromStep.of("second", ["three"]))
        assert (await engine.wait_for_run(again)).decode_output() == "ONETHREE"
        assert seen == ["one", "two", "three"]
        report = await engine.inspect_run(again)
        assert report is not None
        assert [(step.id, step.is_copied) for step in report.steps] == [("first", True), ("second", False)]
        assert report.parent is not None
        assert (report.parent.run_id, report.parent.relation) == (run.id, Relation.RERUN)
        with pytest.raises(StepNotFoundError, match="has no finished step 'third': it has 'first', 'second'"):
            await engine.rerun(run.id, from_step=FromStep("third"))


async def test_failed_runs_are_replayed_once(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app()
    failing = {1, 2, 3}

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id), retries=0)
    async def go(ctx: durably.Context) -> int:
        n = int(ctx.event.data["n"])  # type: ignore[call-overload]
        if n in failing:
            raise ValueError("refused")
        return n

    monkeypatch.setattr(bulk, "_TOGETHER", 2)  # so that there are pages
    async with serving(server.address, app, [go]) as engine:
        function_id = f"{app.app_id}-go"
        runs = [run for n in range(5) for run in await ended_runs(engine, await send(engine, app.app_id, {"n": n}))]
        await eventually(
            lambda: engine.list_runs(function_id=function_id, status=RunStatus.FAILED), lambda r: len(r) == 3
        )
        failing.clear()
        started = await engine.replay_runs(function_id, if_exp="event.data.n < 3")
        found = await eventually(lambda: engine.get_replay(started.id), lambda view: view is not None and view.ended_at)
        assert found is not None
        assert found.affected == 2
        replayed = await eventually(lambda: engine.list_runs(function_id=function_id), lambda r: len(r) == 7)
        assert sorted(run.rerun_of for run in replayed if run.rerun_of) == sorted([runs[1].id, runs[2].id])
        assert [each.id for each in await eventually(engine.list_replays) if each.id == started.id] == [started.id]
        assert await engine.get_cancellation(started.id) is None
        with pytest.raises(FunctionNotFoundError):
            await engine.replay_runs("nobody")


async def test_runs_are_cancelled_in_bulk_also_those_that_start_later(server: DevServer) -> None:
    app = new_app()

    @app.create_function(fn_id="nap", trigger=durably.TriggerEvent(event=app.app_id))
    async def nap(ctx: durably.Context) -> None:
        await ctx.step.sleep("long", dt.timedelta(hours=1))

    async with serving(server.address, app, [nap]) as engine:
        ids = [await send(engine, app.app_id, {"n": n}) for n in range(3)]
        await eventually(lambda: engine.list_runs(function_id=f"{app.app_id}-nap"), lambda runs: len(runs) == 3)
        until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        started = await engine.cancel_runs("nap", app_id=app.app_id, started_before=until, if_exp="event.data.n > 0")
        ended = [run for event_id in ids[1:] for run in await ended_runs(engine, event_id)]
        assert len(ended) == 2
        (later,) = await ended_runs(engine, await send(engine, app.app_id, {"n": 9}))
        assert "bulk cancellation" in later.decode_output()["message"]
        (spared,) = await engine.event_runs(ids[0])
        assert spared.ended_at is None
        view = await eventually(lambda: engine.get_cancellation(started.id), lambda view: view and view.affected == 3)
        assert view is not None
        assert view.ended_at is not None
        await engine.delete_cancellation(started.id)
        await eventually(lambda: engine.get_cancellation(started.id), lambda view: view is None)
        with pytest.raises(CancellationNotFoundError):
            await engine.delete_cancellation("nobody")
        await asyncio.gather(*(engine.cancel_run(run.id) for run in await engine.event_runs(ids[0])))
