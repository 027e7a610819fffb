"""Functions, their apps and schedules, and what can be done to a function.

Schedules have their last and next ticks on a time line.
"""

import datetime as dt
from collections.abc import Sequence
from urllib.parse import urlencode

import msgspec

from durably.engine.api.dashboard.messages import DashboardResponse
from durably.engine.api.dashboard.rendering.charts import RANGES, Window, draw_chart, ended, fitting_range, total
from durably.engine.api.dashboard.rendering.formats import FormError, read_object, write_last
from durably.engine.api.dashboard.rendering.options_text import describe_options, describe_trigger, split_zone
from durably.engine.api.dashboard.visit import Live, Notice, PageError, Route, Visit
from durably.engine.model.overview import AppReport, FunctionInfo, FunctionLoad, RunCounts, ScheduleInfo
from durably.engine.model.runs import RunLink
from durably.protocol.engine_errors import EngineError

from .overview import load_rows, read_range

_LAST_OPERATIONS = 5


async def show_functions(visit: Visit) -> DashboardResponse:
    name, length = read_range(visit)
    until = dt.datetime.now(dt.UTC)
    app_id, text = visit.query.get("app"), visit.query.get("q", "").lower()
    everything = await visit.engine.list_functions()
    functions = {
        function.id: function
        for function in everything
        if app_id in (None, function.app_id) and (text in function.id.lower() or text in function.name.lower())
    }
    loads = await visit.engine.function_loads(since=until - length, until=until)
    rows = load_rows([load for load in loads if load.function_id in functions], everything)
    return await visit.page(
        "functions.html",
        rows=sorted(rows, key=lambda row: (functions[row.function_id].app_id, row.name.lower(), row.function_id)),
        functions=functions,
        triggers={function.id: list(map(describe_trigger, function.config.triggers)) for function in everything},
        apps=sorted({function.app_id for function in everything}),
        has_any=bool(everything),
        range=name,
    )


async def show_function(visit: Visit) -> DashboardResponse:
    return await _function_page(visit, text=None, error=None)


async def _function_page(visit: Visit, *, text: str | None, error: str | None) -> DashboardResponse:
    """``text`` is in the form of an invocation, with the ``error`` that it has.

    By default it is the data of the event of the function's last run.
    """
    function_id = visit.arguments["function_id"]
    name, length = read_range(visit, "24h")
    until = dt.datetime.now(dt.UTC)
    report = await visit.engine.inspect_function(function_id, since=until - length)
    if report is None:
        raise PageError(404, "There is no such function", "The id may be mistyped, or its app no longer serves it.")
    function, load = report.function, report.load
    summed = total(load.counts)
    cancellations = [each for each in await visit.engine.list_cancellations() if each.function_id == function_id]
    replays = [each for each in await visit.engine.list_replays() if each.function_id == function_id]
    operations = [("Cancellation", each) for each in cancellations] + [("Replay", each) for each in replays]
    operations.sort(key=lambda each: each[1].created_at, reverse=True)
    actions = ("pause_function", "resume_function", "invoke", "cancel_runs", "replay_runs")
    may = {action: await visit.may(action, function_id) for action in actions}
    return await visit.page(
        "function.html",
        status=200 if error is None else 422,
        report=report,
        function=function,
        load=load,
        longest=max((step.p95 for step in report.steps), default=0.0),
        total=summed,
        ended=ended(summed),
        chart=draw_chart(load.counts, until - length, until),
        triggers=list(map(describe_trigger, function.config.triggers)),
        options=describe_options(function.config),
        has_cron=any(trigger.cron for trigger in function.config.triggers),
        operations=operations[:_LAST_OPERATIONS],
        may=may,
        may_stop=await visit.may("delete_cancellation", function_id),
        text=(await _last_data(visit, function_id) if may["invoke"] else "{}") if text is None else text,
        error=error,
        range=name,
        **({} if (notice := _bulk_notice(visit, function_id)) is None else {"notice": notice}),
    )


def _bulk_notice(visit: Visit, function_id: str) -> Notice | None:
    """The notice after a bulk operation.

    The URL has its kind and the number of the preview.
    """
    did, count = visit.query.get("did"), visit.query.get("done", "")
    if did not in ("replay", "cancel"):
        return None
    is_number = count.isascii() and count.isdecimal() and len(count) < 10
    runs = "The runs are" if not is_number else "1 run is" if int(count) == 1 else f"{int(count):,} runs are"
    words = "replayed" if did == "replay" else "cancelled"
    fields = {"since": "15m"} if did == "replay" else {"status": "Cancelled"}
    path = f"/runs?{urlencode({'function': function_id, **fields})}"
    return Notice(f"{runs} being {words}.", link=("Show them", path))


