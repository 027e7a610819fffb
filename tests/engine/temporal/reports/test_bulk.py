"""Reruns, bulk cancellations and replays on Temporal."""

import asyncio
import datetime as dt
import functools

import msgspec
import pytest

import durably
from durably.engine.model.registry import CANCELLED_IN_BULK
from durably.engine.model.runs import FromStep, Relation, RunStatus
from durably.engine.temporal.ids import bulk_workflow_id
from durably.engine.temporal.reports import bulk, bulk_workflow
from durably.protocol.engine_errors import (
    CancellationNotFoundError,
    FunctionNotFoundError,
    FunctionPausedError,
    RunNotFoundError,
    SelectionInvalidError,
    StepNotFoundError,
)

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ...small_app import Steps
from ..routed_app import PATIENCE, RoutedApp, routed_app
from ..serving import ended_runs, new_app, send, serving


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
        await async_eventually(
            lambda: engine.event_runs(event_id), "two runs are listed", is_right=lambda runs: len(runs) == 2
        )
        with pytest.raises(RunNotFoundError, match="unknown"):
            await engine.rerun("unknown")
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
        assert (report.parent.id, report.parent.relation) == (run.id, Relation.RERUN)
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

    monkeypatch.setattr(bulk, "_TOGETHER", 2)  # So that there are pages.
    async with serving(server.address, app, [go]) as engine:
        function_id = f"{app.app_id}-go"
        runs = [run for n in range(5) for run in await ended_runs(engine, await send(engine, app.app_id, {"n": n}))]
        await async_eventually(
            lambda: engine.list_runs(function_id=function_id, status=RunStatus.FAILED),
            "three failed runs are listed",
            is_right=lambda r: len(r) == 3,
        )
        failing.clear()
        started = await engine.replay_runs(function_id, if_exp="event.data.n < 3")
        found = await async_eventually(
            lambda: engine.get_replay(started.id),
            "the replay has ended",
            is_right=lambda view: view is not None and view.ended_at,
        )
        assert found is not None
        assert found.affected == 2
        replayed = await async_eventually(
            lambda: engine.list_runs(function_id=function_id),
            "the replayed runs are listed",
            is_right=lambda r: len(r) == 7,
        )
        assert sorted(run.rerun_of for run in replayed if run.rerun_of) == sorted([runs[1].id, runs[2].id])
        assert [
            each.id
            for each in await async_eventually(engine.list_replays, "the replay is listed")
            if each.id == started.id
        ] == [started.id]
        assert await engine.get_cancellation(started.id) is None
        with pytest.raises(FunctionNotFoundError):
            await engine.replay_runs("unknown")


async def test_runs_are_cancelled_in_bulk_also_those_that_start_later(server: DevServer) -> None:
    app = new_app()

    @app.create_function(fn_id="nap", trigger=durably.TriggerEvent(event=app.app_id))
    async def nap(ctx: durably.Context) -> None:
        await ctx.step.sleep("long", dt.timedelta(hours=1))

    async with serving(server.address, app, [nap]) as engine:
        ids = [await send(engine, app.app_id, {"n": n}) for n in range(3)]
        await async_eventually(
            lambda: engine.list_runs(function_id=f"{app.app_id}-nap"),
            "three runs are listed",
            is_right=lambda runs: len(runs) == 3,
        )
        until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        started = await engine.cancel_runs("nap", app_id=app.app_id, started_before=until, if_exp="event.data.n > 0")
        ended = [run for event_id in ids[1:] for run in await ended_runs(engine, event_id)]
        assert len(ended) == 2
        (later,) = await ended_runs(engine, await send(engine, app.app_id, {"n": 9}))
        assert later.decode_output()["message"] == CANCELLED_IN_BULK
        (spared,) = await engine.event_runs(ids[0])
        assert spared.ended_at is None
        view = await async_eventually(
            lambda: engine.get_cancellation(started.id),
            "two runs are cancelled",
            is_right=lambda view: view and view.affected == 2,
        )
        assert view is not None
        assert view.ended_at is not None
        await engine.delete_cancellation(started.id)
        await async_eventually(
            lambda: engine.get_cancellation(started.id),
            "the cancellation is deleted",
            is_right=lambda view: view is None,
        )
        with pytest.raises(CancellationNotFoundError):
            await engine.delete_cancellation("unknown")
        await asyncio.gather(*(engine.cancel_run(run.id) for run in await engine.event_runs(ids[0])))


