"""Requests of SDKs besides events: signals, invocations, checkpoints."""

import asyncio
import hashlib
from typing import Any

from aiohttp import web

import durably
from durably.engine.model.runs import StepStatus

from ...small_app import serving
from .conftest import Harness, ServeFunctions, client_of


async def test_a_signal_wakes_the_run_that_waits_for_it(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev)

    @client.create_function(fn_id="approve", trigger=durably.TriggerEvent(event="ask"))
    async def approve(ctx: durably.Context) -> object:
        signal = await ctx.step.wait_for_signal("approval", signal="approval/1", timeout=60_000)
        return signal.data if signal else None

    await dev.server.discovery.sync(await serve_functions(client, [approve]))
    run = await dev.run_of(await dev.send("ask"))
    with dev.engine.watch() as updates:
        while not any(step.status is StepStatus.WAITING for step in await dev.engine.run_steps(run.id)):
            await anext(updates)
    status, answer = await dev.json("POST", "/v1/signals", json={"signal": "approval/1", "data": {"by": "me"}})
    assert (status, answer["data"]["run_id"]) == (200, run.id)
    _, shown = await dev.json("GET", f"/v1/runs/{(await dev.ended(run.id)).id}")
    assert shown["data"]["output"] == {"by": "me"}


async def test_a_signal_without_a_waiting_run_is_not_found(dev: Harness) -> None:
    status, answer = await dev.json("POST", "/v1/signals", json={"signal": "unknown", "data": 1})
    assert (status, "unknown" in answer["error"]) == (404, True)
    status, answer = await dev.json("POST", "/v1/signals", json={"data": 1})
    assert (status, "signal" in answer["error"]) == (400, True)
    status, _ = await dev.json("POST", "/v1/signals", json={"signal": ""})
    assert status == 400


async def test_a_function_is_invoked_with_data(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev)

    @client.create_function(fn_id="double", trigger=durably.TriggerEvent(event="never"))
    async def double(ctx: durably.Context) -> object:
        return int(ctx.event.data["n"]) * 2  # type: ignore[call-overload]

    await dev.server.discovery.sync(await serve_functions(client, [double]))
    status, answer = await dev.json("POST", "/invoke/shop-double", json={"data": {"n": 21}})
    assert (status, answer["status"]) == (200, 200)
    run = await dev.ended(answer["run_id"])
    assert run.output is not None
    assert bytes(run.output) == b"42"
    assert run.event_ids == [answer["id"]]


async def test_invoke_of_an_unknown_function_is_404(dev: Harness) -> None:
    status, answer = await dev.json("POST", "/invoke/shop-unknown", json={"data": {}})
    assert (status, "shop-unknown" in answer["error"]) == (404, True)


class RawApp:
    """An app that speaks the protocol by hand: it records each call and answers with what the test puts."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[web.Response] = asyncio.Queue()

    async def call(self, request: web.Request) -> web.Response:
        await self.calls.put(await request.json())
        return await self.answers.get()


async def test_checkpoints_are_stored_until_the_call_is_stale(dev: Harness) -> None:
    app = RawApp()
    async with serving(app.call) as url:
        await _checkpoint_by_hand(dev, app, url)


async def _checkpoint_by_hand(dev: Harness, app: RawApp, url: str) -> None:
    step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": url}, "retries": {"attempts": 0}}
    function = {"id": "raw-fn", "name": "fn", "triggers": [{"event": "go"}], "steps": {"step": step}}
    body = {"url": url, "appName": "raw", "sdk": "by-hand:v1", "v": "0.1", "functions": [function]}
    await dev.json("POST", "/fn/register", json=body)
    run = await dev.run_of(await dev.send("go"))
    context = (await app.calls.get())["ctx"]
    hashed = hashlib.sha1(b"one").hexdigest()
    op = {"id": hashed, "op": "StepRun", "name": "one", "displayName": "one", "data": 1}
    checkpoint = {
        "run_id": run.id,
        "fn_id": context["fn_id"],
        "qi_id": context["qi_id"],
        "request_id": context["request_id"],
        "generation_id": context["generation_id"],
        "steps": [op],
    }
    path = f"/v1/checkpoint/{run.id}/async"
    status, answer = await dev.json("POST", path, json=checkpoint)
    assert status == 200, answer
    _, actions = await dev.json("GET", f"/v0/runs/{run.id}/actions")
    assert actions == {hashed: {"data": 1}}

    status, answer = await dev.json("POST", path, json=checkpoint | {"generation_id": 999, "request_id": "other"})
    assert (status, answer["data"]) == (409, {"run_id": run.id})
    too_large = op | {"id": "f" * 40, "data": "x" * (4 * 1024 * 1024 + 1)}
    status, answer = await dev.json("POST", path, json=checkpoint | {"steps": [too_large]})
    assert (status, answer["data"]) == (413, {"run_id": run.id})
    status, _ = await dev.json("POST", path, json=checkpoint | {"steps": [op | {"id": "a" * 40, "op": "Sleep"}]})
    assert status == 400
    status, _ = await dev.json("POST", path, data=b"{")
    assert status == 400

    await app.answers.put(web.json_response("done", headers={"x-inngest-sdk": "by-hand:v1"}))
    await dev.ended(run.id)
    status, _ = await dev.json("POST", path, json=checkpoint)
    assert status == 409
