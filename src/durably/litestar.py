"""Serving functions in a Litestar app."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Unpack, cast

try:
    from litestar import HttpMethod, Litestar, Request, asgi, route
    from litestar.config.app import AppConfig
    from litestar.exceptions import HTTPException
    from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
    from litestar.plugins import InitPluginProtocol
    from litestar.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError('durably.litestar needs Litestar: pip install "durably[litestar]"') from error

from durably.comm.mounts import add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function

from .asgi import DashboardEndpoint, Endpoint, EngineLifespan, StreamsEndpoint
from .client import Client
from .endpoints import mount_endpoint
from .engines import InProcessEngine
from .webhooks import Source, mount_webhook

FRAMEWORK = "litestar"


class Plugin(InitPluginProtocol):
    """A plugin of an app: ``Litestar(plugins=[…])``."""

    def __init__(self, handler: ASGIRouteHandler | HTTPRouteHandler, engine: InProcessEngine | None = None) -> None:
        self._handler, self._engine = handler, engine

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes to the app, and start and stop the engine with it."""
        app_config.route_handlers.append(self._handler)
        if self._engine is not None:
            _run_with_app(app_config, self._engine)
        return app_config


def serve(client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> Plugin:
    """The plugin with the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on the server's event loop, sync ones in a
    thread pool. The app's CSRF check and its authentication do not apply, because requests are signed.
    """
    mount = add_mount(mounts_of(client), FRAMEWORK, client, functions, options)
    return Plugin(_at(mount.path, Endpoint(mount, Request), opt=_SIGNED), client.in_process)


def dashboard(client: Client, path: str = "/durably", **options: Unpack[DashboardOptions]) -> Plugin:
    """The plugin with the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. The app's CSRF check does not apply, because the dashboard
    checks its own token.
    """
    from durably.dashboard import ROOT_SEGMENTS

    endpoint = DashboardEndpoint(client, path, Request, raises=(HTTPException,), **options)
    mount = endpoint.mount
    tops = [mount] if mount else [f"/{segment}" for segment in ROOT_SEGMENTS]
    paths = [*tops, *(f"{top}/{{path:path}}" for top in tops), *([] if mount else ["/"])]

    # Routes of ASGI apps have no parameters in their paths.
    @route(paths, http_method=list(HttpMethod), include_in_schema=False, opt={"exclude_from_csrf": True})
    async def answer() -> ASGIApp:
        return cast(ASGIApp, endpoint)

    return Plugin(answer)


def streams(client: Client, path: str = "/streams", **options: Unpack[StreamsOptions]) -> Plugin:
    """The plugin with the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``.
    """
    endpoint = StreamsEndpoint(client, path, Request, raises=(HTTPException,), **options)
    return Plugin(_at(endpoint.path, endpoint))


def webhook(client: Client, source: Source, path: str | None = None) -> Plugin:
    """The plugin with the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``. The app's CSRF check and its authentication do not apply.
    """
    mount = mount_webhook(client, source, path, "durably.litestar.webhook")
    return Plugin(_at(mount.path, Endpoint(mount, Request), opt=_SIGNED))


def endpoint(function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> Plugin:
    """The plugin with a durable endpoint of a function at ``path``.

    See ``durably.starlette.endpoint``. The app's CSRF check does not apply, because pages of other sites cannot send
    JSON; its authentication and guards do.
    """
    mount = mount_endpoint(function, path, "durably.litestar.endpoint", **options)
    return Plugin(_at(mount.path, Endpoint(mount, Request), opt={"exclude_from_csrf": True}))


_SIGNED = {"exclude_from_csrf": True, "exclude_from_auth": True}
"""Options of routes whose requests are signed."""


def _at(path: str, endpoint: Any, **options: Any) -> ASGIRouteHandler:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await endpoint(scope, receive, send)

    # The endpoint of streams changes the scope for the server's log.
    return asgi(path, copy_scope=False, **options)(answer)


def _run_with_app(app_config: AppConfig, engine: InProcessEngine) -> None:
    """Start after the app's own resources, and stop before them."""
    running = AsyncExitStack()

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        engine.expect_start()
        async with running:
            yield

    async def start() -> None:
        await running.enter_async_context(engine.running_with_server())

    app_config.lifespan.append(lifespan)
    app_config.on_startup.append(start)
    middleware: Any = partial(EngineLifespan, engine=engine)  # Without a lifespan, requests start the engine.
    app_config.middleware.append(middleware)
