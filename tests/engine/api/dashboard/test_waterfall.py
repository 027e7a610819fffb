"""The waterfall of runs on a virtual clock: rows, bars, ticks and windows."""

import asyncio
import datetime as dt

import msgspec
import pytest

import durably
from durably.engine.api.dashboard.waterfall import Waterfall, Window, lay_out
from durably.engine.model.runs import Attempt, RunReport, Span, SpanKind, StepStatus
from durably.protocol.errors import ErrorData
from durably.testing.engine import TestEngine

SECOND = dt.timedelta(seconds=1)


async def report_of_day() -> RunReport:
    client = durably.Client(app_id="day")

    @client.create_function(fn_id="day", trigger=durably.TriggerEvent(event="day/began"), retries=1)
    async def day(ctx: durably.Context) -> None:
        await ctx.step.sleep("night", dt.timedelta(hours=6))

        async def morning() -> None:
            await ctx.step.sleep("tea", dt.timedelta(hours=2))

        await asyncio.gather(
            ctx.step.wait_for_event("visitor", event="visitor/came", timeout=dt.timedelta(hours=4)), morning()
        )
        await ctx.step.run("work", fail)

    async def fail() -> None:
        raise OSError("no")

    async with TestEngine(client, [day]) as engine:
        run = await engine.send(durably.Event(name="day/began"))
        await run.wait()
        report = await engine._engine.inspect_run(run.id)
        assert report is not None
        return report


def rows(waterfall: Waterfall) -> dict[str, list[tuple[str, int, int]]]:
    """Kinds, positions and widths in percents."""
    return {
        row.label: [(bar.kind.value, round(bar.x), round(bar.width)) for bar in row.bars if bar.width > 1]
        for row in waterfall.rows
    }


async def test_bars_are_on_one_axis_of_time() -> None:
    report = await report_of_day()
    waterfall = lay_out(report, report.run.created_at)
    found = rows(waterfall)
    assert found["night"] == [("sleeping", 0, 60)]
    assert found["tea"] == [("sleeping", 60, 20)]  # beside the wait
    assert found["visitor"] == [("waiting", 60, 40)]
    assert [row.label for row in waterfall.rows] == ["Run", "night", "tea", "visitor", "work"]
    assert {SpanKind.SLEEPING, SpanKind.WAITING} <= set(waterfall.kinds)
    assert [tick.text for tick in waterfall.ticks] == ["0", "2h", "4h", "6h", "8h", "10h"]


async def test_a_failed_attempt_has_a_bar_or_else_a_mark() -> None:
    report = await report_of_day()
    work = lay_out(report, report.run.created_at).rows[-1]
    assert (work.label, work.status, work.failures) == ("work", "failed", 2)
    assert [bar.outcome for bar in work.bars if bar.kind is SpanKind.RUNNING] == ["failed", "failed"]
    assert work.marks == []
    step = report.steps[-1]
    unknown = msgspec.structs.replace(step, spans=[span for span in step.spans if span.attempt != 0])
    rows = lay_out(msgspec.structs.replace(report, steps=[unknown]), report.run.created_at).rows
    assert [mark.text for mark in rows[-1].marks] == ["attempt 1 failed: OSError"]


async def test_a_step_that_completed_after_an_unreached_call_ends_with_a_completed_bar() -> None:
    report = await report_of_day()
    began, error = report.run.created_at, ErrorData(name="AppUnreachableError", message="refused")
    spans = [
        Span(kind=kind, start=began + start * SECOND, end=began + (start + 1) * SECOND, attempt=attempt)
        for start, (kind, attempt) in enumerate(
            [
                (SpanKind.RUNNING, 0),
                (SpanKind.RETRYING, 0),
                (SpanKind.QUEUED, 1),
                (SpanKind.RETRYING, 1),
                (SpanKind.RUNNING, 1),
            ]
        )
    ]
    attempts = [
        Attempt(attempt=0, ended_at=began, error=ErrorData(name="OSError")),
        Attempt(attempt=1, ended_at=began, error=error, is_unreached=True),
    ]
    step = msgspec.structs.replace(
        report.steps[-1], status=StepStatus.COMPLETED, attempts=2, spans=spans, failed_attempts=attempts, error=None
    )
    waterfall = lay_out(msgspec.structs.replace(report, steps=[step]), began + 5 * SECOND)
    row = waterfall.rows[-1]
    assert [bar.outcome for bar in row.bars if bar.kind is SpanKind.RUNNING] == ["failed", "completed"]
    assert (row.failures, row.marks) == (1, [])
    assert waterfall.outcomes == [("completed", "ran"), ("failed", "failed")]


async def test_a_window_shows_a_part() -> None:
    report = await report_of_day()
    hour = 3_600_000
    waterfall = lay_out(report, report.run.created_at, f"{6 * hour}-{8 * hour}")
    assert waterfall.is_zoomed
    found = rows(waterfall)
    assert found["tea"] == [("sleeping", 0, 100)]
    assert found["visitor"] == [("waiting", 0, 102)]  # to beyond the edge, which cuts it off
    assert found["night"] == [("sleeping", -2, 2)]
    assert waterfall.ticks[0].text == "6h"


async def test_bar_of_a_live_step_ends_now() -> None:
    report = await report_of_day()
    run = report.run
    began = run.created_at
    step = msgspec.structs.replace(
        report.steps[0], ended_at=None, spans=[Span(kind=SpanKind.SLEEPING, start=began + 5 * SECOND, end=None)]
    )
    live = msgspec.structs.replace(
        report, run=msgspec.structs.replace(run, ended_at=None), steps=[step], spans=[], failed_attempts=[]
    )
    waterfall = lay_out(live, began + 20 * SECOND)
    assert rows(waterfall)["night"] == [("sleeping", 25, 75)]
    assert waterfall.rows[1].since is not None
    assert waterfall.whole == Window(0, 20_000)


WHOLE = Window(0, 1000)


@pytest.mark.parametrize("text", [None, "", "x", "5", "9-3", "-1-5", "1000-2000", "1e3-2e3", "1-" + "9" * 30])
def test_a_window_that_is_not_valid_is_the_whole_axis(text: str | None) -> None:
    assert Window.parse(text, WHOLE) == WHOLE


def test_zooming_stays_within_the_axis() -> None:
    assert WHOLE.zoom(0.5, WHOLE) == Window(250, 750)
    assert Window(0, 100).zoom(2, WHOLE) == Window(0, 200)
    assert Window(900, 1000).zoom(4, WHOLE) == Window(600, 1000)
    assert Window(500, 501).zoom(0.5, WHOLE) == Window(500, 501)
    assert Window(100, 900).zoom(2, WHOLE) == WHOLE
