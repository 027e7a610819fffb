"""The list of runs, and the search by an id."""

import datetime as dt
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

import durably
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.messages import Action
from durably.engine.model.runs import RunPage, RunStatus
from durably.testing.engine import TestEngine

from .dashboard_client import get, header, page, post, token_of

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
STATUSES = [status.lower() for status in RunStatus]


@pytest.fixture
async def engine() -> AsyncIterator[TestEngine]:
    client = durably.Client(app_id="shop")

    @client.create_function(fn_id="ship", trigger=durably.TriggerEvent(event="order/placed"), retries=0)
    async def ship(ctx: durably.Context) -> dict[str, object]:
        if ctx.event.data["total"] > 100:
            raise ValueError("the parcel is <b>too heavy</b>\nfor the post")
        return {"weight": ctx.event.data["total"]}

    @client.create_function(fn_id="mail", trigger=durably.TriggerEvent(event="order/shipped"))
    async def mail(ctx: durably.Context) -> None:
        await ctx.step.sleep("a day", dt.timedelta(days=1))

    async with TestEngine(client, [ship, mail], now=NOON) as engine:
        yield engine


@pytest.fixture
def dashboard(engine: TestEngine) -> Dashboard:
    return Dashboard(engine._engine, allow_anonymous=True)


async def place(engine: TestEngine, *totals: int) -> list[str]:
    runs = [await engine.send(durably.Event(name="order/placed", data={"total": total})) for total in totals]
    for run in runs:
        await run.wait()
    return [run.id for run in runs]


def shown(text: str, *ids: str) -> list[bool]:
    return [f'id="run-{id}"' in text for id in ids]


async def test_runs_are_the_newest_first_with_their_errors(engine: TestEngine, dashboard: Dashboard) -> None:
    first, second = await place(engine, 5, 500)
    text = await page(dashboard, "/runs")
    assert text.index(second) < text.index(first)
    assert "ValueError: the parcel is &lt;b&gt;too heavy&lt;/b&gt;</div>" in text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=Failed", [False, True, False]),
        ("status=completed", [True, False, False]),
        ("function=shop-mail", [False, False, True]),
        ("app=shop", [True, True, True]),
        ("app=other", [False, False, False]),
        ("event=order/shipped", [False, False, True]),
        ("if=" + quote("event.data.total > 100"), [False, True, False]),
        ("if=" + quote("output.weight == 5"), [True, False, False]),
        ("from=2026-03-01T12:30", [False, False, True]),
        ("until=2026-03-01T12:30:00Z", [True, True, False]),
        ("status=Failed&function=shop-mail", [False, False, False]),
        ("status=&function=&if=", [True, True, True]),
        ("since=1h", [False, False, False]),  # The clock of the test is behind.
    ],
)
async def test_the_url_is_the_filter(
    engine: TestEngine, dashboard: Dashboard, query: str, expected: list[bool]
) -> None:
    ids = await place(engine, 5, 500)
    await engine.advance(dt.timedelta(hours=1))
    ids.append((await engine.send(durably.Event(name="order/shipped"))).id)
    text = await page(dashboard, "/runs", query)
    assert shown(text, *ids) == expected
    assert ("No run matches the filter" in text) is (not any(expected))


async def test_an_id_or_its_end_finds_the_run(engine: TestEngine, dashboard: Dashboard) -> None:
    [first, second] = await place(engine, 5, 6)
    for text in (first, first[-6:], first[-6:].lower()):
        found = await get(dashboard, "/search", f"q={text}")
        assert (found.status_code, header(found, "location")) == (303, f"/runs/{first}")
    assert shown(await page(dashboard, "/runs", f"id={second[-6:]}"), first, second) == [False, True]
    [event] = await engine._engine.list_events(limit=1)
    found = await get(dashboard, "/search", f"q={event.id}")
    assert header(found, "location") == f"/events/{event.id}"
    nothing = await get(dashboard, "/search", "q=%3Cnothing%3E")
    assert header(nothing, "location") == "/runs?id=%3Cnothing%3E"


async def test_a_function_or_the_name_of_an_event_is_found(engine: TestEngine, dashboard: Dashboard) -> None:
    await place(engine, 5)
    for text, location in (
        ("shop-ship", "/functions/shop-ship"),
        ("SHIP", "/functions/shop-ship"),
        ("op-mai", "/functions/shop-mail"),
        ("order/placed", f"/events?name={quote('order/placed', safe='')}"),
        ("shop", "/runs?id=shop"),  # both functions have it
        ("no/such", f"/runs?id={quote('no/such', safe='')}"),
    ):
        found = await get(dashboard, "/search", f"q={quote(text)}")
        assert header(found, "location") == location, text


async def test_an_expression_that_is_not_valid_is_explained(dashboard: Dashboard) -> None:
    text = await page(dashboard, "/runs", "if=" + quote("event.data.total >"))
    assert 'role="alert"' in text


@pytest.mark.parametrize("query", ["status=Nonsense", "from=yesterday", "since=a%20while", "since=999999999999w"])
async def test_a_filter_that_is_not_valid_is_a_page_with_400(dashboard: Dashboard, query: str) -> None:
    response = await get(dashboard, "/runs", query)
    assert response.status_code == 400
    assert b"not valid" in response.body


