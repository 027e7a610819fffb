"""Schedules, with their next and last ticks on a time line."""

import datetime as dt
from collections.abc import Sequence

import msgspec

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.rendering.charts import RANGES, Window, fitting_range
from durably.engine.dashboard.rendering.options_text import split_zone
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import Visit
from durably.engine.reports import RunLink, ScheduleView

from .overview import read_range


class Line(msgspec.Struct, frozen=True):
    """A schedule on the time line.

    ``last`` are its runs and ``next`` its ticks inside of the window, with their places.
    """

    schedule: ScheduleView
    name: str
    fields: str
    zone: str
    last: list[tuple[float, RunLink]]
    next: list[tuple[float, dt.datetime]]


def draw_lines(schedules: Sequence[ScheduleView], names: dict[str, str], window: Window) -> list[Line]:
    """The lines, those that tick next first."""
    lines = []
    for each in sorted(schedules, key=lambda each: (each.next_ticks[:1] or [window.end], each.function_id)):
        zone, fields = split_zone(each.schedule)
        last = [(place, run) for run in each.last_runs if (place := window.place(run.created_at)) is not None]
        ticks = [(place, tick) for tick in each.next_ticks if (place := window.place(tick)) is not None]
        lines.append(Line(each, names.get(each.function_id, each.function_id), fields, zone, last, ticks))
    return lines


async def show_cron(visit: Visit) -> DashboardResponse:
    schedules: list[ScheduleView] = await visit.engine.list_schedules()
    now = dt.datetime.now(dt.UTC)
    name, length = read_range(visit, fitting_range([each.next_ticks[0] - now for each in schedules if each.next_ticks]))
    names = {function.id: function.name for function in await visit.engine.list_functions()}
    window = Window(now - length, now + length)
    return await visit.page(
        "cron.html", lines=draw_lines(schedules, names, window), window=window, range=name, ranges=RANGES
    )


ROUTES = (Route("GET", "/cron", show_cron, live=Live.ALL),)
