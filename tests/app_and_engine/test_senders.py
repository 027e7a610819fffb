"""The engine knows which run sends an event, so it can stop functions that trigger each other."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.testing import TestEngine

from .conftest import App, durable


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_events_of_a_run_have_its_id_as_sender(app: App, tmp_path: Path, is_async: bool) -> None:
    client = app.client

    async def send(ctx: Context) -> Any:
        await ctx.step.send_event("send", Event(name="sent"))
        await ctx.step.run("other", lambda: client.send(Event(name="sent")))

    def send_sync(ctx: ContextSync) -> Any:
        ctx.step.send_event("send", Event(name="sent"))
        ctx.step.run("other", client.send_sync, Event(name="sent"))

    await app.run(durable(app, send if is_async else send_sync))
    await client.send(Event(name="sent"))
    with closing(sqlite3.connect(tmp_path / "engine.db")) as connection:
        rows = connection.execute("SELECT origin IS NOT NULL FROM events WHERE name = 'sent' ORDER BY key").fetchall()
    assert rows == [(1,), (1,), (0,)]


async def test_the_sdk_warns_once_of_an_event_that_matches_nothing(app: App, caplog: pytest.LogCaptureFixture) -> None:
    async def go(ctx: Context) -> Any: ...

    await app.run(durable(app, go))
    for name in ("gone", "gone", "go"):
        await app.client.send(Event(name=name))
    warnings = [record.getMessage() for record in caplog.records if record.name == "durably"]
    nearest = "the nearest event that one is triggered by is 'go'"
    assert warnings == [
        f"the event 'gone' was sent, but no function is triggered by it, and no run waits for it now; {nearest}"
    ]


async def test_the_sdk_warns_of_it_under_test_too(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(app_id="shop", is_production=False)

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="order/placed"))
    async def f(ctx: Context) -> None: ...

    async with TestEngine(client, [f]):
        await client.send(Event(name="order/place"))
    assert (
        "the event 'order/place' was sent, but no function is triggered by it, and no run waits for it now"
        in caplog.text
    )


async def test_a_function_that_sends_its_own_event_is_stopped() -> None:
    client = Client(app_id="shop", is_production=False)

    @client.create_function(fn_id="loop", trigger=TriggerEvent(event="loop"))
    async def loop(ctx: Context) -> None:
        await ctx.step.send_event("again", Event(name="loop"))

    async with TestEngine(client, [loop], max_depth=1) as engine:
        await engine.send(Event(name="loop"))
        await engine.advance(days=1)
        runs = engine.runs(loop)
        assert len(runs) == 12
        failed = [run for run in runs if run.status == "Failed"]
        assert len(failed) == 1
        failed[0].assert_failed(message="shop-loop → shop-loop")
