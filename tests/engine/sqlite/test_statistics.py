"""Numbers of runs by minute: those that are counted equal those of the runs themselves, also after a kill."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durably.engine.core.run_state import RunStatus
from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.statistics import DAY, HOUR, MINUTE, join_counts, put_counts, stored_counts

from ..conftest import QUICK, ShiftedClock, only_run, opened, run_to_end, send
from ..small_app import SmallApp

NAMES = ("created", "completed", "failed", "cancelled", "skipped")


def counted_again(path: Path) -> dict[tuple[str, int], list[int]]:
    """Counts by function and minute, taken from the runs."""
    with sqlite3.connect(path) as connection:
        runs = connection.execute("SELECT function_id, status, created_at, ended_at FROM runs").fetchall()
    counts: dict[tuple[str, int], list[int]] = {}
    for function_id, status, created_at, ended_at in runs:
        counts.setdefault((function_id, created_at // MINUTE), [0] * 5)[0] += 1
        if ended_at is not None:
            counts.setdefault((function_id, ended_at // MINUTE), [0] * 5)[NAMES.index(status.lower())] += 1
    return counts


async def counted(engine: SqliteEngine) -> dict[tuple[str, int], list[int]]:
    statistics, reader = engine._runtime.statistics, engine._runtime.reader
    found = await statistics.counts(reader, 0, 2**40, 1)
    return {
        (function_id, minute): numbers for function_id, counts in found.items() for minute, numbers in counts.items()
    }


def add_functions(app: SmallApp) -> None:
    @app.function("good")
    def good(steps: Any) -> None: ...

    @app.function("bad", retries=0)
    def bad(steps: Any) -> None:
        raise ValueError

    @app.function("long")
    def long(steps: Any) -> None:
        steps.wait_for_event("go", "go")

    @app.function("paused")
    def paused(steps: Any) -> None: ...


async def make_history(engine: SqliteEngine, clock: ShiftedClock, step: int) -> None:
    for _ in range(3):
        await run_to_end(engine, "good")
        await run_to_end(engine, "bad")
        await send(engine, "paused")
        await engine.cancel_run(await only_run(engine, await send(engine, "long")))
        await send(engine, "long")
        clock.offset += step


@pytest.mark.parametrize("step", [1_000, MINUTE, 20 * MINUTE])
async def test_the_counts_are_those_of_the_runs_also_after_a_kill(path: Path, app: SmallApp, step: int) -> None:
    add_functions(app)
    clock = ShiftedClock()
    settings = replace(QUICK, clock=clock)
    async with opened(path, settings) as engine:
        await engine.sync_app(app.sync_request())
        await engine.pause_function("app-paused")
        await make_history(engine, clock, step)
        assert await counted(engine) == counted_again(path)
        # What a killed process leaves: nothing is written when an engine ends.
        killed = path.with_name("killed.db")
        with sqlite3.connect(path) as source, sqlite3.connect(killed) as copy:
            source.backup(copy)
    async with opened(killed, settings) as engine:
        again = counted_again(killed)
        assert await counted(engine) == again
        assert sum(numbers[0] for numbers in again.values()) == 15
        live = await engine._runtime.statistics.live()
        assert live == Counter({"app-long": 3, "app-limited": 0}) - Counter()
        await make_history(engine, clock, step)
        assert await counted(engine) == counted_again(killed)


async def test_counts_are_stored_by_minute_and_nothing_else_is(path: Path, app: SmallApp) -> None:
    add_functions(app)
    clock = ShiftedClock()
    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        for minutes in (2, 2, 0):
            await run_to_end(engine, "good")
            clock.offset += minutes * MINUTE
        await engine.verify()
        with sqlite3.connect(path) as connection:
            rows = connection.execute("SELECT created, completed FROM run_counts").fetchall()
        assert await counted(engine) == counted_again(path)
    assert rows == [(1, 1)] * len(rows)
    assert 1 <= len(rows) <= 2


def test_old_counts_are_joined_and_the_oldest_deleted(path: Path) -> None:
    connection = open_database(path, Durability.OFF)
    now = 40 * DAY + 7
    ages = (1, 2 * HOUR, 5 * HOUR, 5 * HOUR + 1, DAY, 4 * DAY, 4 * DAY + 20, 29 * DAY, 31 * DAY)
    counts = {now - age: {"f": [1, 1, 0, 0, 0], "g": [0, 0, 2, 0, 0]} for age in ages}
    put_counts(connection, counts, now)
    for _ in range(2):
        join_counts(connection, now)
        found = {minute: numbers for minute, name, numbers in stored_counts(connection, 0, now, 1) if name == "f"}
        assert sum(numbers[0] for numbers in found.values()) == 8
        assert [minute for minute in found if minute < now - 4 * HOUR and minute % 15] == []
        assert [minute for minute in found if minute < now - 4 * DAY and minute % 60] == []
        assert now - 1 in found
        assert now - 2 * HOUR in found
    connection.close()


async def test_an_app_that_does_not_answer_is_known_until_it_does(engine: SqliteEngine, app: SmallApp) -> None:
    add_functions(app)
    await engine.sync_app(app.sync_request())
    statistics = engine._runtime.statistics
    request = app.sync_request()
    url = "http://127.0.0.1:9/api/inngest"
    step = {
        name: replace(each, runtime=replace(each.runtime, url=url)) for name, each in request.functions[0].steps.items()
    }
    await engine.sync_app(replace(request, url=url, functions=[replace(request.functions[0], steps=step)]))
    run_id = await only_run(engine, await send(engine, "good"))
    while not statistics.unreached_apps:
        await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
    unreached = statistics.unreached_apps["app"]
    assert unreached.count >= 1
    assert "127.0.0.1" in unreached.error
    await engine.sync_app(app.sync_request())
    assert (await engine.wait_for_run(run_id)).status is RunStatus.COMPLETED
    assert statistics.unreached_apps == {}
