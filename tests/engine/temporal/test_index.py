"""Lists and searches of runs on a Temporal server."""

import datetime as dt
from functools import partial

import pytest
from temporalio.common import SearchAttributePair, TypedSearchAttributes

import durably
from durably.engine.model.runs import RunStatus
from durably.engine.temporal.index import APP, RunQuery
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving


async def test_runs_are_found_by_function_status_event_and_time(server: DevServer) -> None:
    app = make_client()
    paid, other = f"{app.app_id}/paid", f"{app.app_id}/other"

    @app.create_function(fn_id="pay", trigger=durably.TriggerEvent(event=paid), retries=0)
    async def pay(ctx: durably.Context) -> int:
        if ctx.event.data["n"] == 2:
            raise ValueError("refused")
        return int(ctx.event.data["n"]) * 10  # type: ignore[call-overload]

    @app.create_function(fn_id="wait", trigger=durably.TriggerEvent(event=other))
    async def wait(ctx: durably.Context) -> None:
        await ctx.step.wait_for_event("wait", event=f"{other}/on", timeout="1h")

    async with serving(server.address, app, [pay, wait]) as engine:
        ids = [await send(engine, paid, {"n": n}) for n in range(5)]
        runs = [run for event_id in ids for run in await ended_runs(engine, event_id)]
        function_id = f"{app.app_id}-pay"
        waiting = [await send(engine, other) for _ in range(2)]
        (cancelled, live) = [
            (await async_eventually(partial(engine.event_runs, each), "the run is listed"))[0].id for each in waiting
        ]
        await engine.cancel_run(cancelled)
        await engine.pause_function(function_id)
        (skipped,) = await ended_runs(engine, await send(engine, paid, {"n": 6}))
        expected = {
            RunStatus.RUNNING: [live],
            RunStatus.COMPLETED: [runs[n].id for n in (0, 1, 3, 4)],
            RunStatus.FAILED: [runs[2].id],
            RunStatus.CANCELLED: [cancelled],
            RunStatus.SKIPPED: [skipped.id],
        }

        async def listed() -> dict[RunStatus, list[str]]:
            """A run is in the list of running ones until the index knows its end."""
            found = {each: (await engine.search_runs(app_id=app.app_id, status=each)).runs for each in expected}
            return {status: sorted(run.id for run in of_status) for status, of_status in found.items()}

        wanted = {status: sorted(ids) for status, ids in expected.items()}
        assert await async_eventually(listed, "runs are listed", is_right=lambda found: found == wanted) == wanted
        whole = [run.id for run in await engine.list_runs(function_id=function_id)]
        assert sorted(whole) == sorted([*(run.id for run in runs), skipped.id])
        completed = await engine.list_runs(function_id=function_id, status=RunStatus.COMPLETED)
        assert {run.decode_output() for run in completed} == {0, 10, 30, 40}

        pages, cursor = list[str](), None
        while True:
            page = await engine.search_runs(function_id=function_id, limit=2, cursor=cursor)
            pages += [run.id for run in page.runs]
            if (cursor := page.cursor) is None:
                break
        assert pages == whole

        assert len((await engine.search_runs(app_id=app.app_id, event_name=paid)).runs) == 6
        for text in (runs[1].id, ids[1]):
            found = await engine.search_runs(id=text, function_id=function_id)
            assert [run.id for run in found.runs] == [runs[1].id], text
        assert [run.id for run in await engine.list_runs(id_suffix=runs[1].id[-12:])] == [runs[1].id]
        late = await engine.search_runs(
            function_id=function_id, started_after=runs[3].created_at, started_before=skipped.created_at
        )
        assert {run.id for run in late.runs} == {runs[3].id, runs[4].id}


async def test_what_the_index_lacks_is_refused(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="f", trigger=durably.TriggerEvent(event=app.app_id))
    async def f(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [f]) as engine:
        with pytest.raises(NotSupportedError, match="do not distinguish scheduled and running"):
            await engine.list_runs(status=RunStatus.SCHEDULED)
        for cursor in ("X", "XXXX"):
            with pytest.raises(SelectionInvalidError, match=f"the cursor '{cursor}'"):
                await engine.list_runs(cursor=cursor)
        for refused in (
            engine.search_runs(if_exp="event.data.n == 1"),
            engine.overview(),
            engine.search_events(),
            engine.count_runs(),
            engine.list_schedules(),
            engine.skip_delays("any"),
            engine.run_traces("any"),
            engine.cancel_runs(f"{app.app_id}-f", started_before=dt.datetime.now(dt.UTC)),
        ):
            with pytest.raises(NotSupportedError):
                await refused


async def test_an_invoked_run_names_its_parent(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/go"

    @app.create_function(fn_id="child", trigger=durably.TriggerEvent(event=f"{event}-child"))
    async def child(ctx: durably.Context) -> str:
        return "done"

    @app.create_function(fn_id="parent", trigger=durably.TriggerEvent(event=event))
    async def parent(ctx: durably.Context) -> str:
        return await ctx.step.invoke("ask", function=child)

    async with serving(server.address, app, [parent, child]) as engine:
        (run,) = await ended_runs(engine, await send(engine, event))
        assert run.decode_output() == "done"
        children = await async_eventually(
            lambda: engine.list_runs(function_id=f"{app.app_id}-child"), "the children are listed"
        )
        assert [each.app_id for each in children] == [app.app_id]
        assert children[0].event_ids[0] != run.event_ids[0]


async def test_workflows_of_others_are_not_listed_as_runs(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="notify", trigger=durably.TriggerEvent(event=f"{app.app_id}/go"))
    async def notify(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [notify]) as engine:
        [run] = await ended_runs(engine, await send(engine, f"{app.app_id}/go"))
        attributes = TypedSearchAttributes([SearchAttributePair(APP, app.app_id)])
        await engine._client.start_workflow(
            "durably.Run", id=f"durably/run/{app.app_id}", task_queue="none", search_attributes=attributes
        )

        async def counted() -> int:
            return (await engine._client.count_workflows(RunQuery(app_id=app.app_id).query)).count

        await async_eventually(counted, "two runs are counted", is_right=lambda count: count == 2)
        assert [each.id for each in (await engine.search_runs(app_id=app.app_id)).runs] == [run.id]
        assert await engine.get_run(app.app_id) is None
