"""Pausing functions, bulk cancellations and replays, and reruns from a step."""

import datetime as dt

import durably

from .conftest import Harness, ServeFunctions, client_of


async def _serve_shop(dev: Harness, serve_functions: ServeFunctions, is_broken: list[bool] | None = None) -> None:
    client = client_of(dev)

    @client.create_function(fn_id="place", trigger=durably.TriggerEvent(event="order"), retries=0)
    async def place(ctx: durably.Context) -> object:
        charged = await ctx.step.run("charge", lambda total: total, ctx.event.data["total"])
        if ctx.event.data.get("wait"):
            await ctx.step.wait_for_event("paid", event="paid", timeout=dt.timedelta(hours=1))
        if is_broken:
            raise ValueError("broken")
        return charged

    await dev.server.discovery.sync(await serve_functions(client, [place]))


async def test_a_function_is_paused_and_resumed(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    status, body = await dev.json("GET", "/v1/functions")
    assert status == 200
    assert [(one["id"], one["app_id"], one.get("is_paused", False)) for one in body["data"]] == [
        ("shop-place", "shop", False)
    ]
    status, body = await dev.json("POST", "/v1/functions/shop-place/pause")
    assert (status, body["data"]["is_paused"]) == (200, True)
    run = await dev.run_of(await dev.send("order", {"total": 1}))
    assert run.status == "Skipped"
    status, body = await dev.json("POST", f"/v1/runs/{run.id}/rerun")
    assert status == 409
    assert "paused" in body["error"]
    status, body = await dev.json("POST", "/v1/functions/shop-place/resume")
    assert status == 200
    assert not body["data"].get("is_paused", False)
    status, body = await dev.json("POST", "/v1/functions/shop-none/pause")
    assert status == 404


async def test_runs_are_cancelled_in_bulk(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    runs = [await dev.run_of(await dev.send("order", {"total": total, "wait": True})) for total in (1, 2)]
    wanted = {
        "app_id": "shop",
        "function_id": "place",
        "started_before": "2099-01-01T00:00:00Z",
        "if": "event.data.total == 2",
    }
    status, body = await dev.json("POST", "/v1/cancellations", json=wanted)
    assert status == 200, body
    cancellation = body["data"]
    assert (cancellation["function_id"], cancellation["if"]) == ("shop-place", "event.data.total == 2")
    assert (await dev.ended(runs[1].id)).status == "Cancelled"
    status, body = await dev.json("GET", "/v1/cancellations")
    assert [one["id"] for one in body["data"]] == [cancellation["id"]]
    status, _ = await dev.json("DELETE", f"/v1/cancellations/{cancellation['id']}")
    assert status == 200
    status, _ = await dev.json("DELETE", f"/v1/cancellations/{cancellation['id']}")
    assert status == 404
    later = await dev.run_of(await dev.send("order", {"total": 2, "wait": True}))
    assert not later.status.has_ended


async def test_invalid_bulk_operations_are_refused(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    for wanted, reason in (
        ({"function_id": "shop-place"}, "started_before is required"),
        ({"function_id": "shop-place", "started_before": "soon"}, "RFC 3339"),
        ({"function_id": "shop-place", "started_before": "2030-01-01T00:00:00Z", "if": "event."}, "not valid"),
    ):
        status, body = await dev.json("POST", "/v1/cancellations", json=wanted)
        assert status == 400
        assert reason in body["error"]
    status, body = await dev.json("POST", "/v1/replays", json={"function_id": "shop-place", "statuses": ["Running"]})
    assert status == 400
    status, body = await dev.json("POST", "/v1/replays", json={"function_id": "shop-none"})
    assert status == 404


async def test_failed_runs_are_replayed(dev: Harness, serve_functions: ServeFunctions) -> None:
    is_broken = [True]
    await _serve_shop(dev, serve_functions, is_broken)
    failed = await dev.ended((await dev.run_of(await dev.send("order", {"total": 3}))).id)
    assert failed.status == "Failed"
    is_broken.clear()
    status, body = await dev.json("POST", "/v1/replays", json={"function_id": "shop-place"})
    assert status == 200, body
    replay_id = body["data"]["id"]
    with dev.engine.watch() as updates:
        while not (again := [run for run in await dev.engine.list_runs() if run.rerun_of == failed.id]):
            await anext(updates)
    assert (await dev.ended(again[0].id)).status == "Completed"
    status, body = await dev.json("GET", f"/v1/replays/{replay_id}")
    assert (body["data"]["affected"], body["data"]["statuses"]) == (1, ["Failed"])
    status, body = await dev.json("GET", "/v1/replays")
    assert [one["id"] for one in body["data"]] == [replay_id]
    status, _ = await dev.json("GET", "/v1/replays/none")
    assert status == 404


async def test_a_run_is_rerun_from_a_step_with_another_input(dev: Harness, serve_functions: ServeFunctions) -> None:
    await _serve_shop(dev, serve_functions)
    run = await dev.ended((await dev.run_of(await dev.send("order", {"total": 3}))).id)
    wanted = {"from_step": {"step_id": "charge", "input": [5]}}
    status, body = await dev.json("POST", f"/v1/runs/{run.id}/rerun", json=wanted)
    assert status == 200, body
    assert body["data"]["original_run_id"] == run.id
    again = await dev.ended(body["data"]["run_id"])
    assert again.output is not None
    assert bytes(again.output) == b"5"
    status, body = await dev.json("POST", f"/v1/runs/{run.id}/rerun", json={"from_step": {"step_id": "none"}})
    assert status == 400
    assert "'charge'" in body["error"]
