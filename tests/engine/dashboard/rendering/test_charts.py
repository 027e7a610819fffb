"""Charts: places and heights of what they draw."""

import datetime as dt

import pytest

from durably.engine.dashboard.rendering.charts import HEIGHT, RANGES, Window, draw_chart, ended, fitting_range, total
from durably.engine.reports import RunCounts

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


@pytest.mark.parametrize(("most", "top"), [(0, 1), (1, 1), (3, 5), (7, 10), (10, 10), (11, 20), (340, 500)])
def test_the_upper_edge_is_a_round_number(most: int, top: int) -> None:
    assert draw_chart([counts(completed=most)], SINCE, SINCE + MINUTE).top == top


def test_bars_are_side_by_side_and_labels_equally_far_apart() -> None:
    chart = draw_chart([counts(completed=1)] * 4, SINCE, SINCE + 4 * MINUTE)
    assert chart.width == 4
    assert all(left.x + left.width < right.x for left, right in zip(chart.bars, chart.bars[1:], strict=False))
    assert chart.labels == [SINCE + number * MINUTE for number in range(5)]


def test_a_chart_of_nothing_has_a_width() -> None:
    chart = draw_chart([], SINCE, SINCE + MINUTE)
    assert (chart.width, chart.bars, chart.top) == (1, [], 1)


def test_counts_are_summed() -> None:
    summed = total([counts(created=3, completed=1, failed=2), counts(created=1, skipped=4)])
    assert summed == counts(created=4, completed=1, failed=2, skipped=4)
    assert ended(summed) == 7
    assert ended(total([])) == 0


def test_places_in_a_window() -> None:
    window = Window(SINCE, SINCE + 4 * MINUTE)
    assert window.place(SINCE + MINUTE) == 0.25
    assert window.place(SINCE - MINUTE) is None
    assert window.place(SINCE + 5 * MINUTE) is None


def test_the_smallest_range_that_contains_all_distances() -> None:
    assert fitting_range([]) == "1h"
    assert fitting_range([MINUTE, 90 * MINUTE]) == "6h"
    assert fitting_range([dt.timedelta(days=400)]) == list(RANGES)[-1]
