"""Each metric of an engine moves with what it measures; real runs, real HTTP, real files."""

import asyncio
import logging
import time
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from durably.engine.api.counters import EngineCounters
from durably.engine.api.http.metrics import write_text
from durably.engine.api.metrics import CATALOGUE, OTHER_FUNCTIONS, MetricKind
from durably.engine.model.records import RunRow
from durably.engine.model.runs import RunStatus, UpdateKind
from durably.engine.model.subscriptions import Group, RunChange
from durably.engine.sqlite.engine import SqliteEngine

from ..conftest import QUICK, ShiftedClock, ended, only_run, opened, run_to_end, send, step_is
from ..small_app import SmallApp, Steps

Values = dict[str, float]


async def read(engine: SqliteEngine) -> Values:
    """The values by name and labels, as Prometheus parses them, such as ``runs_ended_total{order,failed}``."""
    return parse(write_text(await engine.read_metrics(), None)[0].decode())


def parse(text: str) -> Values:
    values = Values()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(value.removeprefix("app-") for value in sample.labels.values())
            values[sample.name.removeprefix("durably_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return values


async def test_runs_steps_attempts_and_calls_are_counted_by_function_and_outcome(
    engine: SqliteEngine, app: SmallApp
) -> None:
    @app.function("good", retries=1)
    def good(steps: Steps) -> object:
        return steps.run("price", lambda: 1 / (app.executions["price"] - 1))

    @app.function("bad", retries=0)
    def bad(steps: Steps) -> object:
        return steps.run("pay", lambda: 1 / 0)

    await engine.sync_app(app.sync_request())
    before = await read(engine)
    assert before["runs_ended_total{good,completed}"] == 0
    assert before["runs_ended_total{bad,failed}"] == 0, "a function that never ran has zeros"
    await run_to_end(engine, "good")
    await run_to_end(engine, "bad")
    after = await read(engine)
    expected = {
        "runs_started_total{good}": 1,
        "runs_started_total{bad}": 1,
        "runs_ended_total{good,completed}": 1,
        "runs_ended_total{good,failed}": 0,
        "runs_ended_total{bad,failed}": 1,
        "run_duration_seconds_count{good}": 1,
        "steps_ended_total{good,completed}": 1,
        "steps_ended_total{bad,failed}": 1,
        "step_duration_seconds_count{good}": 1,
        # The step and the function itself, and the first attempt at the step.
        "attempts_total{good,completed}": 2,
        "attempts_total{good,failed}": 1,
        "calls_total{good,answered}": 3,
        "calls_total{bad,answered}": 1,
        "calls_total{bad,failed}": 1,
        "call_duration_seconds_count{good}": 3,
        "queue_delay_seconds_count{good}": 3,
        "events_received_total": 2,
        "events_unmatched_total": 0,
    }
    assert {name: after[name] for name in expected} == expected
    assert after["call_duration_seconds_sum{good}"] > 0
    assert after["run_duration_seconds_bucket{good,+Inf}"] == 1
    assert after["commits_total"] > before["commits_total"]
    assert after["commit_transactions_sum"] >= after["commits_total"]
    assert after["commit_duration_seconds_count"] == after["commits_total"]
    assert after["database_size_bytes{main}"] > 0
    assert after["database_size_bytes{wal}"] > 0
    assert 0 < time.time() - after["start_time_seconds"] < 600
    assert after[f"build_info{{{version('durably')}}}"] == 1
    assert (after["processes{leader}"], after["processes{follower}"], after["up"]) == (1, 0, 1)


async def test_cancelled_and_skipped_runs_are_counted(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        return steps.sleep("pause", "1h")

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "order"))
    await engine.cancel_run(run_id)
    await ended(engine, run_id)
    await engine.pause_function("app-order")
    await send(engine, "order")
    values = await read(engine)
    assert values["runs_started_total{order}"] == 2
    assert values["runs_ended_total{order,cancelled}"] == 1
    assert values["runs_ended_total{order,skipped}"] == 1


async def test_timers_and_steps_that_sleep_are_counted(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("nap")
    def nap(steps: Steps) -> object:
        return steps.sleep("pause", "10ms")

    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "nap")
    values = await read(engine)
    assert values["timer_lag_seconds_count"] == 1
    assert values["steps_ended_total{nap,completed}"] == 1
    assert values["step_duration_seconds_count{nap}"] == 0, "its time is not work"
    assert values["attempts_total{nap,completed}"] == 1, "that of the function itself"


async def test_timers_that_are_late_are_counted_with_their_lag(path: Path, app: SmallApp) -> None:
    @app.function("nap")
    def nap(steps: Steps) -> object:
        return steps.sleep("pause", "1h")

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "nap"))
        await step_is(engine, run_id, "pause", "sleeping")
    two_hours = 2 * 3600 * 1000
    async with opened(path, msgspec.structs.replace(QUICK, clock=ShiftedClock(two_hours))) as engine:
        await ended(engine, run_id)
        assert 3500 < (await read(engine))["timer_lag_seconds_sum"] < 3700


