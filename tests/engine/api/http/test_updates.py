"""The stream of updates: ``GET /v1/updates``."""

import asyncio
import logging

import msgspec
import pytest

from .conftest import Harness


async def test_a_client_that_stops_following_leaves_no_error_in_the_log(
    dev: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"url": "http://127.0.0.1:9/api/inngest", "appName": "shop", "functions": [_config()]}
    assert (await dev.json("POST", "/fn/register", json=body))[0] == 200
    watchers = dev.engine._runtime.subscriptions._subscribers
    with caplog.at_level(logging.ERROR):
        async with dev.http.get("/v1/updates") as response:
            assert await response.content.readline() == b"\n"
            await dev.send("order")
            assert msgspec.json.decode(await response.content.readline())["function_id"] == "shop-f"
            response.close()
        async with asyncio.timeout(30):
            while watchers:  # The engine notices when it writes.
                await dev.send("order")
    assert not [record for record in caplog.records if record.name == "durably.engine.api"]


def _config() -> dict[str, object]:
    runtime = {"type": "http", "url": "http://127.0.0.1:9/api/inngest?fnId=shop-f&stepId=step"}
    return {
        "id": "shop-f",
        "triggers": [{"event": "order"}],
        "steps": {"step": {"id": "step", "name": "step", "runtime": runtime, "retries": {"attempts": 0}}},
    }
