"""Pages of an engine that lacks operations: they do not offer them."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

import durably
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.interface import Engine
from durably.engine.api.operations import Operation
from durably.engine.model.overview import EngineInfo
from durably.testing.engine import TestEngine

from .dashboard_client import get, header, page

UI = "http://localhost:8233/namespaces/default/workflows"


class SmallEngine(Engine):
    """The operations that an engine on another system has."""

    unsupported = frozenset(
        {"cancel_runs", "replay_runs", "list_cancellations", "list_replays", "delete_cancellation", "count_runs"}
        | {"count_matching_runs", "overview", "function_loads", "inspect_function", "search_runs.if_exp"}
        | {"search_runs.status.Scheduled", "search_events", "list_schedules", "list_apps", "wait_for_changes"}
    )
    alternative = f"its own UI ({UI})"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        if operation.name in self.unsupported:
            return await super().execute(operation, arguments)
        return await operation.execute(self._engine, arguments)

    async def describe_engine(self) -> EngineInfo:
        return EngineInfo(kind="Other", unsupported=self.unsupported, ui_url=UI)


async def ship(ctx: durably.Context) -> None: ...


@pytest.fixture
async def engine() -> AsyncIterator[TestEngine]:
    client = durably.Client(app_id="shop")
    triggers = [durably.TriggerEvent(event="order/placed"), durably.TriggerCron(cron="0 0 1 1 *")]
    async with TestEngine(client, [client.create_function(fn_id="ship", trigger=triggers)(ship)]) as engine:
        yield engine


async def test_pages_do_not_offer_what_the_engine_lacks(engine: TestEngine) -> None:
    dashboard = Dashboard(SmallEngine(engine._engine), allow_anonymous=True)
    run = await engine.send(durably.Event(name="order/placed"))
    start = await get(dashboard, "/")
    assert (start.status_code, header(start, "location")) == (303, "/runs")
    pages = ["/runs", f"/runs/{run.id}", "/functions", "/functions/shop-ship", "/events/send"]
    texts = {path: await page(dashboard, path) for path in pages}
    for path, text in texts.items():
        assert f'href="{UI}"' in text, path
        for link in ('"/"', '"/events"', '"/cron"', '"/apps"', '"/functions/shop-ship/cancel"'):
            assert f"<li><a href={link}" not in text, (path, link)
        for lacking in ("/replay", 'name="if"', "data-live-url", "Scheduled", "/apps?app="):
            assert lacking not in text, (path, lacking)
    assert "ship" in texts["/functions"]
    assert "order/placed" in texts["/functions/shop-ship"]


@pytest.mark.parametrize("path", ["/events", "/cron", "/apps", "/functions/shop-ship/cancel"])
async def test_a_page_that_the_engine_lacks_links_to_its_own_ui(engine: TestEngine, path: str) -> None:
    answer = await get(Dashboard(SmallEngine(engine._engine), allow_anonymous=True), path)
    assert (answer.status_code, f'href="{UI}"'.encode() in answer.body) == (501, True)


async def test_a_search_finds_runs_without_events(engine: TestEngine) -> None:
    dashboard = Dashboard(SmallEngine(engine._engine), allow_anonymous=True)
    run = await engine.send(durably.Event(name="order/placed"))
    assert header(await get(dashboard, "/search", f"q={run.id}"), "location") == f"/runs/{run.id}"
    assert header(await get(dashboard, "/search", "q=nothing"), "location") == "/runs?id=nothing"
