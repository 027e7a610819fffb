"""Pages of a run that is retried, sleeps or waits."""

import datetime as dt
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import QUICK, only_run, opened, run_to_end, send, step_is
from ...small_app import SmallApp, Steps
from .dashboard_client import page


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[SqliteEngine]:
    """Retries are a minute later: the pages show them before."""
    settings = msgspec.structs.replace(QUICK, backoff=lambda attempt, jitter: dt.timedelta(minutes=1))
    async with opened(path, settings) as engine:
        yield engine


@pytest.fixture
def dashboard(engine: SqliteEngine) -> Dashboard:
    return Dashboard(engine, allow_anonymous=True)


async def retrying_run(app: SmallApp, engine: SqliteEngine) -> str:
    """A run whose step has failed once and is tried again later."""

    @app.function("order")
    def order(step: Steps) -> None:
        step.run("price", lambda: {}["<b>"])

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "order"))
    await step_is(engine, run_id, "price", "retrying")
    return run_id


async def test_a_run_shows_the_error_of_a_step_that_is_retried(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    run_id = await retrying_run(app, engine)
    text = await page(dashboard, f"/runs/{run_id}")
    panel = text[text.index('id="retrying-') :]
    assert re.search(r"Attempt 1 of \d+ failed, again <time ", " ".join(panel.split()))
    assert "<strong>KeyError</strong>" in panel
    assert "Attempts of the function" not in text
    assert "Failed attempts of steps</dt><dd>1<" in text


async def test_idle_runs_show_their_wait(app: SmallApp, engine: SqliteEngine, dashboard: Dashboard) -> None:
    @app.function("nap")
    def nap(step: Steps) -> None:
        step.sleep("long", "1h")

    @app.function("refund")
    def refund(step: Steps) -> None:
        step.parallel(step.asking("answer", "WaitForEvent", event="refund/answered", timeout="2h"))

    await engine.sync_app(app.sync_request())
    asleep = await only_run(engine, await send(engine, "nap"))
    waiting = await only_run(engine, await send(engine, "refund"))
    await step_is(engine, asleep, "long", "sleeping")
    await step_is(engine, waiting, "answer", "waiting")
    for text in (await page(dashboard, "/runs"), await page(dashboard, f"/runs/{asleep}")):
        assert "sleeps until <time" in " ".join(text.split())
    for text in (await page(dashboard, "/runs"), await page(dashboard, f"/runs/{waiting}")):
        assert "waits for refund/answered until <time" in " ".join(text.split())


async def test_the_overview_counts_runs_that_are_tried_again(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    assert 'id="retrying"' not in await page(dashboard, "/")
    await retrying_run(app, engine)
    assert "1 retries after an error" in await page(dashboard, "/")


async def test_the_only_failed_run_is_one_click_from_the_overview(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    @app.function("broken", retries=0)
    def broken(step: Steps) -> None:
        raise KeyError("CHF")

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "broken")
    attention = (await page(dashboard, "/")).partition('id="attention"')[2].partition("</section>")[0]
    assert f'href="/runs/{run.id}"' in attention
    assert "Since" not in attention, "counts have minutes, so that the time of a failure of now is not known"
    await run_to_end(engine, "broken")
    attention = (await page(dashboard, "/")).partition('id="attention"')[2].partition("</section>")[0]
    assert 'href="/runs?function=app-broken&amp;status=Failed"' in attention
