"""Overviews: loads and counts of a real engine, and each reason for attention."""

import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durably.engine.api.codec import HttpEngine
from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import Concern, ConcernKind, FunctionLoad
from durably.engine.model.runs import to_datetime
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.overviews import plan_axis
from durably.engine.sqlite.queries import loads
from durably.engine.sqlite.statistics import DAY, HOUR, MINUTE
from durably.protocol.engine_errors import SelectionInvalidError

from ..conftest import QUICK, ShiftedClock, only_run, opened, run_to_end, send, step_is
from ..small_app import SmallApp


def add_functions(app: SmallApp) -> None:
    @app.function("good")
    def good(steps: Any) -> None: ...

    @app.function("bad", retries=0)
    def bad(steps: Any) -> None:
        raise ValueError("no")

    @app.function("narrow", concurrency=[{"limit": 1, "key": "event.data.user"}])
    def narrow(steps: Any) -> None: ...

    @app.function("sleeper")
    def sleeper(steps: Any) -> None:
        steps.sleep("long", "1h")


async def attention(engine: SqliteEngine, kind: ConcernKind) -> list[Concern]:
    return [concern for concern in (await engine.overview()).concerns if concern.kind is kind]


def load_of(loads: list[FunctionLoad], name: str) -> FunctionLoad:
    return next(load for load in loads if load.function_id == f"app-{name}")


@pytest.mark.parametrize(
    ("hours", "most", "step"),
    [
        (1, 150, 1),
        (2, 150, 1),
        (6, 150, 15),
        (24, 150, 15),
        (24, 30, HOUR),
        (7 * 24, 150, 3 * HOUR),
        (720, 150, 6 * HOUR),
    ],
)
def test_an_axis_has_few_intervals_and_holds_the_range(hours: int, most: int, step: int) -> None:
    now = 100 * DAY * MINUTE + 12_345_678
    axis = plan_axis(now - hours * HOUR * MINUTE, None, now, most)
    assert axis.step == step
    assert len(axis.minutes) <= most + 2
    assert axis.since * MINUTE <= now - hours * HOUR * MINUTE
    assert now < axis.until * MINUTE
    assert axis.since % step == 0
    assert plan_axis(now - hours * HOUR * MINUTE, 8000 * 365 * DAY * MINUTE, now, most) == axis


async def test_an_overview_counts_runs_and_calls(engine: SqliteEngine, app: SmallApp, client: HttpEngine) -> None:
    add_functions(app)
    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "good")
    await run_to_end(engine, "bad")
    sleeping = await only_run(engine, await send(engine, "sleeper"))
    await step_is(engine, sleeping, "long", "sleeping")
    app.gate.clear()
    calls = len(app.calls)
    for _ in range(3):
        await send(engine, "narrow", user="a")
    await app.wait_for_calls(calls + 1)
    overview = await client.overview()
    assert overview.interval_seconds == 15 * 60
    assert overview.since < overview.until
    assert sum(each.created for each in overview.counts) == 6
    assert (sum(each.completed for each in overview.counts), sum(each.failed for each in overview.counts)) == (1, 1)
    assert overview.live == {RunStatus.SCHEDULED: 2, RunStatus.RUNNING: 2}
    loads = await client.function_loads()
    assert [load.function_id for load in loads] == ["app-bad", "app-good", "app-narrow", "app-sleeper"]
    narrow = load_of(loads, "narrow")
    assert (narrow.backlog, narrow.in_flight, narrow.live) == (2, 1, 3)
    assert narrow.queue_delay is not None
    assert narrow.queue_delay >= 0
    assert load_of(loads, "good").queue_delay is None
    assert sum(each.created for each in narrow.counts) == 3
    assert len(narrow.counts) <= 32
    assert {load.function_id: load.live for load in overview.functions} == {
        load.function_id: load.live for load in loads
    }
    app.gate.set()


