"""``/v2``, the second API of the official platform: runs, apps, functions, events and invocations.

It is another face of the engine's operations. Fields are named as by the official servers; ids of functions lack their
app's. Development servers have it at ``/api/v2``, the platform at ``/v2``.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from durably.engine.api.interface import Engine
from durably.engine.model.events import decode_json
from durably.engine.model.overview import App, FunctionInfo
from durably.engine.model.runs import FromStep, Run
from durably.protocol.connect import CONNECT_URL
from durably.protocol.engine_errors import FunctionNotFoundError, RunNotFoundError
from durably.protocol.events import RunStatus

from .requests import ApiError, answer_error, json_response, read_body

PREFIXES = ("/v2", "/api/v2")
_SYNC_SECONDS = 300.0
"""The longest wait of an invocation for its result."""
_STATUSES = {"QUEUED": RunStatus.SCHEDULED}

Handle = Callable[[Engine, web.Request], Awaitable[web.Response]]


class _Query(msgspec.Struct, rename="camel"):
    """Arguments of lists of runs, of which each list takes some."""

    app_id: str | None = None
    function_id: str | None = None
    status: str | None = None
    since: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = msgspec.field(default=None, name="from")
    until: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None
    query: str | None = None
    include_output: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    cursor: str | None = None


class _Invocation(msgspec.Struct, rename="camel"):
    data: dict[str, Any]
    idempotency_key: str | None = None
    mode: str = "async"


class _RerunStep(msgspec.Struct, rename="camel"):
    step_id: str
    input: list[Any] | None = None


class _Rerun(msgspec.Struct, rename="camel"):
    from_step: _RerunStep | None = None


_invocations = msgspec.json.Decoder(_Invocation)
_reruns = msgspec.json.Decoder(_Rerun)


# runs


async def _list_runs(engine: Engine, request: web.Request) -> web.Response:
    query = _read_query(request)
    if query.function_id is None:
        return await _search(engine, query, query.app_id, None)
    if query.app_id is None:
        raise ApiError(400, "functionId needs appId: functions of two apps may have the same id")
    return await _search(engine, query, query.app_id, f"{query.app_id}-{query.function_id}")


async def _list_function_runs(engine: Engine, request: web.Request) -> web.Response:
    function = await _function(engine, request)
    return await _search(engine, _read_query(request), function.app_id, function.id)


async def _search(engine: Engine, query: _Query, app_id: str | None, function_id: str | None) -> web.Response:
    try:
        status = None if query.status is None else _STATUSES.get(query.status.upper()) or RunStatus.read(query.status)
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    page = await engine.search_runs(
        status=status,
        app_id=app_id,
        function_id=function_id,
        started_after=query.since,
        started_before=query.until,
        if_exp=query.query,
        limit=query.limit,
        cursor=query.cursor,
    )
    return _page(await _show_runs(engine, page.runs, query), query, page.cursor)


async def _get_run(engine: Engine, request: web.Request) -> web.Response:
    run = await _run(engine, request)
    return _data((await _show_runs(engine, [run], _read_query(request)))[0])


async def _rerun(engine: Engine, request: web.Request) -> web.Response:
    body = await read_body(request)
    step = decode_json(body, _reruns.decode).from_step if body.strip() else None
    from_step = None if step is None else FromStep.of(step.step_id, step.input)
    return _data({"runId": await engine.rerun(request.match_info["run_id"], from_step=from_step)})


async def _cancel(engine: Engine, request: web.Request) -> web.Response:
    run_id = request.match_info["run_id"]
    if not await engine.cancel_run(run_id):
        run = await _run(engine, request)
        raise ApiError(409, f"the run {run_id} has ended: it is {run.status}", code="run_already_ended")
    return _data({"runId": run_id})


async def _event_runs(engine: Engine, request: web.Request) -> web.Response:
    runs, query = await engine.event_runs(request.match_info["event_id"]), _read_query(request)
    ids = [run.id for run in runs]
    begin = 0 if query.cursor is None or query.cursor not in ids else ids.index(query.cursor) + 1
    found = runs[begin : begin + query.limit]
    return _page(await _show_runs(engine, found, query), query, found[-1].id if runs[begin + query.limit :] else None)


async def _show_runs(engine: Engine, runs: Sequence[Run], query: _Query) -> list[dict[str, Any]]:
    names = {function.id: function.name for function in await engine.list_functions()}
    return [
        _show_run(run, names.get(run.function_id, run.function_id), has_output=query.include_output) for run in runs
    ]


def _show_run(run: Run, name: str, *, has_output: bool) -> dict[str, Any]:
    status = "QUEUED" if run.status is RunStatus.SCHEDULED else run.status.upper()
    shown = {
        "id": run.id,
        "function": {"id": _local_id(run.function_id, run.app_id), "name": name},
        "app": {"id": run.app_id},
        "status": status,
        "queuedAt": run.created_at,
        "startedAt": run.started_at,
        "endedAt": run.ended_at,
        # 64-bit integers are text in the JSON of protocol buffers.
        "durationMs": None
        if run.ended_at is None or run.started_at is None
        else str((run.ended_at - run.started_at) // dt.timedelta(milliseconds=1)),
        "trigger": {"eventIds": run.event_ids, "isBatch": len(run.event_ids) > 1},
        "output": run.output if has_output else None,
    }
    return _without_none(shown)


# apps and functions


async def _list_apps(engine: Engine, request: web.Request) -> web.Response:
    query = _read_query(request)
    apps = sorted((app for app in await engine.list_apps() if app.id > (query.cursor or "")), key=lambda app: app.id)
    more = apps[query.limit - 1].id if len(apps) > query.limit else None
    return _page([_show_app(app) for app in apps[: query.limit]], query, more)


async def _get_app(engine: Engine, request: web.Request) -> web.Response:
    app_id = request.match_info["app_id"]
    for app in await engine.list_apps():
        if app.id == app_id:
            return _data(_show_app(app))
    raise ApiError(404, f"no app with the id {app_id!r} has synced", code="not_found")


async def _list_functions(engine: Engine, request: web.Request) -> web.Response:
    return _data([_show_function(function) for function in await _functions(engine, request)])


async def _get_function(engine: Engine, request: web.Request) -> web.Response:
    return _data(_show_function(await _function(engine, request)))


def _show_app(app: App) -> dict[str, Any]:
    language, _, version = (app.sdk or "").partition(":v")
    sync = {
        "status": "error" if app.last_sync is not None and app.last_sync.error else "success",
        "sdkLanguage": language or None,
        "sdkVersion": version or None,
        "framework": app.framework,
        "url": app.url,
        "error": app.last_sync.error if app.last_sync is not None else None,
        "appVersion": app.version,
        "syncedAt": app.synced_at,
    }
    shown = {
        "id": app.id,
        "name": app.id,
        "method": "CONNECT" if app.url == CONNECT_URL else "SERVE",
        "isArchived": False,
        "functionCount": app.function_count,
        "appVersion": app.version,
        "latestSync": _without_none(sync),
    }
    return _without_none(shown)


def _show_function(function: FunctionInfo) -> dict[str, Any]:
    local_id = _local_id(function.id, function.app_id)
    triggers = [
        {"type": "CRON", "value": trigger.cron}
        if trigger.cron
        else _without_none({"type": "EVENT", "value": trigger.event, "condition": trigger.expression})
        for trigger in function.config.triggers
    ]
    return {
        "id": local_id,
        "name": function.name,
        "slug": local_id,
        "isPaused": function.is_paused,
        "isArchived": False,
        "app": {"id": function.app_id},
        "triggers": triggers,
    }


async def _functions(engine: Engine, request: web.Request) -> list[FunctionInfo]:
    app_id = request.match_info["app_id"]
    functions = await engine.list_app_functions(app_id)
    if functions is None:
        raise ApiError(404, f"no app with the id {app_id!r} has synced", code="not_found")
    return functions


async def _function(engine: Engine, request: web.Request) -> FunctionInfo:
    local_id = request.match_info["function_id"]
    for function in await _functions(engine, request):
        if local_id in (_local_id(function.id, function.app_id), function.id):
            return function
    raise FunctionNotFoundError(f"the app {request.match_info['app_id']!r} has no function {local_id!r}")


# events and invocations


async def _send_event(engine: Engine, request: web.Request) -> web.Response:
    body = await read_body(request)
    if body.lstrip().startswith(b"["):
        raise ApiError(400, "send one event, an object: POST /e/{key} takes a list")
    receipt = await engine.receive_events(body)
    return _data({"eventId": receipt.ids[0]})


async def _invoke(engine: Engine, request: web.Request) -> web.Response:
    """Start a run. With the mode ``sync`` the answer has its end, or 202 if it has not ended in time."""
    function = await _function(engine, request)
    invocation = decode_json(await read_body(request), _invocations.decode)
    if invocation.mode not in ("sync", "async"):
        raise ApiError(400, f"mode is 'sync' or 'async', not {invocation.mode!r}")
    receipt = await engine.invoke(function.id, invocation.data, id=invocation.idempotency_key)
    run_id = receipt.run_id or receipt.event_id
    if invocation.mode == "async":
        return _data({"runId": run_id})
    run = await engine.wait_for_run(run_id, within=_SYNC_SECONDS)
    shown = {"runId": run.id, **_show_run(run, function.name, has_output=True)}
    return _data(shown, 200 if run.status.has_ended else 202)


# requests and answers


async def _run(engine: Engine, request: web.Request) -> Run:
    run_id = request.match_info["run_id"]
    run = await engine.get_run(run_id)
    if run is None:
        raise RunNotFoundError(f"no run has the id {run_id!r}")
    return run


def _read_query(request: web.Request) -> _Query:
    try:
        return msgspec.convert(dict(request.query), _Query, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"the query is not valid: {error}") from None


def _local_id(function_id: str, app_id: str) -> str:
    return function_id.removeprefix(f"{app_id}-")


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _data(data: Any, status: int = 200, **more: Any) -> web.Response:
    return json_response({"data": data, "metadata": {"fetchedAt": dt.datetime.now(dt.UTC)}, **more}, status)


def _page(data: list[Any], query: _Query, cursor: str | None) -> web.Response:
    return _data(data, page=_without_none({"cursor": cursor, "hasMore": cursor is not None, "limit": query.limit}))


async def answer(
    handle: Handle, engine: Engine, explain: Callable[[Exception], Exception], request: web.Request
) -> web.Response:
    """Answer a request. Errors have the form of this API."""
    try:
        return await handle(engine, request)
    except Exception as error:
        refused = answer_error(request, explain(error))
        assert isinstance(refused.body, bytes)
        body = msgspec.json.decode(refused.body)
        errors = [{"code": body.get("code") or "invalid_request", "message": body["error"]}]
        return json_response({"errors": errors}, refused.status)


_FUNCTION = "/apps/{app_id}/functions/{function_id}"
ROUTES: tuple[tuple[str, str, Handle], ...] = (
    ("GET", "/runs", _list_runs),
    ("GET", "/runs/{run_id}", _get_run),
    ("POST", "/runs/{run_id}/rerun", _rerun),
    ("POST", "/runs/{run_id}/cancel", _cancel),
    ("POST", "/events", _send_event),
    ("GET", "/events/{event_id}/runs", _event_runs),
    ("GET", "/apps", _list_apps),
    ("GET", "/apps/{app_id}", _get_app),
    ("GET", "/apps/{app_id}/functions", _list_functions),
    ("GET", _FUNCTION, _get_function),
    ("GET", f"{_FUNCTION}/runs", _list_function_runs),
    ("POST", f"{_FUNCTION}/invoke", _invoke),
)
