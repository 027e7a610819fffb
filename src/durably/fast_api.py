"""Serving functions in a FastAPI app."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

try:
    import fastapi
    from fastapi.responses import StreamingResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError('durably.fast_api needs FastAPI: pip install "durably[fast-api]"') from error

from durably.comm.serve_options import Mount, StreamingOption, add_mount, check_mount, mount_path, mounts_of
from durably.functions.function import Function
from durably.web import UNREADABLE, lower_headers, read_chunks
from durably.web.starlette import ANY_PATH, AnyMethod, mount_point, path_of, read_body, to_response

from .client import Client
from .comm import CommHandler, CommRequest
from .engines import InProcessEngine

FRAMEWORK = "fast_api"


def serve(
    app: fastapi.FastAPI,
    client: Client,
    functions: Sequence[Function[Any]],
    *,
    enable_unauthed_sync: bool | None = None,
    public_path: str | None = None,
    serve_origin: str | None = None,
    serve_path: str | None = None,
    streaming: StreamingOption = None,
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    - ``serve_path``: Mounts it elsewhere.
    - ``serve_origin``, ``public_path``: Replace parts of the app's URL for the engine, for example behind a proxy.
    - ``streaming``: Keeps connections of long calls alive.
    - ``enable_unauthed_sync``: ``False`` refuses unsigned syncs in production mode.

    Async functions run on the server's event loop, sync ones in a thread pool.
    """
    path = check_mount(mounts := mounts_of(app), mount_path(serve_path), client, functions)
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        streaming=streaming,
        enable_unauthed_sync=enable_unauthed_sync,
        serve_origin=serve_origin,
        serve_path=serve_path,
        public_path=public_path,
    )
    if (mount := add_mount(mounts, path, handler)) is None:
        return
    if client.in_process is not None:
        _run_with_server(app, client.in_process)
    route = Route(path, _Endpoint(mount), methods=["GET", "POST", "PUT"], include_in_schema=False, name="durably")
    app.router.routes.append(route)


def dashboard(
    app: fastapi.FastAPI,
    client: Client,
    path: str = "/durably",
    *,
    authorize: Callable[[Any], Any] | None = None,
    allow_anonymous: bool = False,
) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    - ``authorize``: Gets a ``durably.dashboard.Action`` and returns whether it is allowed. It may be async; a plain
      function runs in a thread. An ``HTTPException`` that it raises is the response.
    - ``allow_anonymous``: ``True`` shows all data to every visitor, who can also change runs.

    Raises ``DashboardConfigError`` unless exactly one of them is given.
    """
    from durably.dashboard import ROOT_PATHS, DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(
        client,
        path,
        authorize=authorize,
        allow_anonymous=allow_anonymous,
        caller="durably.fast_api.dashboard",
        raises=(HTTPException,),
    )

    async def view(request: Request) -> Response:
        inner = "/" + request.path_params.get("path", "")
        try:
            body, raw = await read_body(request, check_size) if request.method == "POST" else (b"", request)
        except UNREADABLE as error:
            return to_response(refuse(error))
        made = DashboardRequest(
            method=request.method,
            path=inner,
            mount=mount_point(request, inner),
            headers=lower_headers(request.headers.items()),
            query=request.scope["query_string"].decode("latin-1"),
            body=body,
            is_secure=request.url.scheme == "https",
            raw_request=raw,
            call_blocking=run_in_threadpool,
        )
        return to_response(await server.handle(made))

    for pattern in (server.mount, f"{server.mount}/{ANY_PATH}") if server.mount else (path_of(ROOT_PATHS),):
        app.router.routes.append(Route(pattern, AnyMethod(view), include_in_schema=False, name="durably-dashboard"))


class _Endpoint:
    """An ASGI app that answers requests of the engine.

    The framework's work for a view would cost calls more than all other code.
    """

    def __init__(self, mount: Mount[CommHandler]) -> None:
        self._mount = mount

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = fastapi.Request(scope, receive)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await read_chunks(request.stream(), headers.get("content-length"), disconnect=ClientDisconnect)
        except UNREADABLE as error:
            response = self._mount.handler.refuse(error)
        else:
            query = scope["query_string"]
            comm_request = CommRequest(
                body=body,
                headers=headers,
                query_params=_parse_frequent(query) if len(query) <= _FREQUENT_LENGTH else _parse(query),
                raw_request=request,
                request_url=lambda: str(request.url),
                has_lower_names=True,
            )
            response = await self._mount.handler.handle(request.method, comm_request)
        if response.stream is not None:
            streamed = StreamingResponse(response.stream(), response.status_code, response.headers)
            await streamed(scope, receive, send)
            return
        written = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        written.append((b"content-length", b"%d" % len(response.body)))
        await send({"type": "http.response.start", "status": int(response.status_code), "headers": written})
        await send({"type": "http.response.body", "body": response.body})


def _parse(query: bytes) -> dict[str, str]:
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


_FREQUENT_LENGTH = 256
_parse_frequent = lru_cache(256)(_parse)
"""Cached, because a function's calls have the same query string."""


def _run_with_server(app: fastapi.FastAPI, engine: InProcessEngine) -> None:
    """Run the engine within the app's own lifespan.

    So functions can use its resources. Under a server without lifespan the engine starts with the first request.
    """
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[Any]:
        engine.expect_start()
        async with own(app) as state, engine.running_with_server():
            yield state

    app.router.lifespan_context = lifespan
    app.add_middleware(_StartWithRequest, engine=engine)


class _StartWithRequest:
    """An ASGI middleware that starts the engine with the first request."""

    def __init__(self, app: ASGIApp, engine: InProcessEngine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._engine.start_with_request(asyncio.get_running_loop())
        await self._app(scope, receive, send)