async def test_older_runs_are_on_further_pages(
    engine: TestEngine, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durably.engine.api.dashboard.runs.PAGE_SIZE", 2)
    ids = await place(engine, 1, 2, 3)
    text = await page(dashboard, "/runs", "function=shop-ship")
    assert shown(text, *ids) == [False, True, True]
    older = text.partition('rel="next" href="/runs?')[2].partition('"')[0].replace("&amp;", "&")
    assert "function=shop-ship" in older
    text = await page(dashboard, "/runs", older)
    assert shown(text, *ids) == [True, False, False]
    assert ">Newest</a>" in text
    assert "data-live-url" not in text


async def test_the_search_says_how_far_it_has_looked(
    engine: TestEngine, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def search_runs(**options: object) -> RunPage:
        return RunPage(runs=[], cursor="01ABC", searched_until=NOON)

    monkeypatch.setattr(engine._engine, "search_runs", search_runs)
    monkeypatch.setattr("durably.engine.api.dashboard.runs.SEARCH_SECONDS", 0)
    text = await page(dashboard, "/runs", "if=true")
    assert "No run matches so far" in text
    assert "2026-03-01 12:00:00 UTC" in text
    assert "Search older runs" in text


async def test_a_search_is_continued_until_a_run_is_found(
    engine: TestEngine, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run_id] = await place(engine, 5)
    search = engine._engine.search_runs
    cursors = list[object]()

    async def search_runs(*, cursor: str | None = None, **options: Any) -> RunPage:
        cursors.append(cursor)
        if len(cursors) < 3:
            return RunPage(runs=[], cursor=f"cursor {len(cursors)}", searched_until=NOON)
        return await search(**options)

    monkeypatch.setattr(engine._engine, "search_runs", search_runs)
    assert shown(await page(dashboard, "/runs", "if=true"), run_id) == [True]
    assert cursors == [None, "cursor 1", "cursor 2"]


async def test_statuses_have_links_with_the_number_of_their_runs(
    engine: TestEngine, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await counts_of(dashboard) == {"all": "0"} | dict.fromkeys(STATUSES, "0")
    await place(engine, 5, 6, 500)
    await engine.send(durably.Event(name="order/shipped"))
    everything = {"all": "4", "scheduled": "0", "running": "1", "completed": "2", "failed": "1"}
    assert await counts_of(dashboard) == {**everything, "cancelled": "0", "skipped": "0"}
    found = await counts_of(dashboard, "function=shop-ship&status=failed&cursor=1&did=rerun")
    assert found == {**dict.fromkeys(STATUSES, "0"), "all": "3", "completed": "2", "failed": "1"}
    text = await page(dashboard, "/runs", "function=shop-ship&status=failed&event=order/placed")
    assert re.findall(r'id="count-(\w+)" href="([^"]*)" aria-current', text) == [
        ("failed", "/runs?event=order%2Fplaced&amp;function=shop-ship&amp;status=Failed")
    ]
    assert 'id="count-all" href="/runs?event=order%2Fplaced&amp;function=shop-ship"' in text
    for query in ("if=true", "id=ABC"):
        assert await counts_of(dashboard, query) == {}, "they are not counted"
    monkeypatch.setattr("durably.engine.sqlite.queries.searches.MOST_COUNTED", 1)
    found = await counts_of(dashboard)
    assert (found["all"], found["completed"], found["failed"]) == ("3+", "1+", "1")


async def counts_of(dashboard: Dashboard, query: str = "") -> dict[str, str]:
    """The numbers of the links by status."""
    text = await page(dashboard, "/runs", query)
    links = re.findall(r'id="count-(\w+)".*?<span class="number">([^<]*)(?:<abbr[^>]*>(\+))?', text, re.DOTALL)
    return {status: number + plus for status, number, plus in links}


async def test_selected_runs_are_cancelled_and_started_again(engine: TestEngine, dashboard: Dashboard) -> None:
    failed, other = await place(engine, 200, 300)
    sleeping = await engine.send(durably.Event(name="order/shipped"))
    await engine.advance(dt.timedelta(seconds=1))
    token, cookie = await token_of(dashboard, "/runs")

    async def act(path: str, *ids: str, query: str = "") -> str:
        answer = await post(dashboard, path, token, cookie, query=query, **{f"run-{id}": "1" for id in ids})
        assert answer.status_code == 303, answer.body.decode()
        return (header(answer, "location") or "").partition("?")[2]

    query = await act("/runs/cancel-selected", sleeping.id, failed, "none", query="status=Failed")
    assert query == "status=Failed&notice=some-refused"
    assert "Some of the selected runs could not be changed" in await page(dashboard, "/runs", query)
    assert (await engine._engine.get_run(sleeping.id)).status == "Cancelled"  # type: ignore[union-attr]
    assert await act("/runs/rerun-selected", failed, other) == "notice=selected-rerun"
    await engine.advance(dt.timedelta(seconds=1))
    assert sorted(run.rerun_of or "" for run in await engine._engine.list_runs()) == ["", "", "", failed, other]
    nothing = await post(dashboard, "/runs/rerun-selected", token, cookie)
    assert (nothing.status_code, b"No run is selected" in nothing.body) == (400, True)


async def test_each_selected_run_needs_a_permission(engine: TestEngine) -> None:
    mine, other = await place(engine, 200, 300)

    def authorize(action: Action) -> bool:
        return action.subject in (None, mine)

    dashboard = Dashboard(engine._engine, authorize=authorize)
    token, cookie = await token_of(dashboard, "/runs")
    answer = await post(dashboard, "/runs/rerun-selected", token, cookie, **{f"run-{mine}": "1", f"run-{other}": "1"})
    assert header(answer, "location") == "/runs?notice=some-refused"
    viewers = Dashboard(engine._engine, authorize=lambda action: not action.is_change)
    assert 'form="selection"' not in await page(viewers, "/runs")
    refused = await post(viewers, "/runs/rerun-selected", token, cookie, **{f"run-{mine}": "1"})
    assert refused.status_code == 403
