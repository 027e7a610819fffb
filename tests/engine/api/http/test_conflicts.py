"""Two apps with one id get a warning; a deployment, a move and a reload do not."""

import logging
from typing import Any

import pytest

import durably

from .conftest import Harness, ServeFunctions, client_of


class Apps:
    """Apps with one id, by their names; ``said`` is the warning of each sync."""

    def __init__(self, dev: Harness, serve: ServeFunctions) -> None:
        self.dev, self.serve = dev, serve
        self.said: list[str | None] = []
        self.urls: dict[str, str] = {}

    async def start(self, name: str, *function_ids: str) -> None:
        client = client_of(self.dev, logger=logging.getLogger(f"app.{name}"))
        self.urls[name] = await self.serve(client, [_function(client, function_id) for function_id in function_ids])
        await self.sync(name)

    async def sync(self, name: str) -> None:
        async with self.dev.http.put(self.urls[name]) as response:
            assert response.status == 200
            self.said.append((await response.json()).get("warning"))

    async def register(self, url: str, *function_ids: str) -> None:
        """A sync of an app that does not answer."""
        functions = [_config(url, function_id) for function_id in function_ids]
        status, answer = await self.dev.json(
            "POST", "/fn/register", json={"url": url, "appName": "shop", "functions": functions}
        )
        assert status == 200
        self.said.append(answer.get("warning"))


def _function(client: durably.Client, function_id: str) -> Any:
    @client.create_function(fn_id=function_id, trigger=durably.TriggerEvent(event=function_id))
    async def function(ctx: durably.Context) -> None: ...

    return function


def _config(url: str, function_id: str) -> dict[str, Any]:
    step = {
        "id": "step",
        "name": "step",
        "runtime": {"type": "http", "url": f"{url}?fnId=shop-{function_id}&stepId=step"},
    }
    return {"id": f"shop-{function_id}", "triggers": [{"event": function_id}], "steps": {"step": step}}


@pytest.fixture
def apps(dev: Harness, serve_functions: ServeFunctions) -> Apps:
    return Apps(dev, serve_functions)


async def test_two_apps_with_different_functions_are_reported_at_once(
    apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    await apps.start("one", "a", "b")
    with caplog.at_level(logging.WARNING):
        await apps.start("two", "c")
        await apps.sync("one")
    assert apps.said[0] is None
    assert apps.said[1] is not None
    assert apps.said[1].startswith("two apps have the id 'shop' and remove each other's functions: the one at ")
    assert f"{apps.urls['two']} has just removed shop-a, shop-b of the one at {apps.urls['one']}" in apps.said[1]
    assert apps.said[2] is not None
    warnings = {record.name: record.getMessage() for record in caplog.records if record.name.startswith("app.")}
    assert {name: message.partition(": ")[2] for name, message in warnings.items()} == {
        "app.two": apps.said[1],
        "app.one": apps.said[2],
    }
    assert [sync.conflict for sync in apps.dev.syncs] == apps.said
    assert [sync.is_news for sync in apps.dev.syncs] == [False, True, False]  # Reported once in ten minutes.


async def test_a_sync_that_a_command_asks_for_warns_each_time(apps: Apps) -> None:
    await apps.start("one", "a", "b")
    await apps.start("two", "c")
    for name in ("one", "two"):
        status, answer = await apps.dev.json("POST", "/v1/apps/sync", json={"url": apps.urls[name]})
        assert status == 200
        assert answer["data"]["warning"].startswith("two apps have the id 'shop'")


async def test_two_apps_with_common_functions_are_reported_when_one_returns(apps: Apps) -> None:
    await apps.start("one", "a", "b")
    await apps.start("two", "b", "c")
    assert apps.said == [None, None]  # It may be a deployment.
    await apps.sync("one")
    await apps.sync("two")
    assert [bool(said) for said in apps.said] == [False, False, True, True]


async def test_moved_app_is_not_a_conflict(apps: Apps) -> None:
    await apps.register("http://127.0.0.1:9/api/inngest", "a")
    await apps.start("new", "c")
    await apps.register("http://127.0.0.1:9/api/inngest", "a")
    assert apps.said[:2] == [None, None]


async def test_copies_and_reloads_of_an_app_are_not_a_conflict(apps: Apps) -> None:
    await apps.start("one", "a", "b")
    await apps.start("copy", "a", "b")
    await apps.sync("one")
    await apps.start("more", "a", "b", "c")
    assert apps.said == [None] * 4
    for functions in (["a"], ["b"], ["a"]):
        await apps.register(apps.urls["more"].replace("127.0.0.1", "localhost"), *functions)
    assert apps.said == [None] * 7
