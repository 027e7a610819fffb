"""The list of runs, the search, and changes of many runs: the selected ones, or those of a function that match.

The newest run is first. The URL has the filter.
"""

import asyncio
import datetime as dt
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from durably.engine.api.interface import Engine
from durably.engine.api.operations import read_status
from durably.engine.model.overview import FunctionInfo
from durably.engine.model.runs import MatchCount, RunPage, RunStatus
from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339
from durably.protocol.engine_errors import EngineError, SelectionInvalidError

from .formats import FormError, read_time, write_time
from .functions import find_function, function_path
from .messages import CSRF_FIELD, DashboardResponse
from .visit import Live, PageError, Route, Visit

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
        _count(visit, conditions),
        visit.engine.list_functions(),
    )
    if "if" in query or "cursor" in query:  # An older page does not change, and an expression costs more.
        visit.live = None
    kept = {name: value for name, value in query.items() if name in (*_FILTERS, "cursor")}
    return await visit.page(
        "runs.html",
        found=found,
        current=conditions["status"],
        conditions=conditions,
        current_from=conditions["started_after"] if "from" in query else None,
        write_time=write_time,
        statuses=[each for each in RunStatus if visit.info.offers(f"search_runs.status.{each}")],
        counts=counts if functions or found.runs else None,
        kept=kept,
        may={action: await visit.may(action) for action in ("cancel_run", "rerun")},
        error=error,
        functions=functions,
        names={function.id: function.name for function in functions},
        apps=sorted({function.app_id for function in functions}),
        periods=PERIODS,
        is_search=query.keys() == {"id"},
        is_filtered=any(name in query for name in _FILTERS),
        has_more=any(name in query for name in _MORE_FILTERS),
        failure_of=_failure_of,
        an_event=next((trigger.event for each in functions for trigger in each.config.triggers if trigger.event), None),
    )


async def _find(engine: Engine, conditions: Mapping[str, Any], cursor: str | None) -> tuple[RunPage, str | None]:
    """The next runs that meet the conditions, or none and the reason."""
    try:
        return await _search(engine, conditions, cursor), None
    except SelectionInvalidError as invalid:
        return RunPage(runs=[], cursor=None), invalid.message


async def _count(visit: Visit, conditions: Mapping[str, Any]) -> dict[RunStatus, MatchCount] | None:
    """Numbers of the runs that meet the conditions besides the status, by status.

    ``None`` if the engine does not count them, as for an expression or an id.
    """
    if conditions["if_exp"] or conditions["id"] or not visit.info.offers("count_runs"):
        return None
    return (await visit.engine.count_runs(**{name: conditions[name] for name in _COUNTED})).counts


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


# search


def _named_function(functions: Sequence[FunctionInfo], text: str) -> str | None:
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
    has_events = visit.info.offers("search_events")
    if has_events and (await visit.engine.search_events(name=text, limit=1)).events:
        return visit.redirect("/events", name=text)
    if not _ID.fullmatch(text):
        return visit.redirect("/runs", id=text)
    runs = (await visit.engine.search_runs(id=text, limit=2)).runs
    # The others are runs of an event with this id.
    named = [run.id for run in runs if run.id.endswith(text.upper())]
    if len(named) == 1:
        return visit.redirect(f"/runs/{named[0]}")
    events = [] if named or not has_events else (await visit.engine.search_events(id=text, limit=2)).events
    if len(events) == 1:
        return visit.redirect(f"/events/{events[0].event.id}")
    return visit.redirect("/runs", id=text)


# actions on the selected runs


_FIELD = re.compile(r"run-([0-9A-Za-z]{1,64})")


async def change_selected(visit: Visit, *, action: str) -> DashboardResponse:
    """Cancel or rerun the runs whose boxes are checked."""
    selected = [found[1] for name in visit.form if (found := _FIELD.fullmatch(name))]
    if not selected:
        raise PageError(400, "No run is selected", "Go back, select runs by the boxes of their rows, and try again.")
    change = visit.engine.cancel_run if action == "cancel_run" else visit.engine.rerun
    refused = 0
    for run_id in selected:
        try:
            if await visit.may(action, run_id):
                await change(run_id)
            else:
                refused += 1
        except EngineError:
            refused += 1
    return visit.redirect("/runs", **visit.query, notice="some-refused" if refused else f"selected-{action}")


# bulk operations on the runs of a function, with a preview of their number


LIVE = (RunStatus.SCHEDULED, RunStatus.RUNNING)
ENDED = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED, RunStatus.COMPLETED)


