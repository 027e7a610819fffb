"""A chain of functions that invoke each other endlessly is logged once, and not for each of its runs."""

import logging
from pathlib import Path

import msgspec
import pytest

from durably import Client, Context, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.settings import EngineSettings


async def test_runaway_chain_is_logged_once_without_tracebacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = msgspec.structs.replace(EngineSettings(), max_depth=3)
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db", settings=settings))

    @client.create_function(fn_id="self", trigger=TriggerEvent(event="self"))
    async def invokes_itself(ctx: Context) -> None:
        await ctx.step.invoke("again", function=invokes_itself)

    CommHandler(client=client, framework="test", functions=[invokes_itself])
    with caplog.at_level(logging.WARNING):
        async with client.engine.running():
            [event_id] = await client.send(Event(name="self"))
            [run] = await client.engine.event_runs(event_id)
            await client.engine.wait_for_run(run.id)
            runs = await client.engine.list_runs()
    assert [run.status for run in runs] == ["Failed"] * 4
    [record] = caplog.records
    assert f"run {runs[0].id}," in record.getMessage()
    assert "shop-self → shop-self → shop-self → shop-self" in record.getMessage()
    assert "max_depth" in record.getMessage()
    assert record.exc_info is None
