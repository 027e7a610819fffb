"""Access to the API, in either mode."""

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from durably.engine.api.http import application
from durably.engine.api.http.requests import ApiKeys
from durably.protocol.headers import ServerKind
from durably.protocol.signatures import bearer_token

from .conftest import EVENT_KEY, FALLBACK_KEY, SIGNING_KEY, Harness

GUARDED = [
    ("POST", "/fn/register"),
    ("POST", "/invoke/shop-place"),
    ("GET", "/v0/runs/r/batch"),
    ("GET", "/v0/runs/r/actions"),
    ("GET", "/v1/events"),
    ("GET", "/v1/events/e"),
    ("GET", "/v1/events/e/runs"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/r"),
    ("DELETE", "/v1/runs/r"),
    ("GET", "/v1/runs/r/jobs"),
    ("GET", "/v1/runs/r/steps"),
    ("POST", "/v1/runs/r/rerun"),
    ("POST", "/v1/signals"),
    ("GET", "/v1/apps/shop/functions"),
    ("POST", "/v1/apps/sync"),
    ("POST", "/v1/checkpoint/r/async"),
    ("GET", "/anything/else"),
    ("GET", "/anything%0Aelse"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_in_cloud_mode_the_api_needs_the_signing_key(cloud: Harness, method: str, path: str) -> None:
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {SIGNING_KEY}"},
        {"authorization": "Basic x"},
    ):
        status, answer = await cloud.json(method, path, headers=headers)
        assert (status, answer["status"]) == (401, 401)
        assert SIGNING_KEY not in answer["error"]


@pytest.mark.parametrize("key", [SIGNING_KEY, FALLBACK_KEY])
async def test_either_signing_key_is_accepted(cloud: Harness, key: str) -> None:
    status, answer = await cloud.json("GET", "/v1/runs", headers={"authorization": f"Bearer {bearer_token(key)}"})
    assert (status, answer["data"]) == (200, [])


async def test_in_cloud_mode_events_need_an_event_key(cloud: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (EVENT_KEY, "another-event-key"):
        status, _ = await cloud.json("POST", f"/e/{key}", json={"name": "a"})
        assert status == 200
    status, answer = await cloud.json("POST", "/e/wrong-key", json={"name": "a"})
    assert status == 401
    assert "wrong-key" not in answer["error"]
    for key in (EVENT_KEY, "another-event-key", "wrong-key"):
        assert key not in caplog.text


async def test_head_is_answered_where_get_is(cloud: Harness) -> None:
    for path, status in (("/health", 200), ("/ready", 200), ("/v1/runs", 401), ("/e/any", 401)):
        async with cloud.http.head(path) as response:
            assert (response.status, await response.read()) == (status, b"")


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_needs_no_key(cloud: Harness, path: str) -> None:
    status, answer = await cloud.json("GET", path)
    assert (status, answer["message"]) == (200, "OK")


async def test_an_engine_that_has_lost_its_database_is_alive_and_not_ready(cloud: Harness, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "engine.db")) as connection:
        connection.execute("UPDATE owner SET epoch = epoch + 1")  # as another engine does that takes it over
        connection.commit()
    stopped = (503, "the engine has stopped: another engine has taken over the database")
    status, answer = await cloud.json("GET", "/ready")
    assert (status, answer["error"]) == stopped
    await cloud.engine.wait_closed()
    status, answer = await cloud.json("GET", "/ready")
    assert (status, answer["error"]) == stopped
    status, _ = await cloud.json("GET", "/health")
    assert status == 200


async def test_an_engine_whose_database_does_not_answer_is_not_ready(
    cloud: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "READY_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "engine.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        status, answer = await cloud.json("GET", "/ready")
        connection.execute("ROLLBACK")
    assert (status, "has not answered" in answer["error"]) == (503, True)


async def test_dev_information_is_not_for_cloud_mode(cloud: Harness) -> None:
    status, _ = await cloud.json("GET", "/dev", headers={"authorization": f"Bearer {bearer_token(SIGNING_KEY)}"})
    assert status == 404


async def test_local_pages_may_send_events_in_dev_mode(dev: Harness) -> None:
    origin = {"origin": "http://localhost:3000"}
    preflight = origin | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    async with dev.http.options("/e/any", headers=preflight) as response:
        assert response.status == 204
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-allow-headers"] == "content-type"
    async with dev.http.post("/e/any", json={"name": "a"}, headers=origin) as response:
        assert (response.status, response.headers["access-control-allow-origin"]) == (200, "*")
    async with dev.http.post("/e/any", data=b"{", headers=origin) as response:
        assert (response.status, response.headers["access-control-allow-origin"]) == (400, "*")


async def test_pages_of_other_origins_are_refused_elsewhere_in_dev_mode(dev: Harness) -> None:
    for method, path in GUARDED[:-1]:
        status, answer = await dev.json(method, path, headers={"origin": "https://evil.example"})
        assert (status, "another origin" in answer["error"]) == (403, True)
    status, _ = await dev.json("GET", "/v1/runs", headers={"origin": "http://localhost:3000"})
    assert status == 200


def test_cloud_mode_needs_keys_and_does_not_show_them() -> None:
    with pytest.raises(ValueError, match="event key"):
        ApiKeys(server_kind=ServerKind.CLOUD, signing_keys=(SIGNING_KEY,))
    with pytest.raises(ValueError, match="signing key"):
        ApiKeys(server_kind=ServerKind.CLOUD, event_keys=(EVENT_KEY,))
    with pytest.raises(ValueError, match="event key"):
        ApiKeys(server_kind=ServerKind.CLOUD, event_keys=("",), signing_keys=(SIGNING_KEY,))
    keys = ApiKeys(server_kind=ServerKind.CLOUD, event_keys=(EVENT_KEY,), signing_keys=(SIGNING_KEY,))
    assert EVENT_KEY not in repr(keys)
    assert SIGNING_KEY not in repr(keys)
