"""Routes of official SDKs: supported ones, and ones that this engine refuses."""

import base64
import logging
from typing import Any

import pytest
from aiohttp import web

from durably.engine.sqlite.transactions import operations

from ...small_app import serving
from .conftest import Harness

TARGET = {"kind": "step", "op": "merge", "values": {"model": "small", "tokens": 12}}


async def start(dev: Harness) -> str:
    """A run, of a function that is never called."""
    step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": "http://127.0.0.1:9/api/inngest"}}
    function = {"id": "app-f", "name": "f", "triggers": [{"event": "f"}], "steps": {"step": step}}
    body = {"url": "http://127.0.0.1:9/api/inngest", "appName": "app", "functions": [function]}
    status, answer = await dev.json("POST", "/fn/register", json=body)
    assert status == 200, answer
    return (await dev.run_of(await dev.send("f"))).id


async def test_metadata_is_accepted_and_shown(dev: Harness) -> None:
    run_id = await start(dev)
    body = {"target": {"run_id": run_id, "step_id": "a"}, "metadata": [TARGET]}
    status, answer = await dev.json("POST", f"/v1/runs/{run_id}/metadata", json=body)
    assert (status, answer["data"]) == (200, {"kept": True})
    status, answer = await dev.json("GET", f"/v1/runs/{run_id}/metadata")
    assert [one["body"] for one in answer["data"]] == [body]
    assert (await dev.json("POST", "/v1/runs/unknown/metadata", json=body))[0] == 404
    assert (await dev.json("GET", "/v1/runs/unknown/metadata"))[0] == 404
    assert (await dev.json("POST", f"/v1/runs/{run_id}/metadata", data=b"no JSON"))[0] == 400


async def test_metadata_of_a_run_is_bounded(
    dev: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operations, "MAX_METADATA_BYTES", 100)
    run_id = await start(dev)
    kept = [
        (await dev.json("POST", f"/v1/runs/{run_id}/metadata", json={"metadata": ["x" * 40]}))[1]["data"]["kept"]
        for _ in range(3)
    ]
    assert kept == [True, False, False]
    assert f"run {run_id}: metadata of 58 bytes is dropped" in caplog.text


@pytest.mark.parametrize("content_type", ["application/json", "application/x-protobuf"])
async def test_spans_are_accepted_and_shown_with_their_run(dev: Harness, content_type: str) -> None:
    run_id = await start(dev)
    body = b'{"resourceSpans":["' + run_id.encode() + b'"]}'
    async with dev.http.post("/v1/traces/userland", data=body, headers={"content-type": content_type}) as response:
        assert (response.status, response.content_type) == (200, content_type)
    answer = (await dev.json("GET", f"/v1/runs/{run_id}/traces"))[1]
    (found,) = answer["data"]
    is_json = content_type == "application/json"
    assert found["body"] == ({"resourceSpans": [run_id]} if is_json else base64.b64encode(body).decode())
    assert (await dev.json("GET", "/v1/runs/other/traces"))[1]["data"] == []


async def test_the_oldest_spans_are_deleted_first(dev: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_TRACES_BYTES", 100)
    for number in range(10):
        body = f'{{"run":"r","n":{number}}}'.ljust(20)
        async with dev.http.post("/v1/traces/userland", data=body, headers={"content-type": "application/json"}):
            pass
    answer = (await dev.json("GET", "/v1/runs/r/traces"))[1]
    assert [one["body"]["n"] for one in answer["data"]] == [5, 6, 7, 8, 9]
    assert not await dev.engine.add_traces(b"x" * 26, "application/json")


@pytest.mark.parametrize(
    ("method", "path", "feature"),
    [
        ("POST", "/v1/realtime/publish/tee?channel=c", "durable endpoints"),
        ("POST", "/v1/checkpoint", "durable endpoints"),
        ("POST", "/v1/checkpoint/01J/steps", "durable endpoints"),
        ("GET", "/v1/http/runs/01J/output", "durable endpoints"),
        ("POST", "/v2/sandboxes", "sandboxes"),
    ],
)
async def test_unsupported_features_are_refused_and_logged_once(
    dev: Harness, caplog: pytest.LogCaptureFixture, method: str, path: str, feature: str
) -> None:
    with caplog.at_level(logging.ERROR, "durably.engine.api"):
        for _ in range(3):
            status, answer = await dev.json(method, path, json={}, headers={"x-inngest-sdk": "js:v4\u202e"})
            assert (status, answer["code"]) == (501, "not_supported")
            assert answer["error"].startswith("this engine does not support ")
            assert feature in answer["error"]
    async with dev.http.request(method, path, json={}) as response:
        assert response.reason == answer["error"], "the JavaScript SDK shows this of a publish"
    assert len(caplog.messages) == 1
    assert answer["error"] in caplog.messages[0]


async def test_a_sync_over_http_has_urls_of_http(dev: Harness) -> None:
    runtime = {"type": "ws", "url": "ws://127.0.0.1/connect"}
    function: Any = {
        "id": "app-f",
        "triggers": [],
        "steps": {"step": {"id": "step", "name": "step", "runtime": runtime}},
    }
    status, answer = await dev.json(
        "POST", "/fn/register", json={"url": "ws://x", "appName": "app", "functions": [function]}
    )
    assert status == 400
    assert "must be an http or https URL" in answer["error"]


async def test_a_run_whose_app_asks_for_an_unknown_op_fails_for_good(dev: Harness) -> None:
    async def answer(request: web.Request) -> web.Response:
        calls.append(request)
        ops = [{"id": "a", "op": "SyncRunComplete", "displayName": "the step"}]
        return web.json_response(ops, status=206, headers={"x-inngest-sdk": "js:v9"})

    calls: list[object] = []
    async with serving(answer) as url:
        step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": url}}
        function = {"id": "new-f", "triggers": [{"event": "new"}], "steps": {"step": step}}
        await dev.json("POST", "/fn/register", json={"url": url, "appName": "new", "functions": [function]})
        run = await dev.ended((await dev.run_of(await dev.send("new"))).id)
    assert run.status == "Failed"
    message = run.decode_output()["message"]
    assert message.startswith(
        "step 'the step' asks for 'SyncRunComplete', which this engine does not know: the app's SDK"
    )
    assert len(calls) == 1
