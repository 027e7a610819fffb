"""The HTTP API as an aiohttp application, with the dashboard.

One handler serves all operations, others are those of the server itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from durably.engine.api.codec import NOT_FOUND, check_header, encode_result, read_arguments
from durably.engine.api.dashboard.dashboard import SEGMENTS, Dashboard, KeySignIn
from durably.engine.api.dashboard.messages import DashboardRequest, DashboardResponse
from durably.engine.api.interface import OPERATIONS
from durably.engine.api.local import LocalEngine
from durably.engine.api.operations import Access, Operation
from durably.engine.model.events import decode_json, explain_json_error
from durably.engine.model.runs import RunUpdate
from durably.protocol.engine_errors import DatabaseLostError, EngineError, JsonInvalidError
from durably.protocol.events import AppSyncBody
from durably.protocol.headers import VERSION, Header, Query, ServerKind
from durably.protocol.limits import MAX_FORM_BYTES, MAX_REQUEST_BYTES
from durably.protocol.sync import decode_sync
from durably.protocol.text import get_logger, redact_url

from . import platform
from .connections import CONNECTIONS
from .metrics import METRICS_PATH, answer_metrics
from .realtime import Realtime, channels_of
from .requests import (
    AccessCheck,
    AllowedHosts,
    ApiError,
    ApiKeys,
    answer_error,
    answer_expectation,
    data_response,
    error_response,
    explain_stop,
    json_response,
    read_body,
)
from .syncs import AcceptedSync, AppUnreachedError, NoAppError, OnSync, SyncAt, SyncFailedError

READY_SECONDS = 5.0
_READY_LOG_SECONDS = 0.5
_KEEP_ALIVE_SECONDS = 15.0
"""Seconds of silence before an empty line is written to a stream.

It is a keep-alive. It also lets the engine detect a disconnected client.
"""
_LOG_AGAIN_SECONDS = 600.0

_logger = get_logger("durably.engine.api")


@dataclass
class ApiState:
    """The state that handlers share.

    ``has_limits``: requests have the limits of a public API, such as of lists.
    """

    engine: LocalEngine
    server_kind: ServerKind
    on_sync: OnSync
    sync_at: SyncAt | None
    has_limits: bool = True

    def headers(self) -> dict[str, str]:
        """The headers of each answer."""
        return {str(Header.SERVER_KIND): self.server_kind}


Handle = Callable[[ApiState, web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    access: Access
    handle: Handle


# operations


async def _execute(operation: Operation, api: ApiState, request: web.Request) -> web.Response:
    """Execute the operation of a request, and answer with its result.

    The arguments are read from the request.
    """
    body = await read_body(request) if operation.has_body else b""
    try:
        arguments = read_arguments(
            operation, request.match_info, request.query, request.headers, body, has_limits=api.has_limits
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JsonInvalidError(explain_json_error(body, error)) from None
    result = shown = await getattr(api.engine, operation.name)(**arguments)
    if not result and await operation.is_missing(api.engine, arguments, result):
        assert operation.missing is not None
        raise ApiError(404, operation.missing.format_map(arguments), code=NOT_FOUND)
    if operation.show is not None:
        shown = await operation.show(api.engine, arguments, result)
    return web.Response(body=encode_result(operation, result, shown), content_type="application/json")


async def _add_traces(api: ApiState, request: web.Request) -> web.Response:
    """``POST /v1/traces/userland``: store spans in the form of OTLP over HTTP.

    The body is JSON or Protocol Buffers.
    """
    await api.engine.add_traces(await read_body(request), request.content_type)
    body = b"{}" if request.content_type == "application/json" else b""
    return web.Response(body=body, content_type=request.content_type)


_SPECIAL: dict[str, Handle] = {"add_traces": _add_traces}
"""Operations whose answers have another protocol's form."""


# the state of the engine


async def _get_health(api: ApiState, request: web.Request) -> web.Response:
    """``GET /health``: the process answers.

    A supervisor restarts a process that does not.
    """
    return json_response({"status": 200, "message": "OK"})


async def _get_readiness(api: ApiState, request: web.Request) -> web.Response:
    """``GET /ready``: whether the engine accepts events and calls apps.

    The answer is 503 with the reason if it does not. The writer's thread checks that the database still belongs to this
    engine. The commit log's state is left out if its store is slow: load balancers do not wait.
    """
    try:
        async with asyncio.timeout(READY_SECONDS):
            await api.engine.verify()
    except TimeoutError:
        return error_response(503, f"the database has not answered within {READY_SECONDS:.0f} s")
    except EngineError as error:
        lost = api.engine.stop_error or (error if isinstance(error, DatabaseLostError) else None)
        return error_response(503, error.message if lost is None else explain_stop(lost))
    log = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READY_LOG_SECONDS):
            log = await api.engine.read_log()
    # Everybody may read this, so it does not name the log's server.
    shown = {} if log is None else {"log": msgspec.structs.replace(log, store="", leader="")}
    return json_response({"status": 200, "message": "OK", **shown})


