"""Runs from an event to their end, on a real database and over real HTTP."""

import asyncio
import datetime as dt
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from durably.engine.model.runs import RunStatus, StepStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import FunctionNotFoundError, RunNotFoundError
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op

from ...conftest import ENDS, ended, only_run, opened, output, run_to_end, send, step_is
from ...small_app import SDK_HEADERS, SmallApp, Steps


async def test_many_parallel_steps_of_an_app_that_executes_one_a_call(engine: SqliteEngine, app: SmallApp) -> None:
    """Steps that shared its request, and are unknown to it, are called again."""

    @app.function("many")
    def many(steps: Steps) -> object:
        return sum(steps.parallel(*(steps.running(f"step {n}", lambda n=n: n) for n in range(100))))  # type: ignore[misc]

    await engine.sync_app(app.sync_request())
    assert output(await run_to_end(engine, "many")) == sum(range(100))
    assert app.executions == {f"step {n}": 1 for n in range(100)}
    assert len(app.calls) == 102


async def test_sleeping_run_can_be_cancelled(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("sleeper")
    def sleeper(steps: Steps) -> object:
        steps.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "sleeper"))
    await step_is(engine, run_id, "long", StepStatus.SLEEPING)
    assert await engine.cancel_run(run_id)
    assert not await engine.cancel_run(run_id)
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status == RunStatus.CANCELLED
    assert output(run)["name"] == "FunctionCancelledError"
    with pytest.raises(RunNotFoundError, match="unknown"):
        await engine.cancel_run("unknown")


async def test_an_answer_after_a_cancel_changes_nothing(path: Path, engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("late")
    def late(steps: Steps) -> object:
        return "too late"

    await engine.sync_app(app.sync_request())
    app.gate.clear()
    run_id = await only_run(engine, await send(engine, "late"))
    await app.wait_for_calls(1)
    (call,) = await engine.run_calls(run_id)
    assert call.in_flight
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status == RunStatus.RUNNING
    assert await engine.cancel_run(run_id)
    app.gate.set()
    await engine.close()
    async with opened(path) as engine:
        run = await engine.get_run(run_id)
        assert run is not None
        assert run.status == RunStatus.CANCELLED


async def test_rerun_starts_with_the_same_event(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("again")
    def again(steps: Steps) -> object:
        assert steps.event is not None
        return steps.event.data["n"]

    await engine.sync_app(app.sync_request())
    first = await run_to_end(engine, "again", n=5)
    second = await ended(engine, await engine.rerun(first.id))
    assert (second.rerun_of, second.event_ids, output(second)) == (first.id, first.event_ids, 5)
    with pytest.raises(RunNotFoundError):
        await engine.rerun("unknown")
    app.functions.clear()
    await engine.sync_app(app.sync_request())
    with pytest.raises(FunctionNotFoundError, match="app-again"):
        await engine.rerun(first.id)


async def test_live_run_shows_its_steps(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("busy", retries=5)
    def busy(steps: Steps) -> object:
        steps.parallel(
            steps.running("retrying", lambda: 1 / 0),
            steps.running("done", lambda: 1),
            steps.asking("asleep", "Sleep", duration="1h"),
            steps.asking("waiting", "WaitForEvent", event="x", timeout="2h"),
        )

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "busy"))
    for step, status in (("done", "completed"), ("asleep", "sleeping"), ("waiting", "waiting")):
        await step_is(engine, run_id, step, status)
    await step_is(engine, run_id, "retrying", "retrying", "failed")
    steps = {step.id: step for step in await engine.run_steps(run_id)}
    assert set(steps) == {"retrying", "done", "asleep", "waiting"}
    assert steps["retrying"].error == ErrorData(name="ZeroDivisionError", message="division by zero")
    due = steps["waiting"].due_at
    assert due is not None
    assert due - steps["waiting"].created_at == dt.timedelta(hours=2)


async def test_many_runs_at_once(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("small")
    def small(steps: Steps) -> object:
        assert steps.event is not None
        return steps.run("square", lambda: steps.event.data["n"] ** 2)  # type: ignore[union-attr]

    await engine.sync_app(app.sync_request())
    with engine.watch() as updates:
        await asyncio.gather(*(send(engine, "small", n=n) for n in range(200)))
        ends = 0
        async for update in updates:
            ends += update.kind in ENDS
            if ends == 200:
                break
    runs = await engine.list_runs(limit=500)
    assert sorted(msgspec.json.decode(run.output) for run in runs if run.output) == sorted(n * n for n in range(200))
    assert app.executions["square"] == 200


async def test_delayed_call_is_stored_until_its_first_checkpoint(engine: SqliteEngine, app: SmallApp) -> None:
    """Even if it is due at once: the clock may be set back, and the engine restarted."""
    stored: list[int] = []

    async def count_stored() -> None:
        query = "SELECT count(*) FROM delayed_calls"
        stored.append(await engine._read(lambda connection: connection.execute(query).fetchone()[0]))

    @app.function("f")
    def f(steps: Steps) -> str:
        return "fine"

    app.before = lambda call: None if call.ctx.attempt else web.Response(status=206, body=b"[]", headers=SDK_HEADERS)
    await engine.sync_app(app.sync_request())
    app.gate.clear()
    run_id = await only_run(engine, await send(engine, "f"))
    await app.wait_for_calls(1)
    app.gate.set()
    app.gate.clear()
    await app.wait_for_calls(2)
    await count_stored()
    step = Op(id="a", op="StepRun", data=msgspec.Raw(b"1"))
    generation = app.calls[1].ctx.generation_id
    await engine.checkpoint(run_id, CheckpointRequest(run_id=run_id, generation_id=generation, steps=[step]))
    await count_stored()
    app.gate.set()
    await ended(engine, run_id)
    assert stored == [1, 0]
