"""Charts: places and heights of what they draw."""

import datetime as dt

import pytest
from msgspec.structs import replace

from durably.engine.api.dashboard.overview import (
    HEIGHT,
    RANGES,
    Window,
    draw_chart,
    draw_lines,
    fitting_range,
    total,
)
from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import FunctionLoad, RunCounts, ScheduleInfo
from durably.engine.model.runs import Run

SINCE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def counts(**numbers: int) -> RunCounts:
    return RunCounts(at=SINCE, **numbers)


def test_parts_of_a_bar_are_stacked_in_proportion() -> None:
    chart = draw_chart([counts(completed=60, failed=20, cancelled=20)], SINCE, SINCE + MINUTE)
    assert chart.top == 100
    [bar] = chart.bars
    assert [(part.outcome, part.y, part.height) for part in bar.parts] == [
        ("completed", 40.0, 60.0),
        ("cancelled", 20.0, 20.0),
        ("failed", 0.0, 20.0),
    ]


def test_failures_that_a_rerun_has_mended_are_a_part_of_their_own() -> None:
    [bar] = draw_chart([counts(completed=6, failed=4, replayed=3)], SINCE, SINCE + MINUTE).bars
    assert [(part.outcome, part.height) for part in bar.parts] == [
        ("completed", 60.0),
        ("replayed", 30.0),
        ("failed", 10.0),
    ]


def test_one_failure_among_thousands_is_visible_and_inside() -> None:
    [bar] = draw_chart([counts(completed=10_000, failed=1)], SINCE, SINCE + MINUTE).bars
    assert all(part.height >= 2 and 0 <= part.y <= HEIGHT for part in bar.parts)
    assert [part.outcome for part in bar.parts] == ["completed", "failed"]


def test_counts_are_summed() -> None:
    summed = total([counts(created=3, completed=1, failed=2), counts(created=1, skipped=4)])
    assert summed == counts(created=4, completed=1, failed=2, skipped=4)
    assert summed.ended == 7
    assert total([]).ended == 0


def test_places_in_a_window() -> None:
    window = Window(SINCE, SINCE + 4 * MINUTE)
    assert window.place(SINCE + MINUTE) == 0.25
    assert window.place(SINCE - MINUTE) is None
    assert window.place(SINCE + 5 * MINUTE) is None


def test_the_smallest_range_that_contains_all_distances() -> None:
    assert fitting_range([]) == "1h"
    assert fitting_range([MINUTE, 90 * MINUTE]) == "6h"
    assert fitting_range([dt.timedelta(days=400)]) == list(RANGES)[-1]


def schedule(*ticks: dt.datetime, runs: int = 0) -> ScheduleInfo:
    last = [
        Run(
            id=f"R{n}",
            function_id="f",
            app_id="a",
            status=RunStatus.COMPLETED,
            event_ids=[],
            created_at=SINCE - n * MINUTE,
            max_attempts=1,
        )
        for n in range(1, runs + 1)
    ]
    return ScheduleInfo(function_id="f", schedule="* * * * *", next_ticks=list(ticks), last_runs=last, is_paused=False)


def test_a_schedule_that_ticks_often_fills_the_time_line() -> None:
    window = Window(SINCE - 60 * MINUTE, SINCE + 60 * MINUTE)
    often = schedule(*(SINCE + n * MINUTE for n in range(1, 6)), runs=5)
    each_minute = [replace(counts(completed=1, failed=n == 3), at=SINCE - n * MINUTE) for n in range(60, -1, -1)]
    load = FunctionLoad(function_id="f", backlog=0, queue_delay=None, in_flight=0, live=0, counts=each_minute)
    [line] = draw_lines([often], {}, window, [load])
    assert len(line.past) == 60, "all runs of the past, and not the last five"
    assert line.last == []
    assert (line.past[0].x, line.past[-1].x + line.past[-1].width) == (0.0, pytest.approx(0.5))
    assert [bar.height for bar in line.past[-4:-1]] == [0.5, 1.0, 0.5]
    assert line.onward == line.next[-1][0] == window.place(SINCE + 5 * MINUTE)


def test_a_schedule_that_ticks_rarely_has_its_runs_and_ticks() -> None:
    window = Window(SINCE - 60 * MINUTE, SINCE + 60 * MINUTE)
    rare = schedule(SINCE + 30 * MINUTE, SINCE + 90 * MINUTE, runs=1)
    load = FunctionLoad(
        function_id="f",
        backlog=0,
        queue_delay=None,
        in_flight=0,
        live=0,
        counts=[replace(counts(completed=n), at=SINCE - (2 - n) * MINUTE) for n in range(2)],
    )
    [line] = draw_lines([rare], {}, window, [load])
    assert (len(line.last), len(line.next), line.past, line.onward) == (1, 1, [], None)
