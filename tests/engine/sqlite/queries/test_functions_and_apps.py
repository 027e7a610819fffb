"""Reports of functions, apps and schedules, and counts before bulk operations."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durably.engine.api.codec import HttpEngine
from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import MatchCount, to_datetime
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.queries import searches
from durably.engine.sqlite.queries.functions import percentile
from durably.engine.sqlite.statistics import HOUR, MINUTE
from durably.protocol.engine_errors import ConfigInvalidError, FunctionNotFoundError, SelectionInvalidError

from ...conftest import QUICK, ShiftedClock, only_run, opened, run_to_end, send
from ...small_app import SmallApp


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1], 0.5, 1), ([1, 2], 0.5, 1), ([1, 2, 3], 0.5, 2), (list(range(1, 101)), 0.95, 95), ([1, 2, 3], 0.95, 3)],
)
def test_a_percentile_is_a_value_of_the_sample(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


async def test_a_function_is_reported_with_durations_of_its_steps(
    path: Path, app: SmallApp, engine: SqliteEngine, client: HttpEngine
) -> None:
    @app.function("work", retries=0)
    def work(steps: Any) -> None:
        steps.run("one", lambda: 1)
        steps.run("two", lambda: 1 // steps.event.data["n"])

    await engine.sync_app(app.sync_request())
    empty = await client.inspect_function("app-work")
    assert empty is not None
    assert (empty.sampled, empty.p50, empty.p95, empty.steps) == (0, None, None, [])
    for n in (1, 2, 0):
        await run_to_end(engine, "work", n=n)
    report = await client.inspect_function("app-work")
    assert report is not None
    assert report.function == (await engine.list_functions())[0]
    assert report.sampled == 3
    assert report.p50 is not None
    assert report.p95 is not None
    assert 0 <= report.p50 <= report.p95 < 60
    steps = {step.step: step for step in report.steps}
    assert {name: (step.count, step.failed) for name, step in steps.items()} == {"one": (3, 0), "two": (3, 1)}
    assert all(0 <= step.p50 <= step.p95 < 60 for step in report.steps)
    assert sum(each.failed for each in report.load.counts) == 1
    assert await client.inspect_function("none") is None


async def test_an_app_is_reported_with_its_last_sync(engine: SqliteEngine, app: SmallApp, client: HttpEngine) -> None:
    @app.function("one")
    def one(steps: Any) -> None: ...

    @app.function("two")
    def two(steps: Any) -> None: ...

    await engine.sync_app(app.sync_request())
    (report,) = await client.list_apps()
    assert report == (await engine.list_apps())[0]
    assert (report.unreached_since, report.unreached_error) == (None, None)
    assert report.last_sync is not None
    assert (report.last_sync.error, report.last_sync.added) == (None, ("app-one", "app-two"))
    del app.functions["app-two"]
    app.functions["app-one"] = (one, {"triggers": [{"event": "other"}]})
    await engine.sync_app(app.sync_request())
    sync = (await client.list_apps())[0].last_sync
    assert sync is not None
    assert (sync.added, sync.changed, sync.removed) == ((), ("app-one",), ("app-two",))
    app.functions["app-one"] = (one, {"triggers": [{"cron": "no cron"}]})
    with pytest.raises(ConfigInvalidError):
        await engine.sync_app(app.sync_request())
    sync = (await client.list_apps())[0].last_sync
    assert sync is not None
    assert sync.error is not None
    assert "triggers.cron" in sync.error
    unknown = replace(app.sync_request(), app_name="unknown")
    with pytest.raises(ConfigInvalidError):
        await engine.sync_app(unknown)
    assert [each.id for each in await client.list_apps()] == ["app"]


async def test_an_app_that_does_not_answer_is_reported_until_it_syncs(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("one")
    def one(steps: Any) -> None: ...

    url, app.url = app.url, "http://127.0.0.1:9/api/inngest"
    await engine.sync_app(app.sync_request())
    await send(engine, "one")
    while (report := (await engine.list_apps())[0]).unreached_since is None:
        await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
    assert report.unreached_error
    app.url = url
    await engine.sync_app(app.sync_request())
    # A call that began before the sync may still report the old address.
    while (await engine.list_apps())[0].unreached_since is not None:
        await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)


async def test_schedules_have_their_next_ticks_and_last_runs(path: Path, app: SmallApp) -> None:
    clock = ShiftedClock()

    @app.function("nightly", triggers=[{"cron": "0 3 * * *"}, {"cron": "TZ=Europe/Paris 30 12 * * 1"}, {"event": "x"}])
    def nightly(steps: Any) -> None: ...

    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        daily, weekly = await engine.list_schedules()
        assert (daily.function_id, daily.schedule, daily.is_paused) == ("app-nightly", "0 3 * * *", False)
        assert [tick.hour for tick in daily.next_ticks] == [3] * 5
        assert len({tick.date() for tick in daily.next_ticks}) == 5
        assert daily.next_ticks[0] > to_datetime(clock.now())
        assert [tick.weekday() for tick in weekly.next_ticks] == [0] * 5
        assert daily.last_runs == weekly.last_runs == []
        await run_to_end(engine, "x")
        before = clock.now()
        clock.offset += round(daily.next_ticks[0].timestamp() * 1000) - before
    async with opened(path, replace(QUICK, clock=clock)) as engine:
        while not (daily := (await engine.list_schedules())[0]).last_runs:
            await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
        (link,) = daily.last_runs
        run = await engine.get_run(link.id)
        assert run is not None
        assert run.function_id == "app-nightly"
        await engine.pause_function("app-nightly")
        assert [each.is_paused for each in await engine.list_schedules()] == [True, True]


async def test_a_count_is_that_of_the_bulk_operation(path: Path, app: SmallApp) -> None:
    clock = ShiftedClock()

    @app.function("work", retries=0)
    def work(steps: Any) -> Any:
        return 1 // steps.event.data["n"]

    @app.function("waiter")
    def waiter(steps: Any) -> None:
        steps.wait_for_event("go", "go")

    async with opened(path, replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        for n in (0, 0, 1):
            await run_to_end(engine, "work", n=n)
        clock.offset += HOUR * MINUTE
        await run_to_end(engine, "work", n=0)
        await only_run(engine, await send(engine, "waiter"))
        now = to_datetime(clock.now())
        failed, live = [RunStatus.FAILED], [RunStatus.RUNNING, RunStatus.SCHEDULED]
        earlier = now - dt.timedelta(minutes=30)
        count = engine.count_matching_runs
        assert await count("app-work", statuses=failed) == MatchCount(count=3, is_complete=True)
        assert (await count("app-work", statuses=[RunStatus.COMPLETED, *failed])).count == 4
        assert (await count("app-work", statuses=failed, started_after=earlier)).count == 1
        assert (await count("app-work", statuses=failed, started_before=earlier)).count == 2
        assert (await count("app-work", statuses=failed, if_exp="event.data.n == 1")).count == 0
        assert (await count("app-waiter", statuses=live)).count == 1
        with pytest.raises(FunctionNotFoundError):
            await count("none", statuses=failed)
        with pytest.raises(SelectionInvalidError):
            await count("app-work", statuses=failed, if_exp="event.")
        replay = await engine.replay_runs("app-work", started_before=earlier)
        while (shown := await engine.get_replay(replay.id)) is not None and shown.ended_at is None:
            await engine.wait_for_changes(after=(await engine.wait_for_changes()).position)
        assert shown is not None
        assert shown.affected == 2


async def test_a_count_of_many_runs_is_a_lower_limit(
    engine: SqliteEngine, app: SmallApp, client: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.function("work")
    def work(steps: Any) -> None: ...

    await engine.sync_app(app.sync_request())
    for _ in range(5):
        await run_to_end(engine, "work")
    completed = [RunStatus.COMPLETED]
    monkeypatch.setattr(searches, "MOST_MATCHED", 3)
    assert await client.count_matching_runs("app-work", statuses=completed) == MatchCount(count=3, is_complete=False)
