"""Requests that no handler takes, and handlers that break."""

import pytest

from .conftest import EVENT_KEY, Harness


async def test_unknown_paths_and_methods_answer_in_json(dev: Harness) -> None:
    status, answer = await dev.json("GET", "/nothing/here")
    assert (status, answer["error"]) == (404, "there is nothing at /nothing/here")
    status, answer = await dev.json("PUT", "/health")
    assert (status, "GET" in answer["error"]) == (405, True)


async def test_a_failure_of_the_engine_is_logged_without_the_event_key(
    cloud: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*args: object, **options: object) -> list[str]:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(cloud.engine, "send_events", break_down)
    status, answer = await cloud.json("POST", f"/e/{EVENT_KEY}", json={"name": "a"})
    assert status == 500
    assert "disk" not in answer["error"]
    assert "POST /e/{key} failed" in caplog.text
    assert "the disk is gone" in caplog.text
    assert EVENT_KEY not in caplog.text


async def test_bodies_have_a_limit(dev: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> object:
        for _ in range(40):
            yield b" " * 1024 * 1024

    status, answer = await dev.json("POST", "/e/any", data=endless())
    assert status == 413
    assert "larger than" in answer["error"]


async def test_a_closed_engine_says_that_it_is(dev: Harness) -> None:
    await dev.engine.close()
    status, answer = await dev.json("POST", "/e/any", json={"name": "a"})
    assert (status, answer["status"]) == (503, 503)
