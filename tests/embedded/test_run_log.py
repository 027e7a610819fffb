"""``EngineSettings(log_runs=True)``: one line for each run that ends, with its ids as attributes."""

import asyncio
import datetime as dt
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durably import (
    Client,
    Concurrency,
    Context,
    ContextSync,
    Embedded,
    EngineSettings,
    Event,
    Timeouts,
    TriggerEvent,
)
from durably.comm import CommHandler
from durably.embedded import dispatcher

from .cluster import eventually


async def run_both(database: Path, settings: EngineSettings) -> list[Any]:
    """A run that completes and one that fails."""
    client = Client(app_id="shop", is_production=False, engine=Embedded(database, settings=settings))

    @client.create_function(fn_id="pay", trigger=TriggerEvent(event="pay"), retries=0)
    def pay(ctx: ContextSync) -> str:
        if ctx.event.data.get("fail"):
            raise ValueError("declined\nforged")
        return "secret"

    CommHandler(client=client, framework="test", functions=[pay])
    runs = []
    async with client.engine.running():
        for data in ({}, {"fail": True}):
            [event_id] = await client.send(Event(name="pay", data=data))
            [run] = await client.engine.event_runs(event_id)
            runs.append(await client.engine.wait_for_run(run.id))
    return runs


async def test_a_run_ends_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "durably.runs")
    completed, failed = await run_both(tmp_path / "durably.db", EngineSettings(log_runs=True))
    lines: list[Any] = [record for record in caplog.records if record.name == "durably.runs"]
    assert [(line.levelname, line.run_id, line.outcome) for line in lines] == [
        ("INFO", completed.id, "completed"),
        ("ERROR", failed.id, "failed"),
    ]
    assert all((line.function_id, line.app_id) == ("shop-pay", "shop") for line in lines)
    assert [line.event_id for line in lines] == [completed.event_id, failed.event_id]
    assert all(line.duration_ms >= 0 for line in lines)
    assert lines[0].getMessage().startswith(f"run completed: run {completed.id} of function shop-pay after ")
    assert lines[1].getMessage().endswith(r": ValueError: declined\nforged")
    assert "secret" not in "".join(line.getMessage() for line in lines)


async def test_run_that_the_engine_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db"))

    @client.create_function(fn_id="wait", trigger=TriggerEvent(event="wait"))
    async def wait(ctx: Context) -> None:
        await ctx.step.wait_for_event("paid", event="paid", if_exp="async.data.id ===", timeout=1000)

    CommHandler(client=client, framework="test", functions=[wait])
    async with client.engine.running():
        [event_id] = await client.send(Event(name="wait"))
        [run] = await client.engine.event_runs(event_id)
        await client.engine.wait_for_run(run.id)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.name == "durably.engine"
    assert line.getMessage().startswith(f"run {run.id} of function 'shop-wait' failed: OpInvalidError: step 'paid'")


@pytest.mark.parametrize(
    ("timeouts", "reason"),
    [
        (Timeouts(start=dt.timedelta(seconds=1)), "it had not started by the time that timeouts.start allows"),
        (Timeouts(finish=dt.timedelta(seconds=1)), "it had not ended by the time that timeouts.finish allows"),
    ],
)
async def test_run_that_a_timeout_cancels_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, timeouts: Timeouts, reason: str
) -> None:
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db"))
    concurrency = [Concurrency(limit=1)]

    @client.create_function(
        fn_id="wait", trigger=TriggerEvent(event="wait"), timeouts=timeouts, concurrency=concurrency
    )
    async def wait(ctx: Context) -> None:
        if timeouts.start is None:
            await ctx.step.sleep("long", 60_000)
        else:
            await ctx.step.run("busy", asyncio.sleep, 3)

    CommHandler(client=client, framework="test", functions=[wait])
    async with client.engine.running():
        ids = await client.send([Event(name="wait")] if timeouts.start is None else [Event(name="wait")] * 2)
        runs = [run for event_id in ids for run in await client.engine.event_runs(event_id)]
        ended = [await client.engine.wait_for_run(run.id) for run in runs]
    [cancelled] = [run for run in ended if run.status == "Cancelled"]
    [line] = [
        record for record in caplog.records if record.levelname == "WARNING" and "timeouts" in record.getMessage()
    ]
    assert line.name == "durably.engine"
    assert line.getMessage() == f"run {cancelled.id} of function 'shop-wait': the run was cancelled: {reason}"


async def test_runs_are_not_logged_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "durably.runs")
    await run_both(tmp_path / "durably.db", msgspec.structs.replace(EngineSettings()))
    assert [record for record in caplog.records if record.name == "durably.runs"] == []


async def test_runs_of_a_function_that_was_renamed_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "UNSERVED_SECONDS", 0.05)

    def make(fn_id: str) -> Client:
        client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db"))

        @client.create_function(fn_id=fn_id, trigger=TriggerEvent(event=fn_id))
        async def slow(ctx: Context) -> str:
            await ctx.step.sleep("nap", 1000)
            return "rested"

        CommHandler(client=client, framework="test", functions=[slow])
        return client

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "no running process" in record.getMessage()]

    before, after = make("slow"), make("slow2")
    async with before.engine.running():
        ids = await before.send([Event(name="slow"), Event(name="slow")])
        runs = [run for event_id in ids for run in await before.engine.event_runs(event_id)]
    async with after.engine.running():
        await asyncio.to_thread(eventually, warnings, "a warning is logged")
    [warning] = warnings()
    assert "'shop-slow'" in warning
    assert "trigger=[]" in warning
    assert "durably runs cancel --function shop-slow" in warning
    again = make("slow")
    async with again.engine.running():
        assert [(await again.engine.wait_for_run(run.id)).status for run in runs] == ["Completed"] * 2
