"""Serving functions in any WSGI app."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Unpack
from wsgiref.util import request_uri

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import UNREADABLE, read_query
from durably.web.wsgi import Environ, StartResponse, WSGIApp, decode, headers_of, path_of, read_body, send_response

from .browser_streams import hide_token_of
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .webhooks import Source, mount_webhook

FRAMEWORK = "wsgi"


def serve(app: WSGIApp, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> WSGIApp:
    """The app with the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Sync functions run in the request's thread (with streaming in
    a pool), async ones on the process's background event loop. An engine in this process starts with the server, or
    with the first request.
    """
    mount = add_mount(mounts_of(client), FRAMEWORK, client, functions, options)
    served = _with_endpoint(app, mount)
    if (engine := client.in_process) is None:
        return served

    def start_and_answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        engine.start_with_request()
        return served(environ, start_response)

    engine.start_with_server()
    return start_and_answer


def webhook(app: WSGIApp, client: Client, source: Source, path: str | None = None) -> WSGIApp:
    """The app with the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``.
    """
    return _with_endpoint(app, mount_webhook(client, source, path, "durably.wsgi.webhook"))


def endpoint(app: WSGIApp, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> WSGIApp:
    """The app with a durable endpoint of a function at ``path``.

    See ``durably.flask.endpoint``. ``authorize`` gets the ``environ``.
    """
    return _with_endpoint(app, mount_endpoint(function, path, "durably.wsgi.endpoint", **options))


def _with_endpoint(app: WSGIApp, mount: Mount) -> WSGIApp:
    def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            body = read_body(environ, mount.check_size)
        except UNREADABLE as error:
            return send_response(mount.handler.refuse(error), environ, start_response)
        request = CommRequest(
            body=body,
            headers=headers_of(environ),
            has_lower_names=True,
            query_params=read_query(environ.get("QUERY_STRING", "")),
            raw_request=environ,
            request_url=lambda: request_uri(dict(environ), include_query=False),
        )
        response = mount.handler.handle_sync(environ["REQUEST_METHOD"], request)
        if mount.has_tokens:
            hide_token_of(environ)
        stream = None if response.stream is None else response.stream_sync()
        return send_response(response, environ, start_response, stream)

    return _routed(re.escape(mount.path), answer, app)


def dashboard(app: WSGIApp, client: Client, path: str = "/durably", **options: Unpack[DashboardOptions]) -> WSGIApp:
    """The app with the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. ``action.request`` is the ``environ``. ``authorize`` runs
    in the thread of the request.
    """
    from durably.dashboard import ROOT_PATHS, DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(client, path, caller="durably.wsgi.dashboard", **options)

    def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            body = read_body(environ, check_size) if environ["REQUEST_METHOD"] == "POST" else b""
        except UNREADABLE as error:
            return send_response(refuse(error), environ, start_response)
        request = DashboardRequest(
            method=environ["REQUEST_METHOD"],
            path=path_of(environ)[len(server.mount) :] or "/",
            mount=decode(environ.get("SCRIPT_NAME", "")) + server.mount,
            headers=headers_of(environ),
            query=environ.get("QUERY_STRING", ""),
            body=body,
            is_secure=environ["wsgi.url_scheme"] == "https",
            raw_request=environ,
        )
        return send_response(server.handle_sync(request), environ, start_response)

    return _routed(rf"{re.escape(server.mount)}(/[\s\S]*)?" if server.mount else f"/{ROOT_PATHS}", answer, app)


def streams(app: WSGIApp, client: Client, path: str = "/streams", **options: Unpack[StreamsOptions]) -> WSGIApp:
    """The app with the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.flask.streams``. ``authorize`` gets the ``environ``.
    """
    from durably.browser_streams import StreamRequest, Streams

    server = Streams(client, path, caller="durably.wsgi.streams", **options)

    def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = StreamRequest(
            method=environ["REQUEST_METHOD"],
            query=environ.get("QUERY_STRING", ""),
            headers=headers_of(environ),
            raw_request=environ,
        )
        return send_response(server.handle_sync(request, environ), environ, start_response)

    return _routed(re.escape(server.path), answer, app)


def _routed(paths: str, endpoint: WSGIApp, app: WSGIApp) -> WSGIApp:
    """An app with an endpoint at the paths that match an expression."""
    ours = re.compile(paths)

    def route(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return (endpoint if ours.fullmatch(path_of(environ)) else app)(environ, start_response)

    return route
