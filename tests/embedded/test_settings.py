"""Settings of an engine in the app's own processes. One given setting does not change other defaults."""

import datetime as dt
from pathlib import Path

import pytest

from durably import Client, ContextSync, Embedded, EngineSettings, Event, TriggerEvent
from durably.comm import CommHandler


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
    engine = Embedded(tmp_path / "durably.db", settings=settings)
    client = Client(app_id="shop", is_production=is_production, engine=engine)

    @client.create_function(fn_id="fail", trigger=TriggerEvent(event="fail"))
    def fail(ctx: ContextSync) -> None:
        raise ValueError

    CommHandler(client=client, framework="test", functions=[fail])
    async with engine.running():
        [event_id] = await client.send(Event(name="fail"))
        [run] = await engine.event_runs(event_id)
        while not (calls := [call for call in await engine.run_calls(run.id) if call.attempt]):
            pass  # Each poll is a request to the engine.
        [attempt] = await engine.run_attempts(run.id)
    assert at_least <= (calls[0].due_at - attempt.ended_at).total_seconds() <= at_most
