"""``/v2``: runs, apps, functions, events and invocations in the form of the official platform."""

from typing import Any

import pytest

import durably

from .conftest import Harness, ServeFunctions, client_of


@pytest.fixture
async def shop(dev: Harness, serve_functions: ServeFunctions) -> Harness:
    client = client_of(dev)

    @client.create_function(fn_id="place", name="Place", trigger=durably.TriggerEvent(event="order/placed"), retries=0)
    async def place(ctx: durably.Context) -> object:
        if ctx.event.data.get("fail"):
            raise ValueError("out of stock")
        return {"total": await ctx.step.run("charge", lambda: ctx.event.data.get("total"))}

    @client.create_function(fn_id="wait", trigger=durably.TriggerCron(cron="0 0 1 1 *"))
    async def wait(ctx: durably.Context) -> None:
        await ctx.step.sleep("night", "8h")

    await dev.server.discovery.sync(await serve_functions(client, [place, wait]))
    return dev


async def data_of(shop: Harness, method: str, path: str, expected: int = 200, **options: Any) -> Any:
    status, answer = await shop.json(method, f"/v2{path}", **options)
    assert status == expected, answer
    assert answer["metadata"]["fetchedAt"].endswith("Z")
    return answer["data"]


async def invoke(shop: Harness, expected: int = 200, function: str = "place", **body: Any) -> Any:
    return await data_of(shop, "POST", f"/apps/shop/functions/{function}/invoke", expected, json=body)


async def test_a_sync_invocation_answers_with_the_end_of_the_run(shop: Harness) -> None:
    run = await invoke(shop, data={"total": 3}, mode="sync")
    assert (run["status"], run["output"], run["id"]) == ("COMPLETED", {"total": 3}, run["runId"])
    assert run["function"] == {"id": "place", "name": "Place"}
    assert int(run["durationMs"]) >= 0
    failed = await invoke(shop, data={"fail": True}, mode="sync")
    assert (failed["status"], failed["output"]["message"]) == ("FAILED", "out of stock")


async def test_an_async_invocation_answers_at_once_and_repeats_change_nothing(shop: Harness) -> None:
    started = [await invoke(shop, function="wait", data={}, idempotencyKey="new-year") for _ in range(2)]
    assert started[0] == started[1]
    run_id = started[0]["runId"]
    assert (await data_of(shop, "GET", f"/runs/{run_id}"))["status"] in ("QUEUED", "RUNNING")
    assert await data_of(shop, "POST", f"/runs/{run_id}/cancel") == {"runId": run_id}
    await shop.ended(run_id)
    status, answer = await shop.json("POST", f"/v2/runs/{run_id}/cancel")
    assert (status, answer["errors"][0]["code"]) == (409, "run_already_ended")


async def test_runs_are_listed_in_pages_and_run_again(shop: Harness) -> None:
    ids = [(await invoke(shop, data={"total": number}, mode="sync"))["id"] for number in range(3)]
    await invoke(shop, function="wait", data={})
    path = "/v2/apps/shop/functions/place/runs?limit=2&includeOutput=true"
    _, first = await shop.json("GET", path)
    _, second = await shop.json("GET", f"{path}&cursor={first['page']['cursor']}")
    assert [run["id"] for run in (*first["data"], *second["data"])] == ids[::-1]
    assert first["data"][0]["output"] == {"total": 2}
    assert (first["page"]["hasMore"], second["page"]["hasMore"]) == (True, False)
    found = await data_of(shop, "GET", "/runs?appId=shop&functionId=place&status=completed&query=output.total==1")
    assert [run["id"] for run in found] == [ids[1]]
    assert "output" not in found[0]
    again = await data_of(shop, "POST", f"/runs/{ids[1]}/rerun", json={"fromStep": {"stepId": "charge"}})
    assert (await shop.ended(again["runId"])).decode_output() == {"total": 1}


async def test_an_event_starts_runs_that_it_lists(shop: Harness) -> None:
    event = await data_of(shop, "POST", "/events", json={"name": "order/placed", "data": {"total": 4}})
    (run,) = await data_of(shop, "GET", f"/events/{event['eventId']}/runs")
    assert run["trigger"] == {"eventIds": [event["eventId"]], "isBatch": False}


async def test_apps_and_functions_are_shown(shop: Harness) -> None:
    (app,) = await data_of(shop, "GET", "/apps")
    assert (app["id"], app["functionCount"], app["latestSync"]["sdkLanguage"]) == ("shop", 2, "durably")
    assert app["method"] == "SERVE"
    assert await data_of(shop, "GET", "/apps/shop") == app
    functions = await data_of(shop, "GET", "/apps/shop/functions")
    assert {function["id"]: function["triggers"] for function in functions} == {
        "place": [{"type": "EVENT", "value": "order/placed"}],
        "wait": [{"type": "CRON", "value": "0 0 1 1 *"}],
    }
    _, answer = await shop.json("GET", "/api/v2/apps/shop/functions/place")
    assert answer["data"] in functions


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/runs/01J", None, 404, "01J"),
        ("GET", "/apps/bakery", None, 404, "bakery"),
        ("GET", "/apps/shop/functions/other", None, 404, "other"),
        ("GET", "/runs?limit=1000", None, 400, "limit"),
        ("GET", "/runs?status=sad", None, 400, "sad"),
        ("GET", "/runs?functionId=place", None, 400, "appId"),
        ("GET", "/runs?from=2026-01-02T03:04:05", None, 400, "from"),
        ("POST", "/apps/shop/functions/place/invoke", {}, 400, "data"),
        ("POST", "/apps/shop/functions/place/invoke", {"data": {}, "mode": "later"}, 400, "later"),
        ("POST", "/events", [], 400, "one event"),
    ],
)
async def test_a_refusal_has_a_code_and_a_message(
    shop: Harness, method: str, path: str, body: Any, status: int, message: str
) -> None:
    got, answer = await shop.json(method, f"/v2{path}", json=body)
    assert got == status
    (error,) = answer["errors"]
    assert error["code"]
    assert message in error["message"]


async def test_the_signing_key_is_needed_in_production(cloud: Harness) -> None:
    assert (await cloud.json("GET", "/v2/runs"))[0] == 401
