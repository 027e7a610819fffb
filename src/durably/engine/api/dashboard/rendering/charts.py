"""Layout of charts: runs over time, and ticks of schedules.

Pure functions. Charts are SVG without text, which stretches to the width of its place; labels are text of the page
beside it.
"""

import datetime as dt
from collections.abc import Sequence

import msgspec

from durably.engine.model.overview import RunCounts

OUTCOMES = ("completed", "cancelled", "skipped", "replayed", "failed")
"""The parts of a bar, from the bottom. ``failed`` are those without a completed rerun."""
HEIGHT = 100.0
_SMALLEST = 2.0
"""The least height of a part that is not zero, so that one failure among thousands is visible."""
_GAP = 0.16


class Part(msgspec.Struct, frozen=True):
    """A part of a bar. ``y`` counts from the top."""

    outcome: str
    y: float
    height: float


class Bar(msgspec.Struct, frozen=True):
    """The runs of an interval. ``x`` and ``width`` are in intervals."""

    counts: RunCounts
    x: float
    width: float
    parts: list[Part]


class Chart(msgspec.Struct, frozen=True):
    """Numbers of runs over time.

    The box is as wide as the number of intervals, and ``HEIGHT`` high. ``top`` is the number at the upper edge.
    ``labels`` are times in equal distances, from the left edge to the right.
    """

    bars: list[Bar]
    top: int
    labels: list[dt.datetime]

    @property
    def width(self) -> int:
        return max(len(self.bars), 1)

    @property
    def middle(self) -> int | None:
        """The number at half of the height, if it is an integer."""
        return None if self.top % 2 else self.top // 2


def ended(counts: RunCounts) -> int:
    return counts.completed + counts.failed + counts.cancelled + counts.skipped


def total(all_counts: Sequence[RunCounts]) -> RunCounts:
    """The sums. ``at`` is the first one's."""
    at = all_counts[0].at if all_counts else dt.datetime.fromtimestamp(0, dt.UTC)
    names = ("created", "completed", "failed", "cancelled", "skipped", "replayed")
    return RunCounts(at=at, **{name: sum(getattr(each, name) for each in all_counts) for name in names})


def draw_chart(all_counts: Sequence[RunCounts], since: dt.datetime, until: dt.datetime, *, labels: int = 5) -> Chart:
    """A stacked bar for each interval."""
    top = _round_up(max(map(ended, all_counts), default=0))
    bars = [
        Bar(counts, round(index + _GAP / 2, 3), round(1 - _GAP, 3), _stack(counts, top))
        for index, counts in enumerate(all_counts)
    ]
    step = (until - since) / (labels - 1)
    return Chart(bars, top, [since + step * number for number in range(labels)])


def _stack(counts: RunCounts, top: int) -> list[Part]:
    parts, bottom = list[Part](), HEIGHT
    for outcome in OUTCOMES:
        if number := counts.open_failures if outcome == "failed" else getattr(counts, outcome):
            height = max(number / top * HEIGHT, _SMALLEST)
            bottom = max(bottom - height, 0.0)
            parts.append(Part(outcome, round(bottom, 2), round(height, 2)))
    return parts


def _round_up(number: int) -> int:
    """The next number of the form 1, 2 or 5 times a power of ten, and at least 1."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= number:
                return digit * power
        power *= 10


class Window(msgspec.Struct, frozen=True):
    """A span of time around the present, as an axis from 0 to 1."""

    start: dt.datetime
    end: dt.datetime

    def place(self, at: dt.datetime) -> float | None:
        """The place of a time on the axis; ``None`` if it is outside."""
        share = (at - self.start) / (self.end - self.start)
        return round(share, 5) if 0 <= share <= 1 else None


RANGES = {
    "1h": dt.timedelta(hours=1),
    "6h": dt.timedelta(hours=6),
    "24h": dt.timedelta(hours=24),
    "7d": dt.timedelta(days=7),
    "30d": dt.timedelta(days=30),
}
"""The ranges of time that pages offer, by their names in URLs."""


def fitting_range(distances: Sequence[dt.timedelta]) -> str:
    """The name of the smallest range that contains all distances, or the largest."""
    return next((name for name, length in RANGES.items() if all(each <= length for each in distances)), "30d")
