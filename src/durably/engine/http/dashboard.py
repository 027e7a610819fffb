"""The dashboard as routes of the HTTP API: translates requests and answers."""

import contextlib
from functools import partial

from aiohttp import web
from multidict import CIMultiDict

from durably.engine.dashboard.dashboard import SEGMENTS, Dashboard
from durably.engine.dashboard.messages import DashboardRequest, DashboardResponse
from durably.engine.operations import Access

from .messages import read_body
from .routes import ApiState, Route


def dashboard_routes(dashboard: Dashboard) -> list[Route]:
    """The paths that the dashboard answers. Others are the API's."""
    handle = partial(_handle, dashboard)
    names = "|".join(sorted(SEGMENTS - {""}))
    paths = ("/", f"/{{segment:(?:{names})}}{{rest:(?:/.*)?}}")
    return [Route(method, path, Access.DEVELOPMENT, handle) for path in paths for method in ("GET", "POST")]


async def _handle(dashboard: Dashboard, api: ApiState, request: web.Request) -> web.StreamResponse:
    answer = await dashboard.handle(
        DashboardRequest(
            method=request.method,
            path=request.path,
            mount="",
            headers={name.lower(): value for name, value in request.headers.items()},
            query=request.rel_url.raw_query_string,
            body=await read_body(request) if request.method == "POST" else b"",
            is_secure=request.secure,
            raw_request=request,
        )
    )
    if answer.stream is not None:
        return await _stream(answer, api, request)
    return web.Response(status=answer.status_code, body=answer.body, headers=CIMultiDict(answer.headers))


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
