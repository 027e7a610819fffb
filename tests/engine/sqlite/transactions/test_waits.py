"""Steps that wait for events and signals."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from durably.engine.core.expressions import Expression
from durably.engine.model.runs import StepStatus
from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import ended, only_run, output, send, step_is
from ...small_app import SmallApp, Steps


async def start_waiting(engine: SqliteEngine, name: str, step: str, **data: object) -> str:
    run_id = await only_run(engine, await send(engine, name, **data))
    await step_is(engine, run_id, step, StepStatus.WAITING)
    return run_id


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
