"""What the pages say of a run that is retried, sleeps or waits."""

import re

import pytest

from durably.engine.dashboard.dashboard import Dashboard
from durably.engine.sqlite_engine import SqliteEngine

from ..conftest import only_run, send, step_is
from ..small_app import SmallApp, Steps
from .pages import page


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
    assert "1 attempt failed" in text


async def test_a_step_began_with_its_first_attempt(app: SmallApp, engine: SqliteEngine) -> None:
    report = await engine.inspect_run(await retrying_run(app, engine))
    assert report is not None
    [step] = report.steps
    assert step.created_at <= step.failed_attempts[0].ended_at < step.due_at
