"""The list of runs: newest first, filtered by the URL."""

import asyncio
import datetime as dt
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from durably.engine.core.errors import NotSupportedError, SelectionInvalidError
from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import PageError, Visit
from durably.engine.interface import Engine
from durably.engine.operations import read_status
from durably.engine.reports import EngineInfo, Feature, MatchCount, RunPage
from durably.engine.views import FunctionView, RunStatus
from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339

from .run_columns import COOKIE, Column, describe_output, read_columns, write_columns
from .selected_runs import read_notice

PAGE_SIZE = 50
SEARCH_SECONDS = 1.0
_ID = re.compile(r"[0-9A-Za-z]+")
_LEAST_PART = 3
"""Characters of a part of a name. Fewer are the end of an id."""
PERIODS = (
    ("15m", "15 minutes"),
    ("1h", "Hour"),
    ("6h", "6 hours"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
)
_MORE_FILTERS = ("app", "event", "from", "until", "if")
_COUNTED = ("function_id", "app_id", "event_name", "started_after", "started_before")
"""The conditions that counts can have."""
_FILTERS = ("status", "function", "since", "id", *_MORE_FILTERS)


async def show_runs(visit: Visit) -> DashboardResponse:
    query, conditions = visit.query, read_filter(visit.query)
    (found, error), counts, functions = await asyncio.gather(
        _find(visit.engine, conditions, query.get("cursor")),
        _count(visit.engine, conditions),
        visit.engine.list_functions(),
    )
    if "if" in query or "cursor" in query:  # An older page does not change, and an expression costs more.
        visit.live = None
    kept = {name: value for name, value in query.items() if name in (*_FILTERS, "cursor")}
    return await visit.page(
        "runs.html",
        found=found,
        current=conditions["status"],
        statuses=_statuses(visit.info),
        counts=counts if functions or found.runs else None,
        columns=read_columns(visit.request),
        all_columns=[*Column],
        describe_output=describe_output,
        kept=kept,
        may={action: await visit.may(action) for action in ("cancel_run", "rerun")},
        notice=read_notice(query),
        error=error,
        functions=functions,
        names={function.id: function.name for function in functions},
        apps=sorted({function.app_id for function in functions}),
        periods=PERIODS,
        is_filtered=any(name in query for name in _FILTERS),
        has_more=any(name in query for name in _MORE_FILTERS),
        failure_of=_failure_of,
        an_event=next((trigger.event for each in functions for trigger in each.config.triggers if trigger.event), None),
    )


async def choose_columns(visit: Visit) -> DashboardResponse:
    """Keep the reader's choice of columns, and go back to the list with its filter."""
    visit.keep_cookie(COOKIE, write_columns(visit.query))
    return visit.redirect("/runs", **{name: value for name, value in visit.query.items() if name in _FILTERS})


def _statuses(info: EngineInfo) -> list[RunStatus]:
    """The statuses for which the engine can filter."""
    return [each for each in RunStatus if each is not RunStatus.SCHEDULED or Feature.SCHEDULED_RUNS not in info.missing]


async def _find(engine: Engine, conditions: Mapping[str, Any], cursor: str | None) -> tuple[RunPage, str | None]:
    """The next runs that meet the conditions, or none and the reason."""
    try:
        return await _search(engine, conditions, cursor), None
    except SelectionInvalidError as invalid:
        return RunPage(runs=[], cursor=None), invalid.message


async def _count(engine: Engine, conditions: Mapping[str, Any]) -> dict[RunStatus, MatchCount] | None:
    """Numbers of the runs that meet the conditions besides the status, by status.

    ``None`` if the engine does not count them, as for an expression or an id.
    """
    if conditions["if_exp"] or conditions["id"]:
        return None
    try:
        found = await engine.count_runs(**{name: conditions[name] for name in _COUNTED})
    except NotSupportedError:
        return None
    return found.counts


async def _search(engine: Engine, conditions: Mapping[str, Any], cursor: str | None) -> RunPage:
    """The next runs that meet the conditions.

    The engine ends a search after a number of runs, also if none meets them. The search is continued for some time.
    """
    ends = time.monotonic() + SEARCH_SECONDS
    while True:
        found = await engine.search_runs(**conditions, limit=PAGE_SIZE, cursor=cursor)
        if found.runs or found.cursor is None or time.monotonic() >= ends:
            return found
        cursor = found.cursor


def read_filter(query: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of ``search_runs`` for the fields of a filter.

    Raises ``PageError``.
    """
    return {
        "status": read_status(query["status"]) if "status" in query else None,
        "function_id": query.get("function"),
        "app_id": query.get("app"),
        "event_name": query.get("event"),
        "started_after": _read_time(query, "from") or _read_period(query),
        "started_before": _read_time(query, "until"),
        "if_exp": query.get("if"),
        "id": query.get("id"),
    }


def _read_time(query: Mapping[str, str], name: str) -> dt.datetime | None:
    if name not in query:
        return None
    if (time := parse_rfc3339(query[name])) is None:
        raise PageError(400, "The time is not valid", f"{name} must be a time in UTC like 2026-01-31T12:00.")
    return time


def _read_period(query: Mapping[str, str]) -> dt.datetime | None:
    if "since" not in query:
        return None
    try:
        return dt.datetime.now(dt.UTC) - parse_duration(query["since"])
    except (DurationInvalidError, OverflowError) as error:
        raise PageError(400, "The period is not valid", f"since: {error}") from None


def _failure_of(run: Any) -> str | None:
    """The error of a failed run in a line.

    The reason, if the run was cancelled or skipped.
    """
    output = run.decode_output() if run.output is not None and run.status != "Completed" else None
    if not isinstance(output, dict):
        return None
    message = str(output.get("message") or "")
    first = message.strip().partition("\n")[0][:300]
    return f"{output.get('name') or 'Error'}: {first}" if run.status == "Failed" else first


def _named_function(functions: Sequence[FunctionView], text: str) -> str | None:
    """The id of the function that the text names.

    The text is its id, its name, or a part that no other function has.
    """
    wanted = text.casefold()
    for function in functions:
        if wanted in (function.id.casefold(), function.name.casefold()):
            return function.id
    if len(text) < _LEAST_PART:
        return None
    found = [each.id for each in functions if wanted in each.id.casefold() or wanted in each.name.casefold()]
    return found[0] if len(found) == 1 else None


async def find(visit: Visit) -> DashboardResponse:
    """Go to the run or event with an id, to a function, or to the events of a name.

    Otherwise to the list of the runs that the text may mean.
    """
    text = visit.query.get("q", "")
    if not text:
        return visit.redirect("/runs")
    if (function_id := _named_function(await visit.engine.list_functions(), text)) is not None:
        return visit.redirect(f"/functions/{quote(function_id, safe='')}")
    if (await visit.engine.search_events(name=text, limit=1)).events:
        return visit.redirect("/events", name=text)
    if not _ID.fullmatch(text):
        return visit.redirect("/runs", id=text)
    runs = (await visit.engine.search_runs(id=text, limit=2)).runs
    # The others are runs of an event with this id.
    named = [run.id for run in runs if run.id.endswith(text.upper())]
    if len(named) == 1:
        return visit.redirect(f"/runs/{named[0]}")
    events = [] if named else (await visit.engine.search_events(id=text, limit=2)).events
    return visit.redirect(f"/events/{events[0].event.id}") if len(events) == 1 else visit.redirect("/runs", id=text)


ROUTES = (
    Route("GET", "/search", find),
    Route("GET", "/runs", show_runs, live=Live.ALL),
    Route("GET", "/runs/columns", choose_columns),
)
