"""Lists and searches of runs on a Temporal server."""

import datetime as dt

import pytest
from temporalio.common import SearchAttributePair, TypedSearchAttributes

import durably
from durably.engine.model.runs import RunStatus
from durably.engine.temporal.reports import lists
from durably.engine.temporal.reports.lists import RunLists, RunQuery
from durably.engine.temporal.search_attributes import APP
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ..running_apps import ended_runs, make_client, send, serving


async def test_runs_are_found_by_function_status_event_time_and_condition(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_client()
    paid, other = f"{app.app_id}/paid", f"{app.app_id}/other"

    @app.create_function(fn_id="pay", trigger=durably.TriggerEvent(event=paid), retries=0)
    async def pay(ctx: durably.Context) -> int:
        if ctx.event.data["n"] == 2:
            raise ValueError("refused")
        return int(ctx.event.data["n"]) * 10  # type: ignore[call-overload]

    @app.create_function(fn_id="notify", trigger=durably.TriggerEvent(event=other))
    async def notify(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [pay, notify]) as engine:
        ids = [await send(engine, paid, {"n": n}) for n in range(5)]
        await send(engine, other)
        runs = [run for event_id in ids for run in await ended_runs(engine, event_id)]
        newest = [run.id for run in reversed(runs)]
        function_id = f"{app.app_id}-pay"

        async def failed() -> list[str]:
            found = await engine.list_runs(function_id=function_id, status=RunStatus.FAILED)
            return [run.id for run in found]

        assert await async_eventually(failed, "the failed run is listed") == [runs[2].id]
        listed = await async_eventually(
            lambda: engine.list_runs(function_id=function_id),
            "all runs have ended",
            is_right=lambda found: all(run.status.has_ended for run in found),
        )
        assert [run.id for run in listed] == newest
        assert [run.decode_output() for run in listed][:2] == [40, 30]
        assert [run.status for run in listed].count(RunStatus.COMPLETED) == 4

        # Intervals of time that are read one after another give the same order.
        monkeypatch.setattr(lists, "_MOST_SORTED", 2)
        monkeypatch.setattr(lists, "_FIRST_INTERVAL", dt.timedelta(milliseconds=200))
        pages = await engine.list_runs(function_id=function_id, limit=2)
        rest = await engine.list_runs(function_id=function_id, cursor=pages[-1].id)
        assert [run.id for run in pages + rest] == newest

        assert len((await engine.search_runs(app_id=app.app_id, event_name=paid)).runs) == 5
        assert len((await engine.search_runs(app_id=app.app_id)).runs) == 6
        page = await engine.search_runs(function_id=function_id, limit=3)
        assert [run.id for run in page.runs] == newest[:3]
        page = await engine.search_runs(function_id=function_id, limit=3, cursor=page.cursor)
        assert ([run.id for run in page.runs], page.cursor) == (newest[3:], None)
        for text in (runs[1].id, ids[1]):
            found = await engine.search_runs(id=text, function_id=function_id)
            assert [run.id for run in found.runs] == [runs[1].id], text
        assert [run.id for run in await engine.list_runs(id_suffix=runs[1].id[-12:])] == [runs[1].id]
        late = await engine.search_runs(function_id=function_id, started_after=runs[3].created_at)
        assert [run.id for run in late.runs] == newest[:2]


async def test_runs_are_counted_by_status(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/go"

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=event), retries=0)
    async def go(ctx: durably.Context) -> None:
        if ctx.event.data.get("fails"):
            raise ValueError("refused")
        if ctx.event.data.get("waits"):
            await ctx.step.wait_for_event("wait", event=f"{event}/on", timeout="1h")

    async with serving(server.address, app, [go]) as engine:
        for data in ({}, {}, {"fails": True}):
            await ended_runs(engine, await send(engine, event, data))
        for _ in range(2):
            waiting = await send(engine, event, {"waits": True})
        (run, *_) = await async_eventually(lambda: engine.event_runs(waiting), "the waiting run is listed")
        await engine.cancel_run(run.id)
        await engine.pause_function(f"{app.app_id}-go")
        await ended_runs(engine, await send(engine, event))

        async def counted(**wanted: str) -> dict[str, int]:
            found = (await engine.count_runs(**wanted)).counts
            assert all(each.is_complete for each in found.values())
            return {status: each.count for status, each in found.items()}

        expected = {"Running": 1, "Completed": 2, "Failed": 1, "Cancelled": 1, "Skipped": 1}
        assert await async_eventually(
            lambda: counted(app_id=app.app_id), "the runs are counted", is_right=lambda found: found == expected
        )
        assert await counted(function_id=f"{app.app_id}-go", event_name=event) == expected
        assert set((await counted(app_id="none")).values()) == {0}

        async def listed() -> dict[str, int]:
            """A skipped run is in the list of running ones until the index knows its end."""
            lists = [
                await engine.list_runs(function_id=f"{app.app_id}-go", status=RunStatus(each)) for each in expected
            ]
            return {status: len(found) for status, found in zip(expected, lists, strict=True)}

        assert await async_eventually(listed, "the runs are listed", is_right=lambda found: found == expected)


async def test_conditions_that_the_index_lacks_are_refused(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="f", trigger=durably.TriggerEvent(event=app.app_id))
    async def f(ctx: durably.Context) -> None: ...

    async with serving(server.address, app, [f]) as engine:
        with pytest.raises(NotSupportedError, match="do not distinguish scheduled and running"):
            await engine.list_runs(status=RunStatus.SCHEDULED)
        with pytest.raises(SelectionInvalidError, match="the cursor 'X' does not name"):
            await engine.list_runs(cursor="X")
        for refused in (
            engine.search_runs(if_exp="event.data.n == 1"),
            engine.search_runs(id=f"{app.app_id}"),
            engine.overview(),
            engine.search_events(),
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
            return await RunLists(engine._client).count(RunQuery(app_id=app.app_id))

        await async_eventually(counted, "two runs are counted", is_right=lambda count: count == 2)
        assert [each.id for each in (await engine.search_runs(app_id=app.app_id)).runs] == [run.id]
        assert await engine.get_run(app.app_id) is None
