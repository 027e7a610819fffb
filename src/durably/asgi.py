"""Serving functions in any ASGI app. The adapters of ASGI frameworks use it too."""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Unpack

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import UNREADABLE, lower_headers, read_query
from durably.web.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    app_path,
    header_items,
    read_body,
    send_response,
    url_of,
)

from .browser_streams import StreamRequest, Streams, hide_token
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .engines import InProcessEngine
from .webhooks import Source, mount_webhook

FRAMEWORK = "asgi"
MakeRequest = Callable[[Any, Any, Any], Any]
"""Makes a framework's request of ``scope``, ``receive`` and ``send``."""


def serve(app: ASGIApp, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> ASGIApp:
    """The app with the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on the server's event loop, sync ones in a
    thread pool. An engine in this process starts after the app's own lifespan, or with the first request.
    """
    mount = add_mount(mounts_of(client), FRAMEWORK, client, functions, options)
    served: ASGIApp = Routed(re.escape(mount.path), Endpoint(mount, _scope_of), app)
    return served if client.in_process is None else EngineLifespan(served, client.in_process)


def dashboard(
    app: ASGIApp,
    client: Client,
    path: str = "/durably",
    **options: Unpack[DashboardOptions],
) -> ASGIApp:
    """The app with the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. ``action.request`` is the ``scope``.
    """
    from durably.dashboard import ROOT_PATHS

    endpoint = DashboardEndpoint(client, path, _scope_of, **options)
    paths = rf"{re.escape(endpoint.mount)}(/[\s\S]*)?" if endpoint.mount else f"/{ROOT_PATHS}"
    return Routed(paths, endpoint, app)


def streams(
    app: ASGIApp,
    client: Client,
    path: str = "/streams",
    **options: Unpack[StreamsOptions],
) -> ASGIApp:
    """The app with the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``. ``authorize`` gets the ``scope``.
    """
    endpoint = StreamsEndpoint(client, path, _scope_of, **options)
    return Routed(re.escape(endpoint.path), endpoint, app)


def webhook(app: ASGIApp, client: Client, source: Source, path: str | None = None) -> ASGIApp:
    """The app with the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``.
    """
    mount = mount_webhook(client, source, path, "durably.asgi.webhook")
    return Routed(re.escape(mount.path), Endpoint(mount, _scope_of), app)


def endpoint(app: ASGIApp, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> ASGIApp:
    """The app with a durable endpoint of a function at ``path``.

    See ``durably.starlette.endpoint``. ``authorize`` gets the ``scope``.
    """
    mount = mount_endpoint(function, path, "durably.asgi.endpoint", **options)
    return Routed(re.escape(mount.path), Endpoint(mount, _scope_of), app)


def _scope_of(scope: Scope, receive: Receive, send: Send) -> Scope:
    return scope


# Parts of the adapters of ASGI frameworks, which route requests to them.


class Routed:
    """An app with an endpoint at the paths that match an expression."""

    def __init__(self, paths: str, endpoint: ASGIApp, app: ASGIApp) -> None:
        self._paths, self._endpoint, self._app = re.compile(paths), endpoint, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and self._paths.fullmatch(app_path(scope))
        await (self._endpoint if is_ours else self._app)(scope, receive, send)


class Endpoint:
    """An ASGI app that answers requests of the engine, or of a source of webhooks.

    The framework's work for a view would cost calls more than all other code.
    """

    def __init__(self, mount: Mount, make_request: MakeRequest) -> None:
        self._mount, self._make_request = mount, make_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._mount.handler
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body, receive_again = await read_body(receive, headers.get("content-length"), self._mount.check_size)
        except UNREADABLE as error:
            response = handler.refuse(error)
        else:
            request = CommRequest(
                body=body,
                headers=headers,
                query_params=read_query(scope["query_string"].decode("latin-1")),
                raw_request=self._make_request(scope, receive_again, send),
                request_url=lambda: url_of(scope, headers),
                has_lower_names=True,
            )
            response = await handler.handle(scope["method"], request)
            if self._mount.has_tokens:  # before the server logs them
                scope["query_string"] = hide_token(scope["query_string"].decode("latin-1")).encode("latin-1")
        await send_response(response, receive, send)


class DashboardEndpoint:
    """An ASGI app that is the dashboard below ``mount``. ``raises`` has the framework's errors of ``authorize``."""

    def __init__(
        self,
        client: Client,
        path: str,
        make_request: MakeRequest,
        *,
        raises: tuple[type[Exception], ...] = (),
        **options: Unpack[DashboardOptions],
    ) -> None:
        from durably.dashboard import MountedDashboard

        self._server = MountedDashboard(client, path, caller="dashboard", raises=raises, **options)
        self._make_request = make_request
        self.mount = self._server.mount

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from durably.dashboard import DashboardRequest, check_size, refuse

        headers, body, receive_again = lower_headers(header_items(scope)), b"", receive
        try:
            if scope["method"] == "POST":
                body, receive_again = await read_body(receive, headers.get("content-length"), check_size)
        except UNREADABLE as error:
            response = refuse(error)
        else:
            request = DashboardRequest(
                method=scope["method"],
                path=app_path(scope)[len(self.mount) :] or "/",
                mount=scope.get("root_path", "") + self.mount,
                headers=headers,
                query=scope["query_string"].decode("latin-1"),
                body=body,
                is_secure=scope.get("scheme") == "https",
                raw_request=self._make_request(scope, receive_again, send),
            )
            response = await self._server.handle(request)
        await send_response(response, receive, send)


class StreamsEndpoint:
    """An ASGI app that is the streams at ``path``. ``raises`` has the framework's errors of ``authorize``."""

    def __init__(
        self,
        client: Client,
        path: str,
        make_request: MakeRequest,
        *,
        raises: tuple[type[Exception], ...] = (),
        **options: Unpack[StreamsOptions],
    ) -> None:
        self._server = Streams(client, path, caller="streams", raises=raises, **options)
        self._make_request = make_request
        self.path = self._server.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode("latin-1")
        request = StreamRequest(
            method=scope["method"],
            query=query,
            headers=lower_headers(header_items(scope)),
            raw_request=self._make_request(scope, receive, send),
        )
        response = await self._server.handle(request)
        scope["query_string"] = hide_token(query).encode("latin-1")  # before the server logs it
        await send_response(response, receive, send)


class EngineLifespan:
    """An ASGI app that runs the engine within the lifespan of another, whose resources functions can use.

    Without a lifespan the engine starts with the first request.
    """

    def __init__(self, app: ASGIApp, engine: InProcessEngine) -> None:
        self._app, self._engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self._engine.start_with_request(asyncio.get_running_loop())
            await self._app(scope, receive, send)
            return
        self._engine.expect_start()
        failure: Exception | None = None
        async with AsyncExitStack() as running:

            async def receive_and_stop() -> Message:
                message = await receive() if failure is None else {"type": "lifespan.shutdown"}
                if message["type"] == "lifespan.shutdown":
                    await running.aclose()
                return message

            async def start_and_send(message: Message) -> None:
                nonlocal failure
                if message["type"] == "lifespan.startup.complete":
                    try:
                        await running.enter_async_context(self._engine.running_with_server())
                    except Exception as error:  # The app ends as if it was shut down.
                        failure = error
                        await send({"type": "lifespan.startup.failed", "message": str(error)})
                if failure is None:
                    await send(message)

            await self._app(scope, receive_and_stop, start_and_send)
        if failure is not None:
            raise failure
