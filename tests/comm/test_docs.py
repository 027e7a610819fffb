"""The adapter of how-to/write-an-adapter.md works as printed, and reference/wire.md matches the endpoint."""

import datetime as dt
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import durably
from durably.comm import requests
from durably.protocol.limits import MAX_REQUEST_BYTES

from ..fake_engine import FakeEngine
from ..frameworks import app_calls

DOCS = Path(__file__).parents[2] / "docs"
ADAPTER = (DOCS / "how-to" / "write-an-adapter.md").read_text()
WIRE = (DOCS / "reference" / "wire.md").read_text()


def load_adapter() -> Any:
    [source] = re.findall(r"```python\n# aiohttp_adapter\.py\n(.*?)```", ADAPTER, re.DOTALL)
    assert len(source.splitlines()) <= 32
    namespace: dict[str, Any] = {}
    exec(compile(source, "aiohttp_adapter.py", "exec"), namespace)
    return namespace["serve"]


async def test_the_engine_of_an_adapted_app_starts_with_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = ModuleType("aiohttp_adapter")
    vars(adapter)["serve"] = load_adapter()
    monkeypatch.setitem(sys.modules, "aiohttp_adapter", adapter)
    [source] = re.findall(r"```python\n# main\.py\n(.*?)```", ADAPTER, re.DOTALL)
    main: dict[str, Any] = {}
    exec(compile(source, "main.py", "exec"), main)
    runner = web.AppRunner(main["app"], access_log=None)
    await runner.setup()
    try:
        [event_id] = await main["client"].send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
        [run] = await main["engine"].event_runs(event_id)
        ended = await main["engine"].wait_for_run(run.id, timeout=dt.timedelta(seconds=30))
        assert ended.decode_output() == "Hello, Ada!"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(engine: FakeEngine, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    settings = {"is_production": False, "api_base_url": engine.origin, **options.pop("client", {})}
    client = durably.Client(app_id="shop", **settings)

    @client.create_function(fn_id="a", trigger=durably.TriggerEvent(event="a"))
    async def function(ctx: durably.Context) -> object:
        return {"ran": await ctx.step.run("step", lambda: 1)}

    @client.create_function(fn_id="b", trigger=durably.TriggerEvent(event="b"))
    def sync_function(ctx: durably.ContextSync) -> object:
        return "sync"

    app = web.Application()
    load_adapter()(app, client, [function, sync_function], **options)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


def call(session: aiohttp.ClientSession, function: str, **options: Any) -> Any:
    body = app_calls.canonical(app_calls.call_body(steps={"step": {"data": 1}}))
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    query = {"fnId": f"shop-{function}", "stepId": "step"}
    return session.post("/api/inngest", params=query, data=body, headers=headers)


async def test_documented_adapter_serves_an_app(engine: FakeEngine) -> None:
    async with serving(engine) as session:
        async with session.get("/api/inngest") as answer:
            assert (answer.status, (await answer.json())["function_count"]) == (200, 2)
        async with session.put("/api/inngest") as answer:
            assert answer.status == 200
        [sync] = engine.to("/fn/register")
        assert (sync.json["framework"], sync.json["url"]) == ("aiohttp", f"{session._base_url}/api/inngest")
        async with call(session, "a") as answer:
            assert (answer.status, await answer.json()) == (200, {"ran": 1})
        async with call(session, "b") as answer:
            assert (answer.status, await answer.json()) == (200, "sync")
        async with session.delete("/api/inngest") as answer:
            assert answer.status == 405


async def test_documented_adapter_streams(engine: FakeEngine) -> None:
    async with serving(engine, streaming=True) as session, call(session, "a") as answer:
        envelope = json.loads(await answer.read())
        assert (answer.status, envelope["status"], json.loads(envelope["body"])) == (201, 200, {"ran": 1})


async def test_documented_adapter_refuses_large_bodies(engine: FakeEngine) -> None:
    body = b"x" * (MAX_REQUEST_BYTES + 1)
    async with serving(engine) as session, session.post("/api/inngest", data=body) as answer:
        assert (answer.status, (await answer.json())["code"]) == (413, "body_too_large")


async def test_documented_adapter_verifies_signatures(engine: FakeEngine) -> None:
    production = {"is_production": True, "signing_key": app_calls.SIGNING_KEY, "event_key": "x"}
    async with serving(engine, client=production) as session:
        async with call(session, "b") as answer:
            assert answer.status == 401
        body = app_calls.canonical(app_calls.call_body(steps={"step": {"data": 1}}))
        async with call(session, "b", headers={"x-inngest-signature": app_calls.sign(body)}) as answer:
            assert answer.status == 200
            assert "x-durably-signature" in answer.headers


def test_the_page_has_every_status_of_a_refusal() -> None:
    table = WIRE.partition("Requests that are refused")[2].partition("\n\nEvery answer")[0]
    documented = {
        code: int(status)
        for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]*) \|", table, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
    }
    statuses = {code.value: int(status) for code, status in requests._STATUS_OF_CODE.items()}
    assert documented == statuses | {"function_not_found": 500}


async def test_the_page_has_every_field_of_an_inspection(engine: FakeEngine) -> None:
    section = WIRE.partition("### Inspection")[2].partition("\n## ")[0]
    production = {"is_production": True, "signing_key": app_calls.SIGNING_KEY, "event_key": "x"}
    async with serving(engine, client=production) as session:
        for headers in ({}, {"x-inngest-signature": app_calls.sign(b"")}):
            async with session.get("/api/inngest", headers=headers) as answer:
                shown = await answer.json()
            public, _, private = section.partition("A signed request also gets")
            assert set(shown) <= set(re.findall(r"`(\w+)`", public if not headers else section))
        assert set(re.findall(r"`(\w+)`", private.partition(".")[0])) <= set(shown)


@pytest.mark.parametrize("option", ["yes", "", 1, "FORCED"])
def test_streaming_that_means_nothing_is_refused(option: Any) -> None:
    client = durably.Client(app_id="app", is_production=False)
    with pytest.raises(durably.errors.FunctionConfigInvalidError, match="streaming"):
        durably.comm.CommHandler(client=client, framework="x", functions=[], streaming=option)
