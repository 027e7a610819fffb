"""Functions, what can be done to them, and their triggers and options in words.

A sentence is a tuple of texts: plain ones and, at odd positions, code such as expressions and names.
"""

import datetime as dt
from collections.abc import Iterator

from durably.engine.model.overview import FunctionInfo
from durably.protocol.durations import Duration, DurationInvalidError, parse_duration
from durably.protocol.engine_errors import EngineError
from durably.protocol.limits import DEFAULT_RETRIES
from durably.protocol.sync import FunctionConfig, Trigger

from .formats import FormError, read_object, write_last
from .messages import DashboardResponse
from .overview import draw_chart, load_rows, read_range, split_zone, total
from .visit import Live, PageError, Route, Visit

_LAST_OPERATIONS = 5


async def show_functions(visit: Visit) -> DashboardResponse:
    name, length = read_range(visit)
    until = dt.datetime.now(dt.UTC)
    app_id, text = visit.query.get("app"), visit.query.get("q", "").lower()
    everything = await visit.engine.list_functions()
    functions = [
        function
        for function in everything
        if app_id in (None, function.app_id) and (text in function.id.lower() or text in function.name.lower())
    ]
    has_loads = visit.info.offers("function_loads")
    loads = await visit.engine.function_loads(since=until - length, until=until) if has_loads else []
    return await visit.page(
        "functions.html",
        rows={row.function_id: row for row in load_rows(loads, everything)},
        functions=sorted(functions, key=lambda function: (function.app_id, function.name.lower(), function.id)),
        triggers={function.id: list(map(describe_trigger, function.config.triggers)) for function in everything},
        apps=sorted({function.app_id for function in everything}),
        has_any=bool(everything),
        range=name,
    )


async def show_function(visit: Visit, *, text: str | None = None, error: str | None = None) -> DashboardResponse:
    """The page of a function. ``text`` is in the form of an invocation, with the ``error`` that it has.

    By default it is the data of the event of the function's last run.
    """
    function_id, engine = visit.arguments["function_id"], visit.engine
    name, length = read_range(visit, "24h")
    until = dt.datetime.now(dt.UTC)
    report = None
    if visit.info.offers("inspect_function"):
        report = await engine.inspect_function(function_id, since=until - length)
    function = report.function if report else find_function(await engine.list_functions(), function_id)
    operations = []
    for kind, operation in ("Cancellation", engine.list_cancellations), ("Replay", engine.list_replays):
        if visit.info.offers(operation.__name__):
            operations += [(kind, each) for each in await operation() if each.function_id == function_id]
    operations.sort(key=lambda each: each[1].created_at, reverse=True)
    actions = ("pause_function", "resume_function", "invoke", "cancel_runs", "replay_runs", "delete_cancellation")
    may = {action: await visit.may(action, function_id) for action in actions}
    return await visit.page(
        "function.html",
        status=200 if error is None else 422,
        report=report,
        function=function,
        longest=max((step.p95 for step in report.steps), default=0.0) if report else 0.0,
        total=total(report.load.counts) if report else None,
        chart=draw_chart(report.load.counts, until - length, until) if report else None,
        triggers=list(map(describe_trigger, function.config.triggers)),
        options=describe_options(function.config),
        has_cron=visit.info.offers("list_schedules") and any(each.cron for each in function.config.triggers),
        operations=operations[:_LAST_OPERATIONS],
        may=may,
        text=(await _last_data(visit, function_id) if may["invoke"] else "{}") if text is None else text,
        error=error,
        range=name,
    )


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
        return await show_function(visit, text=text, error=str(error))
    except EngineError as error:
        return await show_function(visit, text=text, error=error.message)
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
)


Sentence = tuple[str, ...]