async def _get_metrics(api: ApiState, request: web.Request) -> web.Response:
    """``GET /metrics``: the engine's metrics for Prometheus."""
    return await answer_metrics(api.engine, request)


async def _get_dev_info(api: ApiState, request: web.Request) -> web.Response:
    """``GET /dev``, in dev mode only: official SDKs detect a dev engine by it."""
    return json_response(
        {
            "version": VERSION,
            "authed": False,
            "functions": [function.config for function in await api.engine.list_functions()],
            "handlers": [],
            "isSingleNodeService": True,
            "isMissingSigningKey": False,
            "isMissingEventKeys": False,
            "features": {},
        }
    )


async def _stream_updates(api: ApiState, request: web.Request) -> web.StreamResponse:
    """``GET /v1/updates[?function_id=…]``: one ``RunUpdate`` per line.

    The updates are sent from now on, until the engine stops.
    """
    headers = {"content-type": "application/x-ndjson", "cache-control": "no-store"}
    response = web.StreamResponse(headers=headers | api.headers())
    with api.engine.watch() as updates, contextlib.suppress(ConnectionResetError):  # The client has disconnected.
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            await _write_updates(response, updates, request.query.get("function_id"))
        await response.write_eof()
    return response


async def _write_updates(
    response: web.StreamResponse, updates: AsyncIterator[RunUpdate], function_id: str | None
) -> None:
    await response.write(b"\n")
    while True:
        try:
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                update = await anext(updates)
        except TimeoutError:
            await response.write(b"\n")
        except StopAsyncIteration:
            return
        else:
            if function_id in (None, "", update.function_id):
                await response.write(msgspec.json.encode(update) + b"\n")


# syncs


async def _register(api: ApiState, request: web.Request) -> web.Response:
    """``POST /fn/register[?deployId=…]``: an app sends its functions (spec §4.3)."""
    expected = request.headers.get(Header.EXPECTED_SERVER_KIND)
    if expected and expected != api.server_kind:
        raise ApiError(400, f"the app expected an engine in {expected} mode, and this one is in {api.server_kind} mode")
    sync = decode_json(await read_body(request), decode_sync)
    result = await api.engine.sync_app(sync)
    api.on_sync(AcceptedSync(sync, result, request.query.get(Query.DEPLOY_ID)))
    return json_response({"ok": True, "status": 200, "modified": result.modified, "app_id": result.app_id})


class _SyncApp(msgspec.Struct):
    url: str


_sync_app_decoder = msgspec.json.Decoder(_SyncApp)


async def _sync_app(api: ApiState, request: web.Request) -> web.Response:
    """``POST /v1/apps/sync {url}``: ask the app at a URL to sync.

    The answer is 502 if the app does not answer.
    """
    url = decode_json(await read_body(request), _sync_app_decoder.decode).url
    if api.sync_at is None:
        raise ApiError(400, "this engine runs in its app's own processes, and syncs whenever they start")
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ApiError(400, "the body's url must be a URL like http://127.0.0.1:8000/api/inngest")
    try:
        accepted = await api.sync_at(url)
    except AppUnreachedError as error:
        raise ApiError(502, error.message) from None
    except (NoAppError, SyncFailedError) as error:
        raise ApiError(422, error.message) from None
    result = accepted.result
    body = AppSyncBody(
        app_id=result.app_id,
        url=redact_url(accepted.request.url),
        version=result.version,
        previous_version=result.previous_version,
        modified=result.modified,
        functions=[function.id for function in accepted.request.functions],
        added=list(result.added),
        changed=list(result.changed),
        removed=list(result.removed),
        previous_url=None if result.previous_url is None else redact_url(result.previous_url),
    )
    return data_response(body)


# what the engine lacks

_PLATFORM = (
    "this route of /v2: it has runs, apps, functions, events and invocations, and no sandboxes, sessions or accounts"
)
_ENDPOINTS = "durable endpoints: make the endpoint send an event, and do the work in a function"
UNSUPPORTED = {
    "/v0/connect/{path:.*}": "Connect: it runs in its app's processes, which need no connection",
    "/v1/realtime/publish/tee": _ENDPOINTS,
    "/v1/checkpoint": _ENDPOINTS,
    "/v1/checkpoint/{run_id}/steps": _ENDPOINTS,
    "/v1/http/{path:.*}": _ENDPOINTS,
    **{f"{prefix}/{{path:.*}}": _PLATFORM for prefix in platform.PREFIXES},
}
"""Features by their routes."""