async def _last_data(visit: Visit, function_id: str) -> str:
    """The data of the event that started the function's last run, as text for a form."""
    page = await visit.engine.search_runs(function_id=function_id, limit=1)
    event_id = page.runs[0].event_id if page.runs else None
    event = None if event_id is None else await visit.engine.get_event(event_id)
    return "{}" if event is None else write_last(event)


async def pause(visit: Visit) -> DashboardResponse:
    await visit.engine.pause_function(visit.arguments["function_id"])
    return _return_to_function(visit, "paused")


async def resume(visit: Visit) -> DashboardResponse:
    await visit.engine.resume_function(visit.arguments["function_id"])
    return _return_to_function(visit, "resumed")


async def invoke(visit: Visit) -> DashboardResponse:
    text = visit.form.get("data", "{}")
    try:
        receipt = await visit.engine.invoke(visit.arguments["function_id"], read_object(text))
    except FormError as error:
        return await _function_page(visit, text=text, error=str(error))
    except EngineError as error:
        return await _function_page(visit, text=text, error=error.message)
    # Without a run, the event's page has the reason.
    if receipt.run_id:
        return visit.redirect(f"/runs/{receipt.run_id}", notice="invoked")
    return visit.redirect(f"/events/{receipt.event_id}", notice="not-invoked")


async def stop_cancellation(visit: Visit) -> DashboardResponse:
    cancellation = await visit.engine.get_cancellation(visit.arguments["cancellation_id"])
    if cancellation is None or cancellation.function_id != visit.arguments["function_id"]:
        raise PageError(404, "There is no such cancellation", "It is not one of this function, or was deleted.")
    await visit.engine.delete_cancellation(cancellation.id)
    return _return_to_function(visit, "stopped")


def _return_to_function(visit: Visit, notice: str) -> DashboardResponse:
    return visit.redirect(function_path(visit.arguments["function_id"]), notice=notice)


def function_path(function_id: str) -> str:
    return f"/functions/{function_id}"


def find_function(functions: list[FunctionInfo], function_id: str) -> FunctionInfo:
    """Raises ``PageError`` if no app serves the function."""
    for function in functions:
        if function.id == function_id:
            return function
    raise PageError(404, "There is no such function", "The id may be mistyped, or its app no longer serves it.")


# apps and schedules


async def show_apps(visit: Visit) -> DashboardResponse:
    reports: list[AppReport] = await visit.engine.inspect_apps()
    functions = await visit.engine.list_functions()
    by_app = {report.app.id: [each for each in functions if each.app_id == report.app.id] for report in reports}
    return await visit.page("apps.html", reports=reports, by_app=by_app, chosen=visit.query.get("app"))


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
    last: list[tuple[float, RunLink]]
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
        is_listed = not last or sum(ended(bar.counts) for bar in past) <= len(last)
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
    most = max(map(ended, counts)) or 1
    # The first interval may begin before the window, and the last one end after the present.
    places = [(max((each.at - window.start) / (window.end - window.start), 0.0), each) for each in counts]
    return [PastRuns(x, min(width, 0.5 - x), ended(each) / most, each) for x, each in places if ended(each) and x < 0.5]


async def show_cron(visit: Visit) -> DashboardResponse:
    schedules: list[ScheduleInfo] = await visit.engine.list_schedules()
    now = dt.datetime.now(dt.UTC)
    name, length = read_range(visit, fitting_range([each.next_ticks[0] - now for each in schedules if each.next_ticks]))
    names = {function.id: function.name for function in await visit.engine.list_functions()}
    window = Window(now - length, now + length)
    loads = await visit.engine.function_loads(since=now - length, until=now) if schedules else []
    return await visit.page(
        "cron.html", lines=draw_lines(schedules, names, window, loads), window=window, range=name, ranges=RANGES
    )


_ONE = "/functions/{function_id}"
ROUTES = (
    Route("GET", "/functions", show_functions, live=Live.ALL),
    Route("GET", _ONE, show_function, live=Live.ALL),
    Route("POST", f"{_ONE}/pause", pause, action="pause_function", subject="function_id"),
    Route("POST", f"{_ONE}/resume", resume, action="resume_function", subject="function_id"),
    Route("POST", f"{_ONE}/invoke", invoke, action="invoke", subject="function_id"),
    Route(
        "POST",
        _ONE + "/cancellations/{cancellation_id}/stop",
        stop_cancellation,
        action="delete_cancellation",
        subject="function_id",
    ),
    Route("GET", "/apps", show_apps, live=Live.ALL),
    Route("GET", "/cron", show_cron, live=Live.ALL),
)
