"""The dashboard as routes of the HTTP API: translates requests and answers."""

import contextlib
from functools import partial

from aiohttp import web
from multidict import CIMultiDict

from durably.engine.dashboard.dashboard import SEGMENTS
from durably.engine.dashboard.messages import DashboardRequest, DashboardResponse
from durably.engine.dashboard.sign_in import SIGN_IN, SIGN_OUT, DashboardServer
from durably.engine.operations import Access
from durably.protocol.limits import MAX_FORM_BYTES

from .messages import read_body
from .routes import ApiState, Route


def dashboard_routes(dashboard: DashboardServer) -> list[Route]:
    """The paths that the dashboard answers. Others are the API's.

    An engine in dev mode checks hosts and origins before any route, and in cloud mode the dashboard has a sign-in.
    """
    handle = partial(_handle, dashboard)
    names = "|".join(sorted(SEGMENTS - {""} | {SIGN_IN[1:], SIGN_OUT[1:]}))
    paths = ("/", f"/{{segment:(?:{names})}}{{rest:(?:/.*)?}}")
    return [Route(method, path, Access.OPEN, handle) for path in paths for method in ("GET", "POST")]


async def _handle(dashboard: DashboardServer, api: ApiState, request: web.Request) -> web.StreamResponse:
    answer = await dashboard.handle(
        DashboardRequest(
            method=request.method,
            path=request.path,
            mount="",
            headers=_lower(request),
            query=request.rel_url.raw_query_string,
            body=await read_body(request, MAX_FORM_BYTES) if request.method == "POST" else b"",
            # Of a client's own header a cookie would only become stricter.
            is_secure=request.secure or request.headers.get("x-forwarded-proto", "").lower() == "https",
            raw_request=request,
            peer=request.remote,
        )
    )
    if answer.stream is not None:
        return await _stream(answer, api, request)
    return web.Response(status=answer.status_code, body=answer.body, headers=CIMultiDict(answer.headers))


def _lower(request: web.Request) -> dict[str, str]:
    """Headers by their names in lower case; cookies may be in several."""
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
        with contextlib.suppress(ConnectionResetError):  # The client has gone.
            await response.prepare(request)
            if request.method != "HEAD":
                async for chunk in chunks:
                    await response.write(chunk)
            await response.write_eof()
    return response