class BulkForm(msgspec.Struct, frozen=True):
    """The runs that a person has selected.

    ``before`` is by default the time of the preview, so that runs that are created later do not count.
    """

    statuses: tuple[RunStatus, ...]
    after: dt.datetime | None
    before: dt.datetime
    expression: str | None

    @classmethod
    def read(cls, fields: Mapping[str, str], *, is_replay: bool, now: dt.datetime) -> "BulkForm":
        """Raises ``FormError``."""
        chosen = tuple(status for status in ENDED if f"status-{status.lower()}" in fields)
        if is_replay and not chosen and fields:
            raise FormError("Choose at least one status of the runs to replay.")
        return cls(
            statuses=(chosen or (RunStatus.FAILED,)) if is_replay else LIVE,
            after=read_time("Created from", fields.get("after")),
            before=read_time("Created before", fields.get("before")) or now,
            expression=fields.get("if"),
        )

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form that has this selection."""
        chosen = {f"status-{status.lower()}": "1" for status in self.statuses if status in ENDED}
        times = {"after": write_time(self.after), "before": write_time(self.before)}
        return {**times, "if": self.expression or "", **chosen}


async def show_bulk(
    visit: Visit, fields: Mapping[str, str] | None = None, *, is_replay: bool, error: str | None = None
) -> DashboardResponse:
    """The form and, if it was filled in, the number of runs that it selects.

    ``fields`` are by default those of the URL.
    """
    fields = visit.query if fields is None else fields
    function_id = visit.arguments["function_id"]
    function = find_function(await visit.engine.list_functions(), function_id)
    form, matches = None, None
    if fields and error is None:
        try:
            form = BulkForm.read(fields, is_replay=is_replay, now=_end_of_second())
            matches = await visit.engine.count_matching_runs(
                function_id,
                statuses=form.statuses,
                started_after=form.after,
                started_before=form.before,
                if_exp=form.expression,
            )
        except FormError as invalid:
            error = str(invalid)
        except EngineError as refusal:
            error = refusal.message
    values: dict[str, Any] = {
        "function": function,
        "is_replay": is_replay,
        "ended_statuses": ENDED,
        "fields": fields or {"status-failed": "1"},
        "selection": form.fields if form else {},
        "matches": matches,
        "error": error,
        "may_resume": is_replay and await visit.may("resume_function", function_id),
        "may": await visit.may("replay_runs" if is_replay else "cancel_runs", function_id),
    }
    return await visit.page("bulk.html", status=200 if error is None else 422, **values)


def _end_of_second() -> dt.datetime:
    """The present, rounded up to the seconds that the form's field has."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)).replace(microsecond=0)


async def start_bulk(visit: Visit, *, is_replay: bool) -> DashboardResponse:
    function_id, engine = visit.arguments["function_id"], visit.engine
    fields = {name: value for name, value in visit.form.items() if name != CSRF_FIELD}
    try:
        form = BulkForm.read(fields, is_replay=is_replay, now=_end_of_second())
        selection: dict[str, Any] = {
            "started_after": form.after,
            "started_before": form.before,
            "if_exp": form.expression,
        }
        if is_replay:
            await engine.replay_runs(function_id, statuses=form.statuses, **selection)
        else:
            await engine.cancel_runs(function_id, **selection)
    except FormError as error:
        return await show_bulk(visit, fields, is_replay=is_replay, error=str(error))
    except EngineError as error:
        return await show_bulk(visit, fields, is_replay=is_replay, error=error.message)
    return visit.redirect(function_path(function_id), notice="replaying" if is_replay else "cancelling")


_ONE = "/functions/{function_id}"
ROUTES = (
    Route("GET", "/search", find),
    Route("GET", "/runs", show_runs, live=Live.ALL),
    Route("POST", "/runs/cancel-selected", partial(change_selected, action="cancel_run"), action="cancel_run"),
    Route("POST", "/runs/rerun-selected", partial(change_selected, action="rerun"), action="rerun"),
    Route("GET", f"{_ONE}/cancel", partial(show_bulk, is_replay=False), needs="cancel_runs"),
    Route("POST", f"{_ONE}/cancel", partial(start_bulk, is_replay=False), action="cancel_runs", subject="function_id"),
    Route("GET", f"{_ONE}/replay", partial(show_bulk, is_replay=True), needs="replay_runs"),
    Route("POST", f"{_ONE}/replay", partial(start_bulk, is_replay=True), action="replay_runs", subject="function_id"),
)
