"""Serving functions in a Tornado application."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Unpack

try:
    import tornado.ioloop
    import tornado.web
    from tornado.httputil import HTTPServerRequest
except ImportError as error:
    raise ImportError('durably.tornado needs Tornado: pip install "durably[tornado]"') from error

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.io.background_loop import running_loop
from durably.web import METHODS, lower_headers
from durably.web.tornado import BoundedBodyHandler, write

from .browser_streams import hide_token
from .client import Client
from .comm import CommRequest, CommResponse
from .endpoints import call_here, mount_endpoint
from .engines import InProcessEngine
from .errors import BodyTooLargeError
from .webhooks import Source, mount_webhook

FRAMEWORK = "tornado"


def serve(
    app: tornado.web.Application,
    client: Client,
    functions: Sequence[Function[Any]],
    **options: Unpack[ServeOptions],
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on Tornado's own event loop,
    sync ones in a thread pool.
    """
    mount = add_mount(mounts_of(app), FRAMEWORK, client, functions, options)
    if mount.is_repeated:
        return
    if client.in_process is not None:
        _start_with_loop(app, client.in_process)
    _add_endpoint(app, mount)


def webhook(app: tornado.web.Application, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``.
    """
    _add_endpoint(app, mount_webhook(client, source, path, "durably.tornado.webhook"))


def endpoint(
    app: tornado.web.Application,
    function: Function[Any],
    path: str,
    *,
    base: type[tornado.web.RequestHandler] = tornado.web.RequestHandler,
    **options: Unpack[DurableEndpointOptions],
) -> None:
    """Add a durable endpoint of a function at ``path``.

    See ``durably.starlette.endpoint``. ``authorize`` gets the handler, and a plain function runs on the event loop, as
    handlers do. ``base`` is the application's own handler class, whose ``prepare`` and ``current_user`` apply.
    """
    _add_endpoint(app, mount_endpoint(function, path, "durably.tornado.endpoint", call_here, **options), base)


def _add_endpoint(
    app: tornado.web.Application, mount: Mount, base: type[tornado.web.RequestHandler] | None = None
) -> None:
    class DurablyHandler(BoundedBodyHandler, base or tornado.web.RequestHandler):  # type: ignore[misc]
        def check_size(self, size: int) -> None:
            mount.check_size(size)

        def refuse(self, error: BodyTooLargeError) -> CommResponse:
            return mount.handler.refuse(error)

        def check_xsrf_cookie(self) -> None:
            """Check no cookie: requests of engines and of webhooks are signed, and others have to be JSON."""

        async def _answer(self) -> None:
            request = self.request
            comm_request = CommRequest(
                body=self.body,
                headers=dict(request.headers.items()),
                query_params={k: v[0].decode(errors="replace") for k, v in request.query_arguments.items()},
                raw_request=request if base is None else self,
                request_url=request.full_url(),
            )
            response = await mount.handler.handle(request.method or "", comm_request)
            if mount.has_tokens:
                _hide_token(request)
            await write(self, response)

        get = post = put = _answer

    app.add_handlers(r".*", [(re.escape(mount.path), DurablyHandler)])


def dashboard(
    app: tornado.web.Application,
    client: Client,
    path: str = "/durably",
    *,
    base: type[tornado.web.RequestHandler] = tornado.web.RequestHandler,
    **options: Unpack[DashboardOptions],
) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. ``action.request`` is the handler, so a plain
    ``authorize`` runs on the event loop, as handlers do. ``base`` is the application's own handler class, so that
    ``action.request.current_user`` is the user of its ``get_current_user``.
    """
    from durably.dashboard import ROOT_PATHS, DashboardRequest, MountedDashboard, check_size, refuse

    raises = (tornado.web.HTTPError, tornado.web.Finish)
    server = MountedDashboard(
        client,
        path,
        **options,
        caller="durably.tornado.dashboard",
        raises=raises,
    )

    class DashboardHandler(BoundedBodyHandler, base):  # type: ignore[misc, valid-type]
        SUPPORTED_METHODS = METHODS

        def check_size(self, size: int) -> None:
            check_size(size)

        def refuse(self, error: BodyTooLargeError) -> Any:
            return refuse(error)

        def check_xsrf_cookie(self) -> None:
            """Check no cookie: the dashboard checks its own token."""

        async def _answer(self, inner: str | None) -> None:
            request = self.request
            response = await server.handle(
                DashboardRequest(
                    method=request.method or "",
                    path=inner or "/",
                    mount=server.mount,
                    headers=lower_headers(request.headers.get_all()),
                    query=request.query,
                    body=self.body,
                    is_secure=request.protocol == "https",
                    raw_request=self,
                    call_blocking=call_here,  # Handlers cannot be used in other threads.
                )
            )
            await write(self, response)

        get = head = post = put = patch = delete = options = trace = _answer

    # Handlers that are added precede the app's own.
    paths = rf"{re.escape(server.mount)}(/[\s\S]*)?" if server.mount else f"(/{ROOT_PATHS})"
    app.add_handlers(r".*", [(paths, DashboardHandler)])


def streams(
    app: tornado.web.Application,
    client: Client,
    path: str = "/streams",
    *,
    base: type[tornado.web.RequestHandler] = tornado.web.RequestHandler,
    **options: Unpack[StreamsOptions],
) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``. ``authorize`` gets the handler, and a plain function runs
    on the event loop, as handlers do. ``base`` is the application's own handler class.
    """
    from durably.browser_streams import StreamRequest, StreamResponse, Streams

    server = Streams(
        client,
        path,
        **options,
        caller="durably.tornado.streams",
        raises=(tornado.web.HTTPError, tornado.web.Finish),
    )

    class StreamHandler(base):  # type: ignore[misc, valid-type]
        SUPPORTED_METHODS = METHODS
        _stream: StreamResponse | None = None

        def check_xsrf_cookie(self) -> None:
            """Check no cookie: a stream changes nothing."""

        async def _answer(self) -> None:
            request = self.request
            made = StreamRequest(
                method=request.method or "",
                query=request.query,
                headers=lower_headers(request.headers.get_all()),
                raw_request=self,
                call_blocking=call_here,  # Handlers cannot be used in other threads.
            )
            self._stream = await server.handle(made)
            _hide_token(request)
            await write(self, self._stream)

        get = head = post = put = patch = delete = options = trace = _answer

        def on_connection_close(self) -> None:
            super().on_connection_close()
            if self._stream is not None:
                self._stream.end()

    app.add_handlers(r".*", [(re.escape(server.path), StreamHandler)])


def _hide_token(request: HTTPServerRequest) -> None:
    """Hide it before the request is logged."""
    request.uri = request.path + (request.query and f"?{hide_token(request.query)}")


def _start_with_loop(app: tornado.web.Application, engine: InProcessEngine) -> None:
    """Start now if the event loop runs.

    Otherwise start when it runs after ``listen``, or with the first request.
    """
    if (running := running_loop()) is not None:
        engine.start_with_request(running)
        return
    listen, start_request = app.listen, app.start_request

    def start() -> None:
        engine.start_with_request(asyncio.get_running_loop())

    def listen_and_start(*args: Any, **options: Any) -> Any:
        server = listen(*args, **options)
        tornado.ioloop.IOLoop.current().add_callback(start)
        return server

    def start_with_request(*args: Any) -> Any:
        start()
        return start_request(*args)

    app.listen = listen_and_start  # type: ignore[method-assign]
    app.start_request = start_with_request  # type: ignore[method-assign, assignment]