def _refuse_feature(feature: str, last_logged: dict[str, float]) -> Handle:
    """Refuse with the reason in the body and in the status line.

    Of an answer to a publish, the JavaScript SDK shows only the status line.
    """

    async def refuse(api: ApiState, request: web.Request) -> web.StreamResponse:
        message = f"this engine does not support {feature}"
        now = time.monotonic()
        if now - last_logged.get(feature, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            last_logged[feature] = now
            sdk = request.headers.get("x-inngest-sdk") or request.headers.get("user-agent") or "unknown SDK"
            _logger.error("an app (%s) needs an unsupported feature: %s", ascii(sdk[:80]), message)
        response = error_response(501, message, code="not_supported")
        response.set_status(501, reason=message)
        return response

    return refuse


async def _allow_page(api: ApiState, request: web.Request) -> web.Response:
    """``OPTIONS /e/{key}``, in dev mode only: allow pages to send events.

    Pages of any allowed origin may send events.
    """
    requested = "access-control-request-headers"
    return web.Response(
        status=204,
        headers={
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": check_header(requested, request.headers.get(requested) or "*"),
            "access-control-max-age": "3600",
        },
    )


async def _answer_unrouted(api: ApiState, request: web.Request) -> web.StreamResponse:
    """Refuse requests that no other route handles.

    Raises ``HTTPMethodNotAllowed`` or ``HTTPNotFound``. It is a route because aiohttp's own answer fails on
    expectations that are not ASCII.
    """
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    allowed.discard(hdrs.METH_ANY)
    raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound


HEALTH_PATH = "/health"
SERVER_ROUTES = (
    Route("GET", HEALTH_PATH, Access.OPEN, _get_health),
    Route("GET", "/ready", Access.OPEN, _get_readiness),
    Route("GET", METRICS_PATH, Access.SIGNING_KEY, _get_metrics),
    Route("GET", "/dev", Access.DEVELOPMENT, _get_dev_info),
    Route("OPTIONS", "/e/{key}", Access.DEVELOPMENT, _allow_page),
    Route("GET", "/v1/updates", Access.SIGNING_KEY, _stream_updates),
    Route("POST", "/fn/register", Access.SIGNING_KEY, _register),
    Route("POST", "/v1/apps/sync", Access.SIGNING_KEY, _sync_app),
)
UNROUTED = Route(hdrs.METH_ANY, "/{path:(?s:.*)}", Access.SIGNING_KEY, _answer_unrouted)


_LOCAL = AllowedHosts()
_EVENTS = "/e/"


def ignore_sync(sync: AcceptedSync) -> None:
    """The default of ``on_sync``."""


def create_api(
    engine: LocalEngine,
    keys: ApiKeys,
    *,
    hosts: AllowedHosts = _LOCAL,
    on_sync: OnSync = ignore_sync,
    sync_at: SyncAt | None = None,
    dashboard: Dashboard | KeySignIn | None = None,
    routes: Sequence[Route] = (),
    has_limits: bool = True,
) -> web.Application:
    """The API of an open engine.

    Serve it without an access log, because paths of ``/e/`` contain event keys.

    - ``hosts``: The allowed hosts of a development engine.
    - ``sync_at``: Syncs apps, if they have URLs.
    - ``dashboard``: Served at ``/``, if there is one. In cloud mode it has a sign-in.
    - ``routes``: Further routes, such as those for workers in other processes.
    - ``has_limits``: ``False`` allows lists of any length, for clients in processes of the same app.
    """
    app = web.Application(client_max_size=MAX_REQUEST_BYTES)
    api = ApiState(engine, keys.server_kind, on_sync, sync_at, has_limits)
    access = AccessCheck(keys, hosts)
    operations = [
        Route(each.http_method, each.path, each.access, _SPECIAL.get(each.name) or partial(_execute, each))
        for each in OPERATIONS.values()
    ]
    last_logged: dict[str, float] = {}
    unsupported = [
        Route(hdrs.METH_ANY, path, Access.SIGNING_KEY, _refuse_feature(feature, last_logged))
        for path, feature in UNSUPPORTED.items()
    ]
    faces = (*_realtime_routes(Realtime(keys)), *_platform_routes())
    pages = [] if dashboard is None else _dashboard_routes(dashboard)
    for route in (*SERVER_ROUTES, *routes, *operations, *faces, *pages, *unsupported, UNROUTED):
        if route.access is not Access.DEVELOPMENT or keys.server_kind is ServerKind.DEV:
            endpoint = _endpoint(api, access, route)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                app.router.add_route(method, route.path, endpoint, expect_handler=answer_expectation)
    return app


def _endpoint(api: ApiState, access: AccessCheck, route: Route) -> Handler:
    """The handler of a route with the checks around it.

    It applies the connection's limits and the access check, and answers errors.
    """
    engine, handle, headers = api.engine, route.handle, api.headers()
    is_health, is_events = route.path == HEALTH_PATH, route.path.startswith(_EVENTS)
    is_cross_origin = is_events and api.server_kind is ServerKind.DEV

    async def answer(request: web.Request) -> web.StreamResponse:
        connections = request.app.get(CONNECTIONS)
        connection = None if connections is None else connections.begin_request(request)
        try:
            access.check(request, route.access)
            # The process is alive. If a supervisor restarted it, it might start with an empty database.
            if engine.stop_error is not None and not is_health:
                raise ApiError(503, explain_stop(engine.stop_error))
            response = await handle(api, request)
        except Exception as error:
            response = answer_error(request, engine.explain(error))
        finally:
            if connection is not None:
                connection.end_request()
        if not response.prepared:
            response.headers.update(headers)
            if is_cross_origin and hdrs.ORIGIN in request.headers:
                # Also for errors, so that the page can read them.
                response.headers["access-control-allow-origin"] = "*"
                response.headers["vary"] = "origin"
        return response

    return answer


def _realtime_routes(realtime: Realtime) -> list[Route]:
    """The routes of realtime. Subscribers have tokens."""

    async def publish(api: ApiState, request: web.Request) -> web.StreamResponse:
        return await realtime.publish(channels_of(api.engine.channels), request)

    async def make_token(api: ApiState, request: web.Request) -> web.StreamResponse:
        return await realtime.make_token(request)

    async def connect(api: ApiState, request: web.Request) -> web.StreamResponse:
        return await realtime.connect(channels_of(api.engine.channels), request)

    async def stream(api: ApiState, request: web.Request) -> web.StreamResponse:
        return await realtime.stream(channels_of(api.engine.channels), request, api.headers())

    return [
        Route("POST", "/v1/realtime/publish", Access.SIGNING_KEY, publish),
        Route("POST", "/v1/realtime/token", Access.SIGNING_KEY, make_token),
        Route("GET", "/v1/realtime/connect", Access.OPEN, connect),
        Route("GET", "/v1/realtime/sse", Access.OPEN, stream),
    ]


def _platform_routes() -> Iterator[Route]:
    """The routes of ``/v2``."""

    def bind(handle: platform.Handle) -> Handle:
        return lambda api, request: platform.answer(handle, api.engine, api.engine.explain, request)

    for prefix in platform.PREFIXES:
        for method, path, handle in platform.ROUTES:
            yield Route(method, prefix + path, Access.SIGNING_KEY, bind(handle))


# the dashboard


def _dashboard_routes(dashboard: Dashboard | KeySignIn) -> list[Route]:
    """The paths that the dashboard answers. Other paths belong to the API.

    An engine in dev mode checks hosts and origins before any route, and in cloud mode the dashboard has a sign-in.
    """
    handle = partial(_answer_dashboard, dashboard)
    names = "|".join(sorted(SEGMENTS - {""}))
    paths = ("/", f"/{{segment:(?:{names})}}{{rest:(?:/.*)?}}")
    return [Route(method, path, Access.OPEN, handle) for path in paths for method in ("GET", "POST")]


async def _answer_dashboard(
    dashboard: Dashboard | KeySignIn, api: ApiState, request: web.Request
) -> web.StreamResponse:
    headers = _lower_headers(request)
    # The body after the check of the key, because it may be large, or a few bytes that decompress to many.
    reads_body = request.method == "POST" and dashboard.admits(headers)
    answer = await dashboard.handle(
        DashboardRequest(
            method=request.method,
            path=request.path,
            mount="",
            headers=headers,
            query=request.rel_url.raw_query_string,
            body=await read_body(request, MAX_FORM_BYTES) if reads_body else b"",
            # A client's own header can only make a cookie stricter.
            is_secure=request.secure or request.headers.get("x-forwarded-proto", "").lower() == "https",
            raw_request=request,
            peer=request.remote,
        )
    )
    if answer.stream is not None:
        return await _stream(answer, api, request)
    return web.Response(status=answer.status_code, body=answer.body, headers=CIMultiDict(answer.headers))


def _lower_headers(request: web.Request) -> dict[str, str]:
    """Headers by their names in lower case. Cookies may be in several headers."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    if "cookie" in headers:
        headers["cookie"] = "; ".join(request.headers.getall("cookie"))
    return headers


async def _stream(answer: DashboardResponse, api: ApiState, request: web.Request) -> web.StreamResponse:
    assert answer.stream is not None
    response = web.StreamResponse(
        status=answer.status_code, headers=CIMultiDict([*answer.headers, *api.headers().items()])
    )
    async with contextlib.aclosing(answer.stream()) as chunks:
        with contextlib.suppress(ConnectionResetError):  # The client has disconnected.
            await response.prepare(request)
            if request.method != "HEAD":
                async for chunk in chunks:
                    await response.write(chunk)
            await response.write_eof()
    return response