async def test_calls_beyond_the_engines_maximum_are_backlog(path: Path, app: SmallApp) -> None:
    add_functions(app)
    async with opened(path, replace(QUICK, max_calls=1)) as engine:
        await engine.sync_app(app.sync_request())
        app.gate.clear()
        for _ in range(4):
            await send(engine, "good")
        await app.wait_for_calls(1)
        load = load_of(await engine.function_loads(), "good")
        assert (load.backlog, load.in_flight, load.live) == (3, 1, 4)
        assert (await engine.overview()).live == {RunStatus.SCHEDULED: 3, RunStatus.RUNNING: 1}
        app.gate.set()
        while (load := load_of(await engine.function_loads(), "good")).live:
            await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
        assert (load.backlog, load.in_flight) == (0, 0)


async def test_a_range_of_time_selects_the_counts(path: Path, app: SmallApp) -> None:
    add_functions(app)
    clock = ShiftedClock()
    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "good")
        clock.offset += 5 * HOUR * MINUTE
        await run_to_end(engine, "good")
        await run_to_end(engine, "good")
        now = to_datetime(clock.now())

        async def created(since: dt.timedelta, until: dt.timedelta = dt.timedelta()) -> int:
            overview = await engine.overview(since=now - since, until=now - until)
            return sum(each.created for each in overview.counts)

        assert await created(dt.timedelta(hours=1)) == 2
        assert await created(dt.timedelta(hours=6)) == 3
        assert await created(dt.timedelta(hours=6), dt.timedelta(hours=3)) == 1
        assert await created(dt.timedelta(days=365)) == 3
        with pytest.raises(SelectionInvalidError, match="before until"):
            await engine.function_loads(since=now + dt.timedelta(hours=1))


async def test_a_failing_function_needs_attention_for_an_hour(path: Path, app: SmallApp) -> None:
    add_functions(app)
    clock = ShiftedClock()
    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "good")
        await run_to_end(engine, "bad")
        await run_to_end(engine, "bad")
        (concern,) = await attention(engine, ConcernKind.FAILING_FUNCTION)
        assert (concern.subject, concern.count) == ("app-bad", 2)
        assert "2 of 2 runs of 'app-bad' failed in the last hour" in concern.message
        clock.offset += 61 * MINUTE
        assert await attention(engine, ConcernKind.FAILING_FUNCTION) == []


async def test_failures_that_a_rerun_has_mended_need_no_attention(engine: SqliteEngine, app: SmallApp) -> None:
    is_broken = True

    @app.function("mended", retries=0)
    def mended(steps: Any) -> None:
        if is_broken:
            raise ValueError("no")

    await engine.sync_app(app.sync_request())
    first, second = await run_to_end(engine, "mended"), await run_to_end(engine, "mended")
    again = await engine.rerun(first.id)
    await engine.wait_for_run(again)
    (concern,) = await attention(engine, ConcernKind.FAILING_FUNCTION)
    assert concern.count == 3, "a rerun that failed mends nothing"
    is_broken = False
    await engine.wait_for_run(await engine.rerun(again))
    (concern,) = await attention(engine, ConcernKind.FAILING_FUNCTION)
    assert concern.count == 1, "the rerun of the rerun mends both"
    await engine.wait_for_run(await engine.rerun(second.id))
    assert await attention(engine, ConcernKind.FAILING_FUNCTION) == []
    overview = await engine.overview()
    (load,) = [each for each in overview.functions if each.function_id == "app-mended"]
    for counts in (overview.counts, load.counts):
        assert sum(each.failed for each in counts) == 3, "they did fail, and are shown so"
        assert [sum(getattr(each, name) for each in counts) for name in ("replayed", "open_failures")] == [3, 0]


def test_few_failures_among_many_runs_need_no_attention() -> None:
    assert loads.failing_functions({"f": {1: [0, 96, 4, 0, 0]}}) == []
    assert loads.failing_functions({"f": {1: [0, 95, 5, 0, 0]}}) != []