async def test_bulk_cancellation_beyond_the_maximum_is_refused(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_PRESENT_BYTES", 10)
    app = new_app()

    @app.create_function(fn_id="full", trigger=durably.TriggerEvent(event=app.app_id))
    async def full(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [full]) as engine:
        cancel = functools.partial(
            engine.cancel_runs,
            "full",
            app_id=app.app_id,
            started_before=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
        )
        first = await cancel()
        await async_eventually(
            lambda: engine.get_cancellation(first.id),
            "the cancellation has ended",
            is_right=lambda view: view and view.ended_at is not None,
        )
        with pytest.raises(SelectionInvalidError, match=r"than the 1 that apply .* Wait until one is over"):
            await cancel()
        assert await engine.get_cancellation(first.id) is not None


async def start(app: RoutedApp, name: str, sender: str | None = None) -> str:
    """Send an event, from a run or not. Returns the id of the run that it starts."""
    body = msgspec.json.encode({"name": app.event(name), "data": {}})
    return app.run_id(await app.engine.receive_events(body, sender=sender), name)


async def wait_for_call(app: RoutedApp, run_id: str) -> None:
    async with app.called:
        await app.called.wait_for(lambda: any(call.ctx.run_id == run_id for call in app.calls))


async def test_a_bulk_cancellation_reaches_the_runs_that_cancelled_ones_start(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_workflow, "_PAUSE", 100)
    async with routed_app(server.address) as app:

        @app.function("loop", event=app.event("loop"))
        def loop(steps: Steps) -> object:
            return steps.sleep("nap", "1h")

        @app.function("other", event=app.event("other"), retries=0)
        def other(steps: Steps) -> object:
            return steps.invoke("again", app.id_of("loop"))

        await app.sync()
        first = await start(app, "loop")
        run = await app.engine.get_run(first)
        assert run is not None
        before = run.created_at + dt.timedelta(milliseconds=1)
        while dt.datetime.now(dt.UTC) <= before:
            pass
        second = await start(app, "loop", first)
        cancellation = await app.engine.cancel_runs(app.id_of("loop"), started_before=before)
        async with asyncio.timeout(PATIENCE):
            for run_id in (first, second):
                assert (await app.engine.wait_for_run(run_id)).status is RunStatus.CANCELLED

        app.function("loop", event=app.event("loop"), retries=1)(loop)
        await app.sync()
        late = await start(app, "loop", second)
        run = await app.engine.wait_for_run(late)
        assert (run.status, run.decode_output()["message"]) == (RunStatus.CANCELLED, CANCELLED_IN_BULK)
        invoking = await app.engine.wait_for_run(await start(app, "other", late))
        assert CANCELLED_IN_BULK in invoking.decode_output()["message"]
        assert late not in {call.ctx.run_id for call in app.calls}

        again = await app.engine.rerun(first)
        spared = [again, await start(app, "loop"), await start(app, "loop", again)]
        await app.engine.delete_cancellation(cancellation.id)
        await async_eventually(
            lambda: app.engine.get_cancellation(cancellation.id),
            "the cancellation is deleted",
            is_right=lambda view: view is None,
        )
        spared.append(await start(app, "loop", second))
        for run_id in spared:
            await wait_for_call(app, run_id)
            await app.engine.cancel_run(run_id)


@pytest.mark.slow  # The server takes half a minute.
async def test_finished_bulk_cancellation_can_be_deleted(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_workflow, "_LAG", 0)
    monkeypatch.setattr(bulk_workflow, "FOLLOWED_FOR", 0)
    async with routed_app(server.address) as app:
        app.function("go", event=app.event("go"))(lambda steps: None)
        await app.sync()
        now = dt.datetime.now(dt.UTC)
        view = await app.engine.cancel_runs(app.id_of("go"), started_before=now)
        await app.client.get_workflow_handle(bulk_workflow_id(view.id)).result()
        await app.engine.delete_cancellation(view.id)

        async def is_gone() -> bool:
            return await app.engine.get_cancellation(view.id) is None

        await async_eventually(is_gone, "the cancellation is deleted")
