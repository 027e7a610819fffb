"""Serving functions in a Sanic app."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Unpack
from urllib.parse import unquote

try:
    from sanic import Request, Sanic
    from sanic.constants import HTTP_METHODS
    from sanic.exceptions import SanicException
except ImportError as error:
    raise ImportError('durably.sanic needs Sanic: pip install "durably[sanic]"') from error

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import UNREADABLE
from durably.web.sanic import hide_query, parts_of, read_body, respond, without_timeout

from .browser_streams import hide_token
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .engines import InProcessEngine
from .webhooks import Source, mount_webhook

FRAMEWORK = "sanic"
App = Sanic[Any, Any]


def serve(app: App, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on the event loop of Sanic's worker, sync
    ones in a thread pool. ``REQUEST_MAX_SIZE`` and ``RESPONSE_TIMEOUT`` do not apply to the endpoint.
    """
    mount = add_mount(mounts_of(app.router), FRAMEWORK, client, functions, options)
    if mount.is_repeated:
        return
    if client.in_process is not None:
        _run_with_worker(app, client.in_process)
    _add_endpoint(app, mount)


def webhook(app: App, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``.
    """
    _add_endpoint(app, mount_webhook(client, source, path, "durably.sanic.webhook"))


def endpoint(app: App, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> None:
    """Add a durable endpoint of a function at ``path``. See ``durably.starlette.endpoint``."""
    _add_endpoint(app, mount_endpoint(function, path, "durably.sanic.endpoint", **options))


def _add_endpoint(app: App, mount: Mount) -> None:
    async def answer(request: Request) -> None:
        with without_timeout(request):
            try:
                body = await read_body(request, mount.check_size)
            except UNREADABLE as error:
                await respond(request, mount.handler.refuse(error))
                return
            comm_request = CommRequest(
                body=body,
                headers=dict(request.headers.items()),
                has_lower_names=True,
                query_params=request.args,
                raw_request=request,
                request_url=lambda: request.url.partition("?")[0],
            )
            response = await mount.handler.handle(request.method, comm_request)
            if mount.has_tokens:
                hide_query(request, hide_token)
            await respond(request, response)

    _add(app, mount.path, answer)


def dashboard(app: App, client: Client, path: str = "/durably", **options: Unpack[DashboardOptions]) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``.
    """
    from durably.dashboard import ROOT_SEGMENTS, DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(client, path, caller="durably.sanic.dashboard", raises=(SanicException,), **options)

    async def answer(request: Request, inner: str = "") -> None:
        try:
            body = await read_body(request, check_size) if request.method == "POST" else b""
        except UNREADABLE as error:
            await respond(request, refuse(error))
            return
        made = DashboardRequest(
            **parts_of(request),
            path=unquote(request.path)[len(server.mount) :] or "/",
            mount=server.mount,
            body=body,
            is_secure=request.scheme == "https",
        )
        await respond(request, await server.handle(made))

    tops = [server.mount] if server.mount else [f"/{segment}" for segment in ROOT_SEGMENTS]
    for route in (*tops, *(f"{top}/<inner:path>" for top in tops), *(() if server.mount else ("/",))):
        _add(app, route, answer)


def streams(app: App, client: Client, path: str = "/streams", **options: Unpack[StreamsOptions]) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``.
    """
    from durably.browser_streams import StreamRequest, Streams

    server = Streams(client, path, caller="durably.sanic.streams", raises=(SanicException,), **options)

    async def answer(request: Request) -> None:
        response = await server.handle(StreamRequest(**parts_of(request)))
        hide_query(request, hide_token)
        with without_timeout(request):
            await respond(request, response)

    app.register_listener(lambda _: server.end(), "before_server_stop")  # The worker waits for all responses.
    _add(app, server.path, answer)


def _add(app: App, path: str, handler: Any) -> None:
    app.add_route(handler, path, HTTP_METHODS, name=f"durably:{path}", stream=True)


def _run_with_worker(app: App, engine: InProcessEngine) -> None:
    """Start after the app's own resources, and stop before them, in each worker."""
    running = AsyncExitStack()
    app.register_listener(lambda _: running.enter_async_context(engine.running_with_server()), "after_server_start")
    app.register_listener(lambda _: running.aclose(), "before_server_stop")