def test_a_failure_of_the_last_two_minutes_has_no_time() -> None:
    counts, minute = {"f": {5: [0, 0, 1, 0, 0]}}, 60_000
    (recent,) = loads.failing_functions(counts, now=6 * minute + 59_000)
    (older,) = loads.failing_functions(counts, now=7 * minute)
    assert (recent.since, older.since) == (None, to_datetime(5 * minute))


async def test_runs_that_are_tried_again_are_counted(path: Path, app: SmallApp) -> None:
    @app.function("flaky")
    def flaky(steps: Any) -> None:
        steps.run("work", lambda: 1 // 0)

    async with opened(path, replace(QUICK, backoff=lambda attempt, jitter: dt.timedelta(minutes=1))) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "flaky"))
        await step_is(engine, run_id, "work", "retrying")
        assert (await engine.overview()).retrying == 1
        await engine.cancel_run(run_id)
        assert (await engine.overview()).retrying == 0


async def test_events_that_match_nothing_need_attention(engine: SqliteEngine, app: SmallApp) -> None:
    add_functions(app)
    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "good")
    for name in ("godo", "zzz", "godo"):
        await send(engine, name)
    first, second = await attention(engine, ConcernKind.UNMATCHED_EVENTS)
    assert (first.subject, first.count, second.subject, second.count) == ("godo", 2, "zzz", 1)
    assert "2 events of the last hour with the name 'godo' matched nothing" in first.message
    assert "'good'" in first.message


async def test_an_app_that_does_not_answer_needs_attention(engine: SqliteEngine, app: SmallApp) -> None:
    add_functions(app)
    app.url = "http://127.0.0.1:9/api/inngest"
    await engine.sync_app(app.sync_request())
    await send(engine, "good")
    while not (found := await attention(engine, ConcernKind.UNREACHED_APP)):
        await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
    assert found[0].subject == "app"
    assert "start it, or correct its URL" in found[0].message


async def test_a_slot_that_is_held_for_long_needs_attention_if_calls_wait(path: Path, app: SmallApp) -> None:
    add_functions(app)
    clock = ShiftedClock()
    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        app.gate.clear()
        holder = await only_run(engine, await send(engine, "narrow", user="a"))
        await app.wait_for_calls(1)
        clock.offset += loads.STUCK_MILLISECONDS + MINUTE
        assert await attention(engine, ConcernKind.STUCK_KEY) == []
        await send(engine, "narrow", user="b")
        assert await attention(engine, ConcernKind.STUCK_KEY) == []
        await send(engine, "narrow", user="a")
        await send(engine, "narrow", user="a")
        (concern,) = await attention(engine, ConcernKind.STUCK_KEY)
        assert (concern.subject, concern.count) == ("app-narrow", 2)
        assert f"which the run {holder} of 'app-narrow' has held for 11 minutes" in concern.message
        app.gate.set()


async def test_a_paused_function_needs_attention_once_it_skips_runs(engine: SqliteEngine, app: SmallApp) -> None:
    add_functions(app)
    await engine.sync_app(app.sync_request())
    await engine.pause_function("app-good")
    assert await attention(engine, ConcernKind.PAUSED_FUNCTION) == []
    await send(engine, "good")
    (concern,) = await attention(engine, ConcernKind.PAUSED_FUNCTION)
    assert concern.message.startswith("'app-good' is paused, and has skipped 1 run: resume it")
    await engine.resume_function("app-good")
    assert await attention(engine, ConcernKind.PAUSED_FUNCTION) == []


def test_names_of_events_are_found_without_those_of_the_engine(tmp_path: Path) -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE events (key INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE INDEX events_by_name ON events (name, key)")
        names = ["a", "inngest/function.failed", "inngest/z", "inngest", "z", "\U0001f600"]
        connection.executemany("INSERT INTO events (name) VALUES (?)", [(name,) for name in names * 3])
        assert loads.event_names(connection) == ["a", "inngest", "z", "\U0001f600"]
        assert loads.event_names(connection, 2) == ["a", "inngest"]
