"""What an engine logs about runs: their ends with ``log_runs``, and failures that nobody would notice otherwise."""

import asyncio
import datetime as dt
import logging
from pathlib import Path
from typing import Any

import pytest

from durably import Concurrency, Context, ContextSync, EngineSettings, Event, Timeouts
from durably.engine.model import dispatcher

from .app import App
from .cluster import eventually


@pytest.mark.parametrize("log_runs", [True, False])
async def test_a_run_ends_with_one_line_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log_runs: bool
) -> None:
    caplog.set_level(logging.INFO, "durably.runs")
    app = App(tmp_path / "durably.db", is_production=False, settings=EngineSettings(log_runs=log_runs))

    @app.function("pay", retries=0)
    def pay(ctx: ContextSync) -> str:
        if ctx.event.data.get("fail"):
            raise ValueError("declined\nforged")
        return "secret"

    async with app.running():
        completed, failed = await app.run(Event(name="pay")), await app.run(Event(name="pay", data={"fail": True}))
    lines: list[Any] = [record for record in caplog.records if record.name == "durably.runs"]
    if not log_runs:
        assert lines == []
        return
    assert [(line.levelname, line.run_id, line.outcome) for line in lines] == [
        ("INFO", completed.id, "completed"),
        ("ERROR", failed.id, "failed"),
    ]
    assert all((line.function_id, line.app_id) == ("app-pay", "app") for line in lines)
    assert [line.event_id for line in lines] == [completed.event_id, failed.event_id]
    assert all(line.duration_ms >= 0 for line in lines)
    assert lines[1].getMessage().endswith(r": ValueError: declined\nforged")
    assert "secret" not in "".join(line.getMessage() for line in lines)


async def test_run_that_the_engine_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = App(tmp_path / "durably.db", is_production=False)

    @app.function("wait")
    async def wait(ctx: Context) -> None:
        await ctx.step.wait_for_event("paid", event="paid", if_exp="async.data.id ===", timeout=1000)

    async with app.running():
        run = await app.run(Event(name="wait"))
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.name == "durably.engine"
    assert line.getMessage().startswith(f"run {run.id} of function 'app-wait' failed: OpInvalidError: step 'paid'")


@pytest.mark.parametrize("timeout", ["start", "finish"])
async def test_run_that_a_timeout_cancels_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, timeout: str
) -> None:
    app = App(tmp_path / "durably.db", is_production=False)
    timeouts = Timeouts(**{timeout: dt.timedelta(seconds=1)})
    is_cancelled = asyncio.Event()

    @app.function("wait", timeouts=timeouts, concurrency=[Concurrency(limit=1)])
    async def wait(ctx: Context) -> None:
        if timeout == "finish":
            await ctx.step.sleep("long", 60_000)
        else:
            await is_cancelled.wait()

    async with app.running():
        ids = await app.client.send([Event(name="wait")] * (1 if timeout == "finish" else 2))
        cancelled = await app.ended(ids[-1])
        is_cancelled.set()
    assert cancelled.status == "Cancelled"
    [line] = [record for record in caplog.records if "timeouts" in record.getMessage()]
    assert (line.name, line.levelname) == ("durably.engine", "WARNING")
    assert f"run {cancelled.id} of function 'app-wait'" in line.getMessage()
    assert f"timeouts.{timeout}" in line.getMessage()


async def test_runaway_chain_is_logged_once_without_tracebacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A chain of functions that invoke each other endlessly."""
    app = App(tmp_path / "durably.db", is_production=False, settings=EngineSettings(max_depth=3))

    @app.function("self")
    async def invokes_itself(ctx: Context) -> None:
        await ctx.step.invoke("again", function=invokes_itself)

    async with app.running():
        await app.run(Event(name="self"))
        runs = await app.engine.list_runs()
    assert [run.status for run in runs] == ["Failed"] * 4
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"run {runs[0].id}," in record.getMessage()
    assert "app-self → app-self → app-self → app-self" in record.getMessage()
    assert record.exc_info is None


async def test_runs_of_a_function_that_was_renamed_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "UNSERVED_SECONDS", 0.05)

    def make(fn_id: str) -> App:
        app = App(tmp_path / "durably.db", is_production=False)

        @app.function(fn_id)
        async def slow(ctx: Context) -> str:
            await ctx.step.sleep("nap", 1000)
            return "rested"

        return app

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "no running process" in record.getMessage()]

    before = make("slow")
    async with before.running():
        ids = await before.client.send([Event(name="slow"), Event(name="slow")])
    async with make("slow2").running():
        await asyncio.to_thread(eventually, warnings, "a warning is logged")
    [warning] = warnings()
    assert "'app-slow'" in warning
    assert "durably runs cancel --function app-slow" in warning
    again = make("slow")
    async with again.running():
        assert [(await again.ended(event_id)).status for event_id in ids] == ["Completed"] * 2
