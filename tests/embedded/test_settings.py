"""Settings of an engine in the app's own processes. One given setting does not change other defaults."""

import datetime as dt
from pathlib import Path

import pytest

from durably import ContextSync, EngineSettings, Event

from .app import App


@pytest.mark.parametrize(
    ("is_production", "settings", "at_least", "at_most"),
    [
        (True, None, 15, 46),
        (True, EngineSettings(retention=dt.timedelta(days=30)), 15, 46),
        (True, EngineSettings(backoff=lambda attempt, jitter: dt.timedelta(seconds=3)), 2, 4),
        (False, EngineSettings(retention=dt.timedelta(days=30)), 0, 2),
    ],
)
async def test_the_delay_before_a_retry(
    tmp_path: Path, is_production: bool, settings: EngineSettings | None, at_least: float, at_most: float
) -> None:
    app = App(tmp_path / "durably.db", is_production=is_production, settings=settings)
    engine = app.engine

    @app.function("fail")
    def fail(ctx: ContextSync) -> None:
        raise ValueError

    async with app.running():
        [event_id] = await app.client.send(Event(name="fail"))
        [run] = await engine.event_runs(event_id)
        while not (calls := [call for call in await engine.run_calls(run.id) if call.attempt]):
            pass  # Each poll is a request to the engine.
        [attempt] = await engine.run_attempts(run.id)
    assert at_least <= (calls[0].due_at - attempt.ended_at).total_seconds() <= at_most
