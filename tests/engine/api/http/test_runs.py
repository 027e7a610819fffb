"""Runs over the API: reading, cancelling, running again, and the inputs that apps fetch."""

import asyncio
import datetime as dt

import durably

from .conftest import Harness, ServeFunctions, client_of


async def _serve_shop(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev)

    @client.create_function(fn_id="place", trigger=durably.TriggerEvent(event="order/placed"), retries=0)
    async def place(ctx: durably.Context) -> object:
        async def charge() -> object:
            return {"charged": ctx.event.data["total"]}

        charged = await ctx.step.run("charge", charge)
        if ctx.event.data.get("wait"):
            await ctx.step.wait_for_event("confirmation", event="order/confirmed", timeout=60_000)
        if ctx.event.data.get("fail"):
            raise ValueError("out of stock")
        return charged

    await dev.server.discovery.sync(await serve_functions(client, [place]))


async def test_a_run_is_shown_with_its_steps(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    event_id = await dev.send("order/placed", {"total": 3})
    run = await dev.ended((await dev.run_of(event_id)).id)

    _, answer = await dev.json("GET", f"/v1/runs/{run.id}")
    shown = answer["data"]
    assert (shown["run_id"], shown["function_id"], shown["status"]) == (run.id, "shop-place", "Completed")
    assert shown["output"] == {"charged": 3}
    assert shown["event_id"] == event_id
    began, ended = (dt.datetime.fromisoformat(shown[name]) for name in ("run_started_at", "ended_at"))
    assert began <= ended
    _, of_event = await dev.json("GET", f"/v1/events/{event_id}/runs")
    assert [each["run_id"] for each in of_event["data"]] == [run.id]

    _, steps = await dev.json("GET", f"/v1/runs/{run.id}/steps")
    [charge] = steps["data"]
    assert (charge["id"], charge["op"], charge["status"]) == ("charge", "StepRun", "completed")
    assert charge["output"] == {"charged": 3}


async def test_inputs_of_a_run_can_be_fetched(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    event_id = await dev.send("order/placed", {"total": 3})
    run = await dev.ended((await dev.run_of(event_id)).id)
    status, batch = await dev.json("GET", f"/v0/runs/{run.id}/batch")
    assert (status, [event["data"] for event in batch]) == (200, [{"total": 3}])
    status, actions = await dev.json("GET", f"/v0/runs/{run.id}/actions")
    assert (status, list(actions.values())) == (200, [{"data": {"charged": 3}}])


async def test_a_failed_run_shows_its_error(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    run = await dev.ended((await dev.run_of(await dev.send("order/placed", {"total": 3, "fail": True}))).id)
    _, answer = await dev.json("GET", f"/v1/runs/{run.id}")
    assert answer["data"]["status"] == "Failed"
    assert (answer["data"]["output"]["name"], answer["data"]["output"]["message"]) == ("ValueError", "out of stock")


async def test_runs_are_listed_and_filtered(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    ids = []
    for data in ({"total": 1}, {"total": 2, "fail": True}, {"total": 3}):
        ids.append((await dev.ended((await dev.run_of(await dev.send("order/placed", data))).id)).id)

    async def listed(**query: str | int) -> list[str]:
        _, answer = await dev.json("GET", "/v1/runs", params=query)
        return [run["run_id"] for run in answer["data"]]

    function = "shop-place"
    assert await listed(function_id=function) == ids[::-1]
    assert await listed(function_id=function, status="failed") == [ids[1]]
    assert await listed(function_id=function, limit=1) == [ids[2]]
    assert await listed(function_id=function, cursor=ids[2]) == [ids[1], ids[0]]
    assert await listed(function_id="unknown") == []
    status, answer = await dev.json("GET", "/v1/runs?status=lost")
    assert (status, "Completed" in answer["error"]) == (400, True)


async def test_outstanding_calls_are_listed(dev: Harness, serve_functions: ServeFunctions) -> None:
    client, called, release = client_of(dev), asyncio.Event(), asyncio.Event()

    @client.create_function(fn_id="slow", trigger=durably.TriggerEvent(event="start"))
    async def slow(ctx: durably.Context) -> None:
        called.set()
        await release.wait()

    await dev.server.discovery.sync(await serve_functions(client, [slow]))
    run = await dev.run_of(await dev.send("start"))
    await called.wait()
    _, answer = await dev.json("GET", f"/v1/runs/{run.id}/jobs")
    [job] = answer["data"]
    assert (job["position"], job["attempt"], job["in_flight"], job["step_id"]) == (0, 0, True, "step")
    release.set()
    await dev.ended(run.id)
    _, answer = await dev.json("GET", f"/v1/runs/{run.id}/jobs")
    assert answer["data"] == []


async def test_unknown_runs_are_not_found(dev: Harness) -> None:
    unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    for method, path in [
        ("GET", f"/v1/runs/{unknown}"),
        ("DELETE", f"/v1/runs/{unknown}"),
        ("GET", f"/v1/runs/{unknown}/steps"),
        ("GET", f"/v1/runs/{unknown}/jobs"),
        ("POST", f"/v1/runs/{unknown}/rerun"),
        ("GET", f"/v0/runs/{unknown}/batch"),
        ("GET", f"/v0/runs/{unknown}/actions"),
    ]:
        status, answer = await dev.json(method, path)
        assert (status, answer["status"]) == (404, 404), path
        assert unknown in answer["error"]
