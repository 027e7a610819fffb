"""Runs that ended long ago are purged, and nothing else. The file does not grow by purged rows."""

import asyncio
import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.maintenance import check_database
from durably.protocol.events import Event

from ..conftest import QUICK, ShiftedClock, ended, only_run, opened, output, run_to_end, send, step_is
from ..small_app import SmallApp, Steps

DAY = 24 * 3600 * 1000


def keeping(clock: ShiftedClock, **age: float) -> EngineSettings:
    settings: EngineSettings = msgspec.structs.replace(QUICK, clock=clock, retention=dt.timedelta(**age))
    return settings


async def purged(engine: SqliteEngine) -> None:
    """Once the purge that is under way is over."""
    retention = engine._runtime._retention
    assert retention is not None
    if retention._purge is not None:
        await asyncio.wait([retention._purge])


async def count(engine: SqliteEngine) -> dict[str, int]:
    def query(connection: sqlite3.Connection) -> dict[str, int]:
        tables = ("runs", "memos", "events")
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}

    return await engine._read(query)


async def names(engine: SqliteEngine) -> list[str]:
    return sorted(event.event.name for event in await engine.list_events())


def define(app: SmallApp) -> None:
    @app.function("short")
    def short(steps: Steps) -> object:
        return steps.run("a", lambda: "x" * 3000)

    @app.function("long")
    def long(steps: Steps) -> object:
        steps.wait_for_event("wait", "go", timeout="8000h")
        return steps.event.data


async def test_old_runs_are_purged_and_live_or_young_ones_kept(path: Path, app: SmallApp) -> None:
    define(app)
    clock = ShiftedClock(-100 * DAY)
    async with opened(path, keeping(clock, days=30)) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "short")
        await send(engine, "unmatched")
        live = await only_run(engine, await send(engine, "long", n=1))
        await step_is(engine, live, "wait", "waiting")
    clock.offset = -1 * DAY
    async with opened(path, keeping(clock, days=30)) as engine:
        await run_to_end(engine, "short")
    clock.offset = 0
    async with opened(path, keeping(clock, days=30)) as engine:
        await purged(engine)
        assert await names(engine) == ["inngest/function.finished", "long", "short"]
        assert await count(engine) == {"runs": 2, "memos": 1, "events": 3}
        await send(engine, "go")
        assert output(await ended(engine, live)) == {"n": 1}
    clock.offset = 200 * DAY
    async with opened(path, keeping(clock, days=30)) as engine:
        await purged(engine)
        assert await count(engine) == {"runs": 0, "memos": 0, "events": 0}
    assert check_database(path) == []


async def test_events_are_recognised_for_a_day_whatever_the_retention(path: Path, app: SmallApp) -> None:
    define(app)
    clock = ShiftedClock()
    event = Event(name="short", id="the same")
    async with opened(path, keeping(clock, hours=1)) as engine:
        await engine.sync_app(app.sync_request())
        (first,) = await engine.send_events([event])
        await ended(engine, await only_run(engine, first))
    for hours, is_known in ((23, True), (25, False)):
        clock.offset = hours * 3_600_000
        async with opened(path, keeping(clock, hours=1)) as engine:
            await purged(engine)
            assert await engine.list_runs() == []
            assert (await engine.send_events([event]) == [first]) == is_known


async def test_file_size_is_bounded_under_load(path: Path, app: SmallApp) -> None:
    define(app)
    clock = ShiftedClock()
    sizes: list[int] = []
    outputs: list[Any] = []
    for day in range(4):
        clock.offset = 2 * day * DAY
        async with opened(path, keeping(clock, days=1)) as engine:
            await engine.sync_app(app.sync_request())
            ids = await engine.send_events([Event(name="short") for _ in range(150)])
            outputs += [output(await ended(engine, await only_run(engine, event_id))) for event_id in ids]
            await purged(engine)
            assert (await count(engine))["runs"] == 150
            sizes.append(await engine._read(lambda db: db.execute("PRAGMA page_count").fetchone()[0]))
    assert outputs == ["x" * 3000] * 600
    # What one day leaves makes room for the next but one: both are there before the older is purged.
    assert sizes[3] <= sizes[1] * 1.05


async def test_a_run_is_never_taken_for_one_that_was_purged(path: Path, app: SmallApp) -> None:
    """Whose call has outlasted it."""

    @app.function("f")
    def f(steps: Steps) -> object:
        return steps.event.data

    clock = ShiftedClock()
    async with opened(path, keeping(clock, hours=1)) as engine:
        await purged(engine)
        await engine.sync_app(app.sync_request())
        app.gate.clear()
        first = await only_run(engine, await send(engine, "f", n=1))
        await app.wait_for_calls(1)
        await engine.cancel_run(first)
        clock.offset = 2 * DAY
        await purge_now(engine)
        assert await engine.list_runs() == []
        second = await only_run(engine, await send(engine, "f", n=2))
        app.gate.set()
        assert output(await ended(engine, second)) == {"n": 2}


async def test_events_that_come_after_all_others_are_gone_go_in_their_turn(path: Path) -> None:
    clock = ShiftedClock()
    async with opened(path, keeping(clock, hours=1)) as engine:
        await purged(engine)
        for day in range(3):
            clock.offset = 2 * day * DAY
            await purge_now(engine)
            assert await count(engine) == {"runs": 0, "memos": 0, "events": 0}
            await engine.send_events([Event(name="unmatched") for _ in range(3)])


async def purge_now(engine: SqliteEngine) -> None:
    retention = engine._runtime._retention
    assert retention is not None
    retention.start()
    await purged(engine)