_UNITS = (("week", 604_800), ("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
_SCOPES = {"account": " in all apps", "env": " in all apps of the environment", "fn": ""}


def describe_trigger(trigger: Trigger) -> Sentence:
    """When the trigger starts a run."""
    if trigger.cron is not None:
        zone, schedule = split_zone(trigger.cron)
        spread = f", up to {_length(trigger.jitter)} late" if trigger.jitter else ""
        return "on the schedule ", schedule, f" in {zone}{spread}"
    condition = (" if ", trigger.expression) if trigger.expression else ()
    return "on the event ", trigger.event or "", *condition


def describe_options(config: FunctionConfig) -> list[Sentence]:
    """The options that are used, each as a sentence. The number of retries is always one of them."""
    return list(_sentences(config))


def _sentences(config: FunctionConfig) -> Iterator[Sentence]:
    given = [step.retries.attempts for step in config.steps.values() if step.retries is not None]
    if (attempts := next((each for each in given if each is not None), DEFAULT_RETRIES)) == 0:
        yield ("Does not repeat failed attempts",)
    else:
        yield (f"Repeats a failed attempt of a step, or of the function, up to {_count(attempts, 'time')}",)
    for each in config.concurrency or ():
        yield _keyed(f"Executes at most {_count(each.limit, 'step')} at once{_SCOPES[each.scope or 'fn']}", each.key)
    if throttle := config.throttle:
        burst = f", and {throttle.burst} at once" if (throttle.burst or 1) > 1 else ""
        rate = f"{_count(throttle.limit, 'run')} in {_length(throttle.period)}{burst}"
        yield _keyed(f"Starts at most {rate}; others wait", throttle.key)
    if limit := config.rate_limit:
        rate = f"{_count(limit.limit, 'run')} in {_length(limit.period)}"
        yield _keyed(f"Starts at most {rate}; other events are dropped", limit.key)
    if debounce := config.debounce:
        latest = f", {_length(debounce.timeout)} after the first at the latest" if debounce.timeout else ""
        yield _keyed(f"Starts when no event has come for {_length(debounce.period)}{latest}", debounce.key)
    if batch := config.batch_events:
        wait = f", or after {_length(batch.timeout)}" if batch.timeout else ""
        condition = ("; only for events with ", batch.if_exp) if batch.if_exp else ()
        yield _join(_keyed(f"Starts one run for {batch.max_size} events{wait}", batch.key), condition)
    if singleton := config.singleton:
        others = "a new run cancels the present one" if singleton.mode == "cancel" else "further events start no run"
        yield _keyed(f"Runs once at a time; {others}", singleton.key)
    if config.idempotency is not None:
        yield "Starts one run in 24 hours for each value of ", config.idempotency
    if config.priority is not None:
        yield "Goes ahead in the queue by as many seconds as ", config.priority.run
    for cancel in config.cancel or ():
        within = (f" within {_length(cancel.timeout)} of its start",) if cancel.timeout else ()
        condition = (" if ", cancel.if_exp) if cancel.if_exp else ()
        yield _join(("Is cancelled by the event ", cancel.event, *condition), within)
    if config.timeouts is not None and config.timeouts.start is not None:
        yield (f"Is cancelled unless it begins within {_length(config.timeouts.start)}",)
    if config.timeouts is not None and config.timeouts.finish is not None:
        yield (f"Is cancelled unless it ends within {_length(config.timeouts.finish)} of its beginning",)


def _keyed(text: str, key: str | None) -> Sentence:
    return (f"{text}, for each value of ", key) if key else (text,)


def _join(first: Sentence, second: Sentence) -> Sentence:
    """Two parts of a sentence. The second begins with plain text."""
    if not second or len(first) % 2 == 0:
        return first + second
    return (*first[:-1], first[-1] + second[0], *second[1:])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number:,} {thing}s"


def _length(duration: Duration) -> str:
    """A duration of an option: ``90 seconds``, ``2 hours``. A date is left as it is."""
    try:
        length = parse_duration(duration) if isinstance(duration, str) else duration
    except DurationInvalidError:
        return str(duration)
    seconds = (length if isinstance(length, dt.timedelta) else dt.timedelta(milliseconds=length)).total_seconds()
    for unit, size in _UNITS:
        if seconds >= size and seconds % size == 0:
            return _count(int(seconds // size), unit)
    return f"{seconds:g} seconds" if seconds >= 1 else f"{seconds * 1000:g} milliseconds"
