"""The overview, apps and schedules: runs over time, what needs attention, and load by function.

Charts are SVG without text, which stretches to the width of its place; labels are text of the page beside it.
"""

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from durably.engine.model.overview import (
    App,
    Concern,
    ConcernKind,
    FunctionInfo,
    FunctionLoad,
    Overview,
    RunCounts,
    ScheduleInfo,
)
from durably.engine.model.runs import Run, RunStatus

from .messages import DashboardResponse
from .visit import Live, PageError, Route, Visit

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


def total(all_counts: Sequence[RunCounts]) -> RunCounts:
    """The sums. ``at`` is the first one's."""
    at = all_counts[0].at if all_counts else dt.datetime.fromtimestamp(0, dt.UTC)
    names = ("created", "completed", "failed", "cancelled", "skipped", "replayed")
    return RunCounts(at=at, **{name: sum(getattr(each, name) for each in all_counts) for name in names})


def draw_chart(all_counts: Sequence[RunCounts], since: dt.datetime, until: dt.datetime, *, labels: int = 5) -> Chart:
    """A stacked bar for each interval."""
    top = _round_up(max((each.ended for each in all_counts), default=0))
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


DEFAULT_RANGE = "1h"
MOST_QUESTIONS = 100
"""Open questions are counted up to this number."""


class LoadRow(msgspec.Struct, frozen=True):
    """A function, its load, and its runs in the interval."""

    function_id: str
    name: str
    load: FunctionLoad
    total: RunCounts


def read_range(visit: Visit, default: str = DEFAULT_RANGE) -> tuple[str, dt.timedelta]:
    """The name of the range of time in the URL, and its length. Raises ``PageError``."""
    name = visit.query.get("range", default)
    if name not in RANGES:
        raise PageError(400, "The range is not known", f"It must be one of {', '.join(RANGES)}, not {name!r}.")
    return name, RANGES[name]


def load_rows(loads: Sequence[FunctionLoad], functions: Sequence[FunctionInfo]) -> list[LoadRow]:
    """A row for each function, those with open failures and backlogs first."""
    names = {function.id: function.name for function in functions}
    rows = [
        LoadRow(load.function_id, names.get(load.function_id, load.function_id), load, total(load.counts))
        for load in loads
    ]
    return sorted(
        rows, key=lambda row: (-row.total.open_failures, -(row.load.backlog or 0), -row.total.created, row.function_id)
    )


def concern_link(concern: Concern) -> tuple[str, dict[str, Any]]:
    """The path and query of the page that shows what a concern is about."""
    match concern.kind:
        case ConcernKind.FAILING_FUNCTION:
            return "/runs", {"function": concern.subject, "status": RunStatus.FAILED}
        case ConcernKind.UNMATCHED_EVENTS:
            return "/events", {"name": concern.subject, "unmatched": "1"}
        case ConcernKind.UNREACHED_APP:
            return "/apps", {"app": concern.subject}
        case ConcernKind.OUTBOX:
            return "/events", {}
        case ConcernKind.STUCK_KEY | ConcernKind.PAUSED_FUNCTION:
            return f"/functions/{concern.subject}", {}


async def show_overview(visit: Visit) -> DashboardResponse:
    name, length = read_range(visit)
    until = dt.datetime.now(dt.UTC)
    functions = await visit.engine.list_functions()
    if not functions:
        return await visit.page("overview.html", functions=[], range=name)
    if not visit.info.offers("overview"):
        return visit.redirect("/runs")
    overview: Overview = await visit.engine.overview(since=until - length, until=until)
    questions = await visit.engine.list_questions(limit=MOST_QUESTIONS) if visit.info.offers("list_questions") else []
    concerns = [(concern, *await _link(visit, concern, until)) for concern in overview.concerns]
    return await visit.page(
        "overview.html",
        overview=overview,
        questions=len(questions),
        most_questions=MOST_QUESTIONS,
        total=total(overview.counts),
        chart=draw_chart(overview.counts, overview.since, overview.until),
        concerns=concerns,
        names={function.id: function.name for function in functions},
        rows=load_rows(overview.functions, functions),
        functions=functions,
        example=_example_event(functions),
        range=name,
    )


async def _link(visit: Visit, concern: Concern, now: dt.datetime) -> tuple[str, dict[str, Any]]:
    """As ``concern_link``; the failed run itself, if there is one."""
    if concern.kind is ConcernKind.FAILING_FUNCTION and concern.count == 1:
        page = await visit.engine.search_runs(
            function_id=concern.subject, status=RunStatus.FAILED, started_after=now - dt.timedelta(hours=1), limit=2
        )
        if len(page.runs) == 1:
            return f"/runs/{page.runs[0].id}", {}
    return concern_link(concern)