async def test_calls_under_way_waiting_calls_and_live_runs_are_shown(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("slow", concurrency=[{"limit": 1}])
    def slow(steps: Steps) -> object:
        return None

    app.gate.clear()
    await engine.sync_app(app.sync_request())
    first = await send(engine, "slow")
    await app.wait_for_calls(1)
    second = await send(engine, "slow")
    values = await read(engine)
    assert values["calls_in_flight{slow}"] == 1
    assert values["calls_waiting{slow}"] == 1
    assert values["runs_live{slow}"] == 2
    while (await read(engine))["oldest_call_wait_seconds{slow}"] == 0:
        await engine.verify()
    app.gate.set()
    for event_id in (first, second):
        await ended(engine, await only_run(engine, event_id))
    async with asyncio.timeout(60):
        while (await read(engine))["calls_in_flight{slow}"]:  # The call's task ends after its answer is stored.
            await engine.verify()
    values = await read(engine)
    names = ("calls_waiting", "oldest_call_wait_seconds", "runs_live")
    assert [values[f"{name}{{slow}}"] for name in names] == [0, 0, 0]


async def test_unmatched_events_unreached_apps_and_refused_requests_are_counted(
    engine: SqliteEngine, app: SmallApp
) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        return None

    request = app.sync_request()
    next(iter(request.functions[0].steps.values())).runtime.url = "http://127.0.0.1:9/"
    await engine.sync_app(request)
    await send(engine, "unknown")
    with engine.watch() as updates:
        await send(engine, "order")
        async for update in updates:
            if update.kind.value == "app unreached":
                break
    with pytest.raises(Exception, match="no run"):
        await engine.cancel_run("01ABC")
    await engine.verify()
    values = await read(engine)
    assert (values["events_received_total"], values["events_unmatched_total"]) == (2, 1)
    assert values["calls_total{order,unreached}"] >= 1
    assert values["transactions_failed_total"] == 1


def started(function_id: str) -> RunChange:
    row = RunRow(1, "01A", function_id, "app", 1, False, RunStatus.SCHEDULED, 0, None, None)
    return RunChange(UpdateKind.RUN_STARTED, 0, row)


def test_functions_above_the_limit_share_a_label_and_a_warning_names_it(caplog: pytest.LogCaptureFixture) -> None:
    counters = EngineCounters(max_functions=2)
    with caplog.at_level(logging.WARNING, "durably.engine"):
        for number in range(5):
            counters.on_commit([started(f"app-{number}")], Group(1, 0, 0.001))
    (created,) = [metric for metric in counters.read() if metric.name == "runs_started"]
    assert {sample.labels: sample.value for sample in created.samples} == {
        ("app-0",): 1,
        ("app-1",): 1,
        (OTHER_FUNCTIONS,): 3,
    }
    assert [record.message.count("'app-2'") for record in caplog.records] == [1]


def test_hostile_names_of_functions_stay_one_label_value() -> None:
    name = 'x"} 1\nevil_total{a="b\\'
    counters = EngineCounters()
    counters.on_commit([started(name)], Group(1, 0, 0.001))
    for accept in (None, "application/openmetrics-text; version=1.0.0"):
        assert b"\nevil_total" not in write_text(counters.read(), accept)[0]
    text = write_text(counters.read(), None)[0].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert name in {sample.labels.get("function") for sample in families["durably_runs_started"].samples}


def test_names_follow_the_conventions() -> None:
    names = [family.full_name for family in CATALOGUE]
    assert len(names) == len(set(names))
    for family in CATALOGUE:
        assert family.meaning.endswith(".")
        assert bool(family.buckets) == (family.kind is MetricKind.HISTOGRAM)
        assert list(family.buckets) == sorted(family.buckets)
        assert "le" not in family.labels


async def test_every_metric_of_the_catalogue_is_read(path: Path) -> None:
    async with opened(path) as engine:
        assert sorted(metric.name for metric in await engine.read_metrics()) == sorted(
            family.name for family in CATALOGUE if not family.name.startswith("log_")
        )
