"""Steps that wait for events and signals."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from durably.engine.core.expressions import Expression
from durably.engine.model.runs import RunStatus, StepStatus
from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import ended, only_run, output, send, step_is
from ...small_app import SmallApp, Steps


async def start_waiting(engine: SqliteEngine, name: str, step: str, **data: object) -> str:
    run_id = await only_run(engine, await send(engine, name, **data))
    await step_is(engine, run_id, step, StepStatus.WAITING)
    return run_id


async def test_an_event_that_matches_ends_the_wait(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        paid = steps.wait_for_event("payment", "paid", expression="async.data.order == event.data.order")
        return [paid["name"], paid["data"], bool(paid["id"]), bool(paid["ts"])]

    await engine.sync_app(app.sync_request())
    seven = await start_waiting(engine, "order", "payment", order=7)
    eight = await start_waiting(engine, "order", "payment", order=8)
    await send(engine, "paid", order=9)
    await send(engine, "paid", order=8, by="card")
    assert output(await ended(engine, eight)) == ["paid", {"order": 8, "by": "card"}, True, True]
    run = await engine.get_run(seven)
    assert run is not None
    assert run.status == RunStatus.RUNNING
    await send(engine, "paid", order=7.0)
    assert output(await ended(engine, seven))[1] == {"order": 7.0}


async def test_a_wait_that_times_out_has_no_event(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("patient")
    def patient(steps: Steps) -> object:
        return [steps.wait_for_event("short", "x", timeout="20ms"), steps.wait_for_event("none", "x", timeout="")]

    await engine.sync_app(app.sync_request())
    run = await ended(engine, await only_run(engine, await send(engine, "patient")))
    assert output(run) == [None, None]


@pytest.mark.parametrize(
    "expression",
    [None, "async.data.n > event.data.n", "async.data.kind == 'good' && async.data.n != event.data.n"],
)
async def test_all_kinds_of_expressions(engine: SqliteEngine, app: SmallApp, expression: str | None) -> None:
    @app.function("any")
    def anything(steps: Steps) -> object:
        return steps.wait_for_event("it", "thing", expression=expression)["data"]["n"]

    await engine.sync_app(app.sync_request())
    run_id = await start_waiting(engine, "any", "it", n=1)
    if expression is not None:
        await send(engine, "thing", kind="bad", n=1)
    await send(engine, "thing", kind="good", n=2)
    assert output(await ended(engine, run_id)) == 2


async def test_an_event_meets_only_the_waits_that_it_may_end(
    engine: SqliteEngine, app: SmallApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        expression = "async.data.kind == 'full' && async.data.order == event.data.order"
        return steps.wait_for_event("payment", "paid", expression=expression)["data"]["order"]

    await engine.sync_app(app.sync_request())
    runs = await asyncio.gather(*(start_waiting(engine, "order", "payment", order=n) for n in range(30)))
    evaluated = 0
    matches = Expression.matches

    def counting(self: Expression, *args: object, **named: object) -> bool:
        nonlocal evaluated
        evaluated += 1
        return matches(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Expression, "matches", counting)
    await send(engine, "paid", kind="full", order=11)
    assert output(await ended(engine, runs[11])) == 11
    assert evaluated == 1


async def test_waits_are_found_by_index(engine: SqliteEngine, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        plans = [
            connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
            for query, values in (
                ("SELECT * FROM waits WHERE op = ? AND topic = ? AND path IS ? AND value IS ?", ("a", "b", "c", "d")),
                ("SELECT * FROM waits WHERE op = ? AND topic = ?", ("a", "b")),
                ("SELECT * FROM waits WHERE due > ? AND due <= ? ORDER BY due LIMIT ?", (1, 2, 3)),
                ("SELECT * FROM delayed_calls WHERE due > ? AND due <= ? ORDER BY due LIMIT ?", (1, 2, 3)),
                ("SELECT run_key FROM run_states WHERE is_runnable", ()),
            )
        ]
    connection.close()
    assert all("USING" in steps[0][3] and "SCAN waits" not in steps[0][3] for steps in plans), plans


async def test_one_event_wakes_several_and_triggers_too(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter")
    def waiter(steps: Steps) -> object:
        return steps.wait_for_event("both", "news")["data"]["n"]

    @app.function("news")
    def news(steps: Steps) -> object:
        return "read"

    await engine.sync_app(app.sync_request())
    runs = [await start_waiting(engine, "waiter", "both") for _ in range(2)]
    event_id = await send(engine, "news", n=5)
    assert [output(await ended(engine, run_id)) for run_id in runs] == [5, 5]
    assert output(await ended(engine, await only_run(engine, event_id))) == "read"


async def test_signal_resumes_the_waiting_run(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter")
    def waiter(steps: Steps) -> object:
        return steps.options("go", "WaitForSignal", signal="launch", timeout="1h", conflict="fail")

    await engine.sync_app(app.sync_request())
    assert await engine.signal("launch", 1) is None
    run_id = await start_waiting(engine, "waiter", "go")
    assert await engine.signal("other", 1) is None
    assert await engine.signal("launch", {"by": "ann"}) == run_id
    assert await engine.signal("launch", 1) is None
    assert output(await ended(engine, run_id)) == {"signal": "launch", "data": {"by": "ann"}}


async def test_two_waits_for_one_signal(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter", retries=0)
    def waiter(steps: Steps) -> object:
        assert steps.event is not None
        data = steps.event.data
        got = steps.options("go", "WaitForSignal", signal="launch", timeout=data["timeout"], conflict=data["conflict"])
        return got and got["data"]

    await engine.sync_app(app.sync_request())
    first = await start_waiting(engine, "waiter", "go", timeout="1h", conflict="fail")
    second = await ended(engine, await only_run(engine, await send(engine, "waiter", timeout="1h", conflict="fail")))
    assert second.status == RunStatus.FAILED
    assert output(second)["name"] == "SignalConflictError"
    third = await start_waiting(engine, "waiter", "go", timeout="1h", conflict="replace")
    assert await engine.signal("launch", 3) == third
    assert output(await ended(engine, third)) == 3
    # The one that was replaced continues waiting, for its timeout alone.
    assert await engine.signal("launch", 1) is None
    run = await engine.get_run(first)
    assert run is not None
    assert run.status == RunStatus.RUNNING
