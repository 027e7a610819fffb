"""Serving functions in a FastAPI app."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

try:
    import fastapi
    from fastapi.responses import StreamingResponse
    from starlette.requests import ClientDisconnect
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError('durably.fast_api needs FastAPI: pip install "durably[fast-api]"') from error

from durably.comm.adapters import serves
from durably.comm.bodies import UNREADABLE, read_chunks
from durably.comm.requests import StreamingOption, mount_path
from durably.functions.function import Function

from .client import Client
from .comm import CommHandler, CommRequest, CommResponse
from .engine_interface import InProcessEngine

FRAMEWORK = "fast_api"


@serves("durably.fast_api")
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

    ``serve_path`` mounts it elsewhere; ``serve_origin`` and ``public_path`` replace what the engine sees of
    the app's URL, behind a proxy say. ``streaming`` keeps connections of long calls alive.
    ``enable_unauthed_sync=False`` refuses unsigned syncs in production mode. Async functions run on the
    server's event loop, sync ones in a thread pool.
    """
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

    async def durably_endpoint(request: fastapi.Request) -> fastapi.Response:
        try:
            length = request.headers.get("content-length")
            body = await read_chunks(request.stream(), length, disconnect=ClientDisconnect)
        except UNREADABLE as error:
            return _to_fast_api(handler.refuse(error))
        comm_request = CommRequest(
            body=body,
            headers=request.headers,
            query_params=request.query_params,
            raw_request=request,
            request_url=lambda: str(request.url),
        )
        return _to_fast_api(await handler.handle(request.method, comm_request))

    if client.in_process is not None:
        _run_with_server(app, client.in_process)
    # A plain route: what FastAPI does for its own, such as resolving dependencies, would cost calls more than the rest.
    app.add_route(mount_path(serve_path), durably_endpoint, methods=["GET", "POST", "PUT"], include_in_schema=False)


def _to_fast_api(response: CommResponse) -> fastapi.Response:
    if response.stream is not None:
        return StreamingResponse(response.stream(), response.status_code, response.headers)
    return fastapi.Response(response.body, response.status_code, response.headers)


def _run_with_server(app: fastapi.FastAPI, engine: InProcessEngine) -> None:
    """Run the engine within the app's own lifespan, so that functions can use its resources. Under a server without
    lifespan the engine starts with the first request."""
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[Any]:
        engine.expect_start()
        async with own(app) as state, engine.running_with_server():
            yield state

    app.router.lifespan_context = lifespan
    app.add_middleware(_StartWithRequest, engine=engine)


class _StartWithRequest:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, engine: InProcessEngine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._engine.start_with_request(asyncio.get_running_loop())
        await self._app(scope, receive, send)
