"""The HTTP API as an aiohttp application, with the dashboard.

It has the routes, and the steps that each request passes.
"""

import contextlib
from collections.abc import Sequence
from functools import partial

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from durably.engine.api.dashboard.dashboard import SEGMENTS
from durably.engine.api.dashboard.messages import DashboardRequest, DashboardResponse
from durably.engine.api.dashboard.sign_in import SIGN_IN, SIGN_OUT, DashboardServer
from durably.engine.api.interface import Engine, LocalEngine
from durably.engine.api.operations import Access, operations_of
from durably.protocol.headers import ServerKind
from durably.protocol.limits import MAX_FORM_BYTES, MAX_REQUEST_BYTES

from .access import AccessCheck, AllowedHosts, ApiKeys
from .connections import CONNECTIONS
from .messages import ApiError, answer_error, answer_expectation, explain_stop, read_body
from .routes import HEALTH_PATH, SERVER_ROUTES, UNROUTED, ApiState, Route, operation_route, unsupported_routes
from .syncs import AcceptedSync, AppConflicts, OnSync, SyncAt

_LOCAL = AllowedHosts()
_EVENTS = "/e/"


def ignore_sync(sync: AcceptedSync) -> None:
    """The default of ``on_sync``."""


async def _is_never_alive(url: str) -> bool:
    """The answer of an engine that does not reach its apps by URL."""
    return False


def create_api(
    engine: LocalEngine,
    keys: ApiKeys,
    *,
    hosts: AllowedHosts = _LOCAL,
    on_sync: OnSync = ignore_sync,
    sync_at: SyncAt | None = None,
    conflicts: AppConflicts | None = None,
    dashboard: DashboardServer | None = None,
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
    conflicts = conflicts or AppConflicts(engine, _is_never_alive)
    api = ApiState(engine, keys.server_kind, on_sync, sync_at, conflicts, has_limits)
    access = AccessCheck(keys, hosts)
    operations = [operation_route(operation) for operation in operations_of(Engine).values()]
    pages = [] if dashboard is None else _dashboard_routes(dashboard)
    for route in (*SERVER_ROUTES, *routes, *operations, *pages, *unsupported_routes(), UNROUTED):
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


# the dashboard


def _dashboard_routes(dashboard: DashboardServer) -> list[Route]:
    """The paths that the dashboard answers. Other paths belong to the API.

    An engine in dev mode checks hosts and origins before any route, and in cloud mode the dashboard has a sign-in.
    """
    handle = partial(_answer_dashboard, dashboard)
    names = "|".join(sorted(SEGMENTS - {""} | {SIGN_IN[1:], SIGN_OUT[1:]}))
    paths = ("/", f"/{{segment:(?:{names})}}{{rest:(?:/.*)?}}")
    return [Route(method, path, Access.OPEN, handle) for path in paths for method in ("GET", "POST")]


async def _answer_dashboard(dashboard: DashboardServer, api: ApiState, request: web.Request) -> web.StreamResponse:
    answer = await dashboard.handle(
        DashboardRequest(
            method=request.method,
            path=request.path,
            mount="",
            headers=_lower_headers(request),
            query=request.rel_url.raw_query_string,
            body=await read_body(request, MAX_FORM_BYTES) if request.method == "POST" else b"",
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
