"""Serving functions in an aiohttp application."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Unpack

try:
    from aiohttp import web
except ImportError as error:
    raise ImportError('durably.aiohttp needs aiohttp: pip install "durably[aiohttp]"') from error

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import UNREADABLE
from durably.web.aiohttp import hide_query, parts_of, read_body, respond

from .browser_streams import hide_token
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .engines import InProcessEngine
from .webhooks import Source, mount_webhook

FRAMEWORK = "aiohttp"


def serve(
    app: web.Application, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on the application's event loop, sync ones
    in a thread pool.
    """
    mount = add_mount(mounts_of(app), FRAMEWORK, client, functions, options)
    if mount.is_repeated:
        return
    if client.in_process is not None:
        _run_with_app(app, client.in_process)
    _add_endpoint(app, mount)


def webhook(app: web.Application, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``.
    """
    _add_endpoint(app, mount_webhook(client, source, path, "durably.aiohttp.webhook"))


def endpoint(
    app: web.Application, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]
) -> None:
    """Add a durable endpoint of a function at ``path``. See ``durably.starlette.endpoint``."""
    _add_endpoint(app, mount_endpoint(function, path, "durably.aiohttp.endpoint", **options))


def _add_endpoint(app: web.Application, mount: Mount) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            body = await read_body(request, mount.check_size)
        except UNREADABLE as error:
            return await respond(request, mount.handler.refuse(error))
        comm_request = CommRequest(
            body=body,
            headers=dict(request.headers),
            query_params=request.query,
            raw_request=request,
            request_url=lambda: str(request.url),
        )
        response = await mount.handler.handle(request.method, comm_request)
        if mount.has_tokens:
            hide_query(request, hide_token)
        return await respond(request, response)

    app.router.add_route("*", mount.path, answer)


def dashboard(
    app: web.Application, client: Client, path: str = "/durably", **options: Unpack[DashboardOptions]
) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``.
    """
    from durably.dashboard import ROOT_PATHS, DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(client, path, caller="durably.aiohttp.dashboard", raises=(web.HTTPException,), **options)

    async def answer(request: web.Request) -> web.StreamResponse:
        inner = request.match_info["inner"]
        try:
            body = await read_body(request, check_size) if request.method == "POST" else b""
        except UNREADABLE as error:
            return await respond(request, refuse(error))
        made = DashboardRequest(
            **parts_of(request),
            path="/" + inner.removeprefix("/"),
            mount=request.path.removesuffix(inner),
            body=body,
            is_secure=request.secure,
        )
        return await respond(request, await server.handle(made))

    paths = rf"{server.mount}{{inner:(?:/[\s\S]*)?}}" if server.mount else f"/{{inner:{ROOT_PATHS}}}"
    app.router.add_route("*", paths, answer)


def streams(app: web.Application, client: Client, path: str = "/streams", **options: Unpack[StreamsOptions]) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``.
    """
    from durably.browser_streams import StreamRequest, Streams

    server = Streams(client, path, caller="durably.aiohttp.streams", raises=(web.HTTPException,), **options)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await server.handle(StreamRequest(**parts_of(request)))
        hide_query(request, hide_token)
        return await respond(request, response)

    async def end(_: web.Application) -> None:
        server.end()  # The server waits for all responses.

    app.on_shutdown.append(end)
    app.router.add_route("*", server.path, answer)


def _run_with_app(app: web.Application, engine: InProcessEngine) -> None:
    """Start after the app's own resources, and stop before them."""
    running = AsyncExitStack()

    async def lifespan(_: web.Application) -> AsyncIterator[None]:
        engine.expect_start()
        async with running:
            yield

    async def start(_: web.Application) -> None:
        await running.enter_async_context(engine.running_with_server())

    app.cleanup_ctx.append(lifespan)
    app.on_startup.append(start)