def _example_event(functions: Sequence[FunctionInfo]) -> str | None:
    """The name of an event that starts a run."""
    names = (trigger.event for function in functions for trigger in function.config.triggers)
    return next((name for name in names if name and "*" not in name), None)


# apps and schedules


async def show_apps(visit: Visit) -> DashboardResponse:
    apps: list[App] = await visit.engine.list_apps()
    functions = await visit.engine.list_functions()
    by_app = {app.id: [each for each in functions if each.app_id == app.id] for app in apps}
    return await visit.page("apps.html", apps=apps, by_app=by_app, chosen=visit.query.get("app"))


_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)")


def split_zone(cron: str) -> tuple[str, str]:
    """The time zone of a schedule, and its five fields."""
    found = _ZONE.fullmatch(cron)
    return (found[1], found[2]) if found else ("UTC", cron)


class ScheduleLine(msgspec.Struct, frozen=True):
    """A schedule on the time line.

    ``last`` are its last runs and ``next`` its next ticks inside of the window, with their places. If there are more of
    them than are listed, ``past`` are bars of the function's ended runs, and ``onward`` is the place from which on the
    schedule ticks in the same way.
    """

    schedule: ScheduleInfo
    name: str
    fields: str
    zone: str
    last: list[tuple[float, Run]]
    next: list[tuple[float, dt.datetime]]
    past: list["PastRuns"]
    onward: float | None


class PastRuns(msgspec.Struct, frozen=True):
    """The runs of an interval on the time line.

    ``height`` is the share of the interval with the most runs.
    """

    x: float
    width: float
    height: float
    counts: RunCounts


def draw_lines(
    schedules: Sequence[ScheduleInfo], names: dict[str, str], window: Window, loads: Sequence[FunctionLoad] = ()
) -> list[ScheduleLine]:
    """The lines, those that tick next first.

    ``loads`` have the runs of the past half of the window.
    """
    counts = {load.function_id: load.counts for load in loads}
    lines = []
    for each in sorted(schedules, key=lambda each: (each.next_ticks[:1] or [window.end], each.function_id)):
        zone, fields = split_zone(each.schedule)
        last = [(place, run) for run in each.last_runs if (place := window.place(run.created_at)) is not None]
        ticks = [(place, tick) for tick in each.next_ticks if (place := window.place(tick)) is not None]
        past = _past_runs(counts.get(each.function_id, []), window)
        is_listed = not last or sum(bar.counts.ended for bar in past) <= len(last)
        goes_on = len(ticks) == len(each.next_ticks) > 1
        lines.append(
            ScheduleLine(
                schedule=each,
                name=names.get(each.function_id, each.function_id),
                fields=fields,
                zone=zone,
                last=last if is_listed else [],
                next=ticks,
                past=[] if is_listed else past,
                onward=ticks[-1][0] if goes_on else None,
            )
        )
    return lines


def _past_runs(counts: Sequence[RunCounts], window: Window) -> list[PastRuns]:
    if len(counts) < 2:
        return []
    width = (counts[1].at - counts[0].at) / (window.end - window.start)
    most = max(each.ended for each in counts) or 1
    # The first interval may begin before the window, and the last one end after the present.
    places = [(max((each.at - window.start) / (window.end - window.start), 0.0), each) for each in counts]
    return [PastRuns(x, min(width, 0.5 - x), each.ended / most, each) for x, each in places if each.ended and x < 0.5]


async def show_cron(visit: Visit) -> DashboardResponse:
    schedules: list[ScheduleInfo] = await visit.engine.list_schedules()
    now = dt.datetime.now(dt.UTC)
    name, length = read_range(visit, fitting_range([each.next_ticks[0] - now for each in schedules if each.next_ticks]))
    names = {function.id: function.name for function in await visit.engine.list_functions()}
    window = Window(now - length, now + length)
    has_loads = schedules and visit.info.offers("function_loads")
    loads = await visit.engine.function_loads(since=now - length, until=now) if has_loads else []
    return await visit.page(
        "cron.html", lines=draw_lines(schedules, names, window, loads), window=window, range=name, ranges=RANGES
    )


ROUTES = (
    Route("GET", "/", show_overview, live=Live.ALL),
    Route("GET", "/apps", show_apps, live=Live.ALL, needs="list_apps"),
    Route("GET", "/cron", show_cron, live=Live.ALL, needs="list_schedules"),
)
