"""Syncs of apps: pushed by the app, and requested by the engine."""

import gzip
from typing import Any

import pytest
from aiohttp import web

import durably
from durably.engine.api.http.application import create_api
from durably.engine.api.http.requests import ApiKeys
from durably.engine.api.http.syncs import MAX_ANSWER_BYTES, NoAppError, SyncFailedError
from durably.protocol.headers import ServerKind
from durably.protocol.signatures import bearer_token

from ....fake_engine import serving_fake_engine
from ...small_app import serving
from .conftest import FALLBACK_KEY, SIGNING_KEY, Harness, ServeFunctions, client_of


def _sync_body(**changes: Any) -> dict[str, Any]:
    url = "http://127.0.0.1:9/api/inngest"
    function = {
        "id": "shop-place",
        "name": "place",
        "triggers": [{"event": "order/placed"}],
        "steps": {
            "step": {
                "id": "step",
                "name": "step",
                "runtime": {"type": "http", "url": f"{url}?fnId=shop-place&stepId=step"},
            }
        },
    }
    return {"url": url, "appName": "shop", "sdk": "js:v4.0.0", "v": "0.1", "functions": [function]} | changes


def _hello(client: durably.Client) -> Any:
    @client.create_function(fn_id="hello", trigger=durably.TriggerEvent(event="hello"))
    async def hello(ctx: durably.Context) -> str:
        return "hello"

    return hello


async def test_a_sync_is_stored_once(dev: Harness) -> None:
    status, answer = await dev.json("POST", "/fn/register", json=_sync_body())
    assert (status, answer["ok"], answer["modified"], answer["app_id"]) == (200, True, True, "shop")
    status, answer = await dev.json("POST", "/fn/register?deployId=d1", json=_sync_body())
    assert (status, answer["modified"]) == (200, False)
    assert [(sync.result.modified, sync.deploy_id) for sync in dev.syncs] == [(True, None), (False, "d1")]

    moved = _sync_body(url="http://127.0.0.1:10/api/inngest")
    await dev.json("POST", "/fn/register", json=moved)
    assert [sync.result.previous_url for sync in dev.syncs] == [None, None, "http://127.0.0.1:9/api/inngest"]

    _, functions = await dev.json("GET", "/v1/apps/shop/functions")
    assert [(fn["id"], fn["config"]["triggers"]) for fn in functions["data"]] == [
        ("shop-place", [{"event": "order/placed"}])
    ]
    status, info = await dev.json("GET", "/dev")
    assert (status, [fn["id"] for fn in info["functions"]]) == (200, ["shop-place"])


@pytest.mark.parametrize(
    ("changes", "headers", "reason"),
    [
        ({"functions": "none"}, {}, "$.functions"),
        ({"functions": [_sync_body()["functions"][0] | {"throttle": {"limit": "5"}}]}, {}, "'shop-place': throttle"),
        ({"functions": [_sync_body()["functions"][0] | {"id": None}]}, {}, "$.functions[0].id"),
        ({"appName": ""}, {}, "app"),
        ({"functions": [_sync_body()["functions"][0] | {"triggers": [{}]}]}, {}, "shop-place"),
        ({}, {"x-inngest-expected-server-kind": "cloud"}, "dev mode"),
    ],
)
async def test_a_bad_sync_is_refused(
    dev: Harness, changes: dict[str, Any], headers: dict[str, str], reason: str
) -> None:
    status, answer = await dev.json("POST", "/fn/register", json=_sync_body(**changes), headers=headers)
    assert status == 400
    assert reason in answer["error"]
    assert dev.syncs == []


async def test_functions_of_an_unknown_app_are_not_found(dev: Harness) -> None:
    status, answer = await dev.json("GET", "/v1/apps/unknown/functions")
    assert (status, "unknown" in answer["error"]) == (404, True)


async def test_an_app_is_asked_to_sync(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev)
    await dev.server.discovery.sync(await serve_functions(client, [_hello(client)]))
    [sync] = dev.syncs
    assert (sync.request.app_id, sync.result.modified) == ("shop", True)
    assert sync.deploy_id
    assert "deployId" not in sync.request.url


async def test_app_in_the_wrong_mode_gets_the_remedy(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev, is_production=True, signing_key=SIGNING_KEY, event_key="x")
    url = await serve_functions(client, [_hello(client)])
    with pytest.raises(SyncFailedError, match=f"DURABLY_DEV={dev.server.origin}"):
        await dev.server.discovery.sync(url)


