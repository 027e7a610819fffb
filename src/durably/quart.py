"""Serving functions in a Quart app."""

import re
from collections.abc import Sequence
from typing import Any, Unpack

try:
    import quart
    from werkzeug.exceptions import HTTPException
except ImportError as error:
    raise ImportError('durably.quart needs Quart: pip install "durably[quart]"') from error

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import METHODS, UNREADABLE, lower_headers, read_chunks, read_query
from durably.web.asgi import Receive, Scope, Send
from durably.web.flask import ANY_PATH, AnyPath, current_object
from durably.web.quart import request_of, to_response

from .asgi import Endpoint, EngineLifespan, Routed
from .browser_streams import hide_token
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .webhooks import Source, mount_webhook

FRAMEWORK = "quart"


def serve(
    app: quart.Quart, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Async functions run on the server's event loop, sync ones in a
    thread pool. The endpoint is in front of the app's views, as middleware is: ``before_request`` functions and
    ``MAX_CONTENT_LENGTH`` do not apply to it. Functions run without a context of the app, and can enter one: ``async
    with app.app_context()``.
    """
    mount = add_mount(mounts_of(app), FRAMEWORK, client, functions, options)
    if mount.is_repeated:
        return

    served = _with_endpoint(app, mount)
    app.asgi_app = served if client.in_process is None else EngineLifespan(served, client.in_process)  # type: ignore[method-assign, assignment]


def dashboard(app: quart.Quart, client: Client, path: str = "/durably", **options: Unpack[DashboardOptions]) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. ``authorize`` runs in the context of the request, if it is
    async. An ``HTTPException`` of Werkzeug that it raises is the response.
    """
    from durably.dashboard import DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(client, path, caller="durably.quart.dashboard", raises=(HTTPException,), **options)

    async def answer(inner: str = "") -> quart.Response:
        request: quart.Request = current_object(quart.request)
        body, length = b"", request.headers.get("content-length")
        try:
            if request.method == "POST":
                body = await read_chunks(request.body, length, check=check_size)
        except UNREADABLE as error:
            return to_response(refuse(error))
        made = DashboardRequest(
            method=request.method,
            path=f"/{inner}",
            mount=request.root_path + server.mount,
            headers=lower_headers(request.headers.items()),
            query=request.query_string.decode("latin-1"),
            body=body,
            is_secure=request.is_secure,
            raw_request=request,
        )
        return to_response(await server.handle(made))

    app.url_map.converters[ANY_PATH] = AnyPath
    _add(app, f"{server.mount}/<{ANY_PATH}:inner>", answer, merge_slashes=False)
    if server.mount:
        _add(app, server.mount, answer)


def streams(app: quart.Quart, client: Client, path: str = "/streams", **options: Unpack[StreamsOptions]) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``. ``authorize`` runs in the context of the request, if it is
    async.
    """
    from durably.browser_streams import StreamRequest, Streams

    server = Streams(client, path, caller="durably.quart.streams", raises=(HTTPException,), **options)

    async def answer() -> quart.Response:
        request: quart.Request = current_object(quart.request)
        query = request.query_string.decode("latin-1")
        headers = lower_headers(request.headers.items())
        response = await server.handle(
            StreamRequest(method=request.method, query=query, headers=headers, raw_request=request)
        )
        request.scope["query_string"] = hide_token(query).encode("latin-1")  # before the server logs it
        return to_response(response)

    _add(app, server.path, answer)


def webhook(app: quart.Quart, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``. The endpoint is in front of the app's views, as that of ``serve`` is.
    """
    mount = mount_webhook(client, source, path, "durably.quart.webhook")
    app.asgi_app = _with_endpoint(app, mount)  # type: ignore[method-assign, assignment]


def endpoint(app: quart.Quart, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> None:
    """Add a durable endpoint of a function at ``path``.

    See ``durably.starlette.endpoint``. ``authorize`` runs in the context of the request, if it is async.
    """
    mount = mount_endpoint(function, path, "durably.quart.endpoint", **options)

    async def answer() -> quart.Response:
        request: quart.Request = current_object(quart.request)
        try:
            body = await read_chunks(request.body, request.headers.get("content-length"), check=mount.check_size)
        except UNREADABLE as error:
            return to_response(mount.handler.refuse(error))
        query = request.query_string.decode("latin-1")
        made = CommRequest(
            body=body,
            headers=lower_headers(request.headers.items()),
            query_params=read_query(query),
            raw_request=request,
            request_url=lambda: request.url,
        )
        response = await mount.handler.handle(request.method, made)
        request.scope["query_string"] = hide_token(query).encode("latin-1")  # before the server logs it
        return to_response(response)

    _add(app, mount.path, answer)


def _with_endpoint(app: quart.Quart, mount: Mount) -> Routed:
    def make_request(scope: Scope, receive: Receive, send: Send) -> quart.Request:
        return request_of(app, scope, receive)

    return Routed(re.escape(mount.path), Endpoint(mount, make_request), app.asgi_app)


def _add(app: quart.Quart, path: str, view: Any, **options: Any) -> None:
    app.add_url_rule(path, f"durably:{path}", view, methods=METHODS, provide_automatic_options=False, **options)
