"""The overview: runs over time, what needs attention, and load by function."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from durably.engine.api.dashboard.messages import DashboardResponse
from durably.engine.api.dashboard.rendering.charts import RANGES, draw_chart, ended, total
from durably.engine.api.dashboard.visit import Live, PageError, Route, Visit
from durably.engine.model.overview import Concern, ConcernKind, FunctionInfo, FunctionLoad, Overview, RunCounts
from durably.engine.model.runs import RunStatus

DEFAULT_RANGE = "1h"


class LoadRow(msgspec.Struct, frozen=True):
    """A function, its load, and its runs in the interval."""

    function_id: str
    name: str
    load: FunctionLoad
    total: RunCounts

    @property
    def ended(self) -> int:
        return ended(self.total)


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
        case ConcernKind.STUCK_KEY | ConcernKind.PAUSED_FUNCTION:
            return f"/functions/{concern.subject}", {}


async def show_overview(visit: Visit) -> DashboardResponse:
    name, length = read_range(visit)
    until = dt.datetime.now(dt.UTC)
    overview: Overview = await visit.engine.overview(since=until - length, until=until)
    functions = await visit.engine.list_functions()
    concerns = [(concern, *await _link(visit, concern, until)) for concern in overview.concerns]
    return await visit.page(
        "overview.html",
        overview=overview,
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


ROUTES = (Route("GET", "/", show_overview, live=Live.ALL),)