async def test_a_refused_sync_is_reported_with_its_reason(dev: Harness, serve_functions: ServeFunctions) -> None:
    client = client_of(dev)

    @client.create_function(fn_id="bad", trigger=durably.TriggerEvent(event="x" * 600))
    async def bad(ctx: durably.Context) -> None: ...

    with pytest.raises(SyncFailedError, match="shop-bad"):
        await dev.server.discovery.sync(await serve_functions(client, [bad]))


async def test_no_app_at_the_url(dev: Harness) -> None:
    with pytest.raises(NoAppError, match=r"status 40[34].*/api/inngest"):
        await dev.server.discovery.sync(f"{dev.server.origin}/api/inngest")


@pytest.mark.parametrize("app_key", [SIGNING_KEY, FALLBACK_KEY])
async def test_in_cloud_mode_functions_come_in_the_signed_answer(
    cloud: Harness, serve_functions: ServeFunctions, app_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLY_SIGNING_KEY_FALLBACK", SIGNING_KEY)
    client = client_of(cloud, is_production=True, signing_key=app_key, event_key="x")
    await cloud.server.discovery.sync(await serve_functions(client, [_hello(client)]))
    [sync] = cloud.syncs
    assert (sync.request.app_id, [fn.id for fn in sync.request.functions]) == ("shop", ["shop-hello"])


BEARER = {"authorization": f"Bearer {bearer_token(SIGNING_KEY)}"}


def _functions(client: durably.Client, **events: str) -> list[Any]:
    """Functions by their ids, each triggered by an event."""

    async def handler(ctx: durably.Context) -> None: ...

    return [
        client.create_function(fn_id=fn_id, trigger=durably.TriggerEvent(event=event))(handler)
        for fn_id, event in events.items()
    ]


@pytest.mark.parametrize("in_band", ["1", "0"])
async def test_sync_by_the_api_returns_its_changes(
    cloud: Harness, serve_functions: ServeFunctions, monkeypatch: pytest.MonkeyPatch, in_band: str
) -> None:
    monkeypatch.setenv("DURABLY_ALLOW_IN_BAND_SYNC", in_band)
    monkeypatch.setenv("DURABLY_SERVE_ORIGIN", "http://shop.example.com")
    options = {"is_production": True, "signing_key": SIGNING_KEY, "event_key": "x"}
    first = client_of(cloud, app_version="1", **options)
    url = await serve_functions(first, _functions(first, kept="a", altered="a", gone="a"))
    status, answer = await cloud.json("POST", "/v1/apps/sync", json={"url": url}, headers=BEARER)
    assert status == 200, answer
    assert answer["data"] == {
        "app_id": "shop",
        "url": "http://shop.example.com/api/inngest",
        "modified": True,
        "functions": ["shop-kept", "shop-altered", "shop-gone"],
        "added": ["shop-kept", "shop-altered", "shop-gone"],
        "changed": [],
        "removed": [],
        "version": "1",
        "previous_version": None,
        "previous_url": None,
    }
    status, answer = await cloud.json("POST", "/v1/apps/sync", json={"url": url}, headers=BEARER)
    assert (answer["data"]["modified"], answer["data"]["added"]) == (False, [])
    second = client_of(cloud, app_version="2", **options)
    url = await serve_functions(second, _functions(second, kept="a", altered="b", new="a"))
    status, answer = await cloud.json("POST", "/v1/apps/sync", json={"url": url}, headers=BEARER)
    changes = {name: answer["data"][name] for name in ("added", "changed", "removed", "version", "previous_version")}
    assert changes == {
        "added": ["shop-new"],
        "changed": ["shop-altered"],
        "removed": ["shop-gone"],
        "version": "2",
        "previous_version": "1",
    }


@pytest.mark.parametrize(
    ("body", "expected", "reason"),
    [
        ({"url": "http://127.0.0.1:9/api/inngest"}, 502, "no app answers at http://127.0.0.1:9/api/inngest"),
        ({"url": "ftp://127.0.0.1/"}, 400, "must be a URL like"),
        ({"url": "http://["}, 400, "must be a URL like"),
        ({"url": 5}, 400, "$.url"),
        ({}, 400, "url"),
    ],
)
async def test_invalid_sync_is_explained(cloud: Harness, body: dict[str, Any], expected: int, reason: str) -> None:
    status, answer = await cloud.json("POST", "/v1/apps/sync", json=body, headers=BEARER)
    assert status == expected
    assert reason in answer["error"]


async def test_engine_in_its_apps_processes_requests_no_sync(dev: Harness) -> None:
    async with (
        serving(create_api(dev.engine, ApiKeys(server_kind=ServerKind.DEV))) as origin,
        dev.http.post(f"{origin}/v1/apps/sync", json={"url": "http://127.0.0.1:9/api"}) as response,
    ):
        answer = await response.json()
    assert (response.status, "in its app's own processes" in answer["error"]) == (400, True)


async def test_in_cloud_mode_an_app_of_another_key_is_refused(cloud: Harness, serve_functions: ServeFunctions) -> None:
    other = "signkey-test-" + "9" * 32
    client = client_of(cloud, is_production=True, signing_key=other, event_key="x")
    url = await serve_functions(client, [_hello(client)])
    with pytest.raises(SyncFailedError) as caught:
        await cloud.server.discovery.sync(url)
    assert SIGNING_KEY.removeprefix("signkey-test-") not in str(caught.value)
    assert cloud.syncs == []


async def test_in_cloud_mode_an_unsigned_answer_is_not_trusted(cloud: Harness) -> None:
    """The request says that its body is JSON: parsers such as Express's need that."""
    content_types: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        content_types.append(request.content_type if request.method == "PUT" else "")
        headers = {"x-inngest-sdk": "by-hand:v1", "x-inngest-sync-kind": "in_band", "x-inngest-signature": "t=1&s=00"}
        return web.json_response({"app_id": "shop", "url": str(request.url), "functions": []}, headers=headers)

    async with serving(answer) as url:
        with pytest.raises(SyncFailedError, match="cannot be trusted"):
            await cloud.server.discovery.sync(url)
    assert cloud.syncs == []
    assert content_types == ["", "application/json"]


@pytest.mark.parametrize("knows_engine", [True, False])
async def test_in_cloud_mode_an_app_that_syncs_out_of_band_must_sync_here(
    cloud: Harness, serve_functions: ServeFunctions, monkeypatch: pytest.MonkeyPatch, knows_engine: bool
) -> None:
    monkeypatch.setenv("DURABLY_ALLOW_IN_BAND_SYNC", "0")
    monkeypatch.setenv("DURABLY_SERVE_ORIGIN", "http://127.0.0.1:1")
    with serving_fake_engine() as other:
        origin = cloud.server.origin if knows_engine else other.origin
        client = client_of(cloud, is_production=True, signing_key=SIGNING_KEY, event_key="x", api_base_url=origin)
        url = await serve_functions(client, [_hello(client)])
        if knows_engine:
            await cloud.server.discovery.sync(url)
            assert len(cloud.syncs) == 1
        else:
            status, answer = await cloud.json("POST", "/v1/apps/sync", json={"url": url}, headers=BEARER)
            assert (status, "synced with another engine" in answer["error"]) == (422, True)
            assert cloud.server.origin in answer["error"]


_APP = {"x-inngest-sdk": "by-hand:v1"}
_ZEROS = b"\0" * (64 * 1024)


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_an_endless_answer_is_read_up_to_a_limit(cloud: Harness, method: str) -> None:
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if request.method != method:
            return web.json_response({}, headers=_APP)
        response = web.StreamResponse(headers=_APP)
        await response.prepare(request)
        while True:
            await response.write(_ZEROS)
            sent += len(_ZEROS)

    async with serving(answer) as url:
        with pytest.raises(SyncFailedError, match=f"answered with more than {MAX_ANSWER_BYTES} bytes"):
            await cloud.server.discovery.sync(url)
    assert sent < 10 * MAX_ANSWER_BYTES


async def test_a_compressed_answer_is_refused_unread(cloud: Harness) -> None:
    accepted = []

    async def answer(request: web.Request) -> web.StreamResponse:
        accepted.append(request.headers["accept-encoding"])
        return web.Response(body=gzip.compress(b"{}"), headers=_APP | {"content-encoding": "gzip"})

    async with serving(answer) as url:
        with pytest.raises(SyncFailedError, match="content-encoding gzip, although the request does not accept it"):
            await cloud.server.discovery.sync(url)
    assert accepted == ["identity"]
