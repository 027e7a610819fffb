"""Serving functions in a Flask app."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

try:
    import flask
    from werkzeug.exceptions import HTTPException
except ImportError as error:
    raise ImportError('durably.flask needs Flask: pip install "durably[flask]"') from error

from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web import METHODS, UNREADABLE, check_length, is_chunked, read_body, read_query
from durably.web.flask import add_rule, mount_point, to_response
from durably.web.flask import read_body as read_form
from durably.web.wsgi import headers_of

from .browser_streams import hide_token_of
from .client import Client
from .comm import CommRequest, CommResponse
from .endpoints import mount_endpoint
from .engines import InProcessEngine
from .errors import BodyTooLargeError
from .web.flask import current_object
from .webhooks import Source, mount_webhook

FRAMEWORK = "flask"

Endpoint = Callable[[flask.Request], flask.Response]


def serve(
    app: flask.Flask,
    client: Client,
    functions: Sequence[Function[Any]],
    **options: Unpack[ServeOptions],
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``. Sync functions run in the request's thread (with
    streaming in a pool), async ones on the process's background event loop.
    """
    mount = add_mount(mounts_of(app), FRAMEWORK, client, functions, options, request_context=app.app_context)
    if mount.is_repeated:
        return
    if client.in_process is not None:
        _start_with_app(app, client.in_process)
    _add(app, mount.path, make_endpoint(mount), "durably", methods=["GET", "POST", "PUT"])


def webhook(app: flask.Flask, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME``.

    See ``durably.starlette.webhook``. An extension that checks forms has to leave out the view, whose name is
    ``durably-webhook:/webhooks/NAME``.
    """
    mount = mount_webhook(client, source, path, "durably.flask.webhook")
    _add(app, mount.path, make_endpoint(mount), "durably-webhook", methods=["POST"])


def endpoint(app: flask.Flask, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> None:
    """Add a durable endpoint of a function at ``path``.

    See ``durably.starlette.endpoint``. ``authorize`` runs in the thread and the context of the request. A request holds
    a thread of the server while it waits. An extension that checks forms has to leave out the view, whose name is
    ``durably-endpoint:`` and the path.
    """
    mount = mount_endpoint(function, path, "durably.flask.endpoint", **options)
    _add(app, mount.path, make_endpoint(mount), "durably-endpoint", methods=["GET", "POST"])


def make_endpoint(mount: Mount) -> Endpoint:
    """The function that answers an engine, or a source of webhooks."""

    def answer(request: flask.Request) -> flask.Response:
        try:
            body = _read_body(request, mount.check_size)
        except UNREADABLE as error:
            return _to_flask(mount.handler.refuse(error))
        comm_request = CommRequest(
            body=body,
            headers=headers_of(request.environ),
            has_lower_names=True,
            query_params=read_query(request.environ.get("QUERY_STRING", "")),
            raw_request=request,
            request_url=lambda: request.url,
        )
        response = mount.handler.handle_sync(request.method, comm_request)
        if mount.has_tokens:
            hide_token_of(request.environ)
        return _to_flask(response)

    return answer


def dashboard(
    app: flask.Flask,
    client: Client,
    path: str = "/durably",
    **options: Unpack[DashboardOptions],
) -> flask.Blueprint:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The options are those of ``durably.starlette.dashboard``. ``authorize`` runs in the thread and the context of the
    request. The dashboard checks its own forms: exempt the returned blueprint from an extension that checks them too,
    for example with ``CSRFProtect.exempt`` of Flask-WTF.
    """
    mount, endpoint = make_dashboard(client, path, "durably.flask.dashboard", options)

    def answer(inner: str = "/") -> flask.Response:
        return endpoint(current_object(flask.request), inner)

    name = f"durably-dashboard{mount}".replace(".", "-")
    blueprint = flask.Blueprint(name, __name__, url_prefix=mount or None)
    add_rule(blueprint, answer, "page")
    if mount:
        blueprint.add_url_rule("", "start", answer, methods=list(METHODS), provide_automatic_options=False)
    app.register_blueprint(blueprint)
    return blueprint


def make_dashboard(
    client: Client, path: str, caller: str, options: DashboardOptions
) -> tuple[str, Callable[[flask.Request, str], flask.Response]]:
    """The mount point, and the function that answers browsers. It gets a request and the path below the mount point."""
    from durably.dashboard import DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(client, path, **options, caller=caller, raises=(HTTPException,))

    def answer(request: flask.Request, inner: str) -> flask.Response:
        try:
            body = read_form(request, check_size, (BodyTooLargeError,)) if request.method == "POST" else b""
        except UNREADABLE as error:
            return to_response(refuse(error))
        made = DashboardRequest(
            method=request.method,
            path=inner,
            mount=mount_point(request, inner),
            headers=headers_of(request.environ),
            query=request.query_string.decode("latin-1"),
            body=body,
            is_secure=request.is_secure,
            raw_request=request,
        )
        return to_response(server.handle_sync(made))

    return server.mount, answer


def streams(
    app: flask.Flask,
    client: Client,
    path: str = "/streams",
    **options: Unpack[StreamsOptions],
) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    The options are those of ``durably.starlette.streams``. ``authorize`` runs in the thread and the context of the
    request. Each stream holds a thread of the server. Under gunicorn ``max_listeners`` is at most its number of threads
    less one. Elsewhere it is 3 by default: set it below the number of threads. On a server with one thread, streams are
    short, and browsers ask every 3 s.
    """
    path, endpoint = make_streams(client, path, "durably.flask.streams", options)
    _add(app, path, endpoint, "durably-streams", methods=METHODS, provide_automatic_options=False)


def make_streams(client: Client, path: str, caller: str, options: StreamsOptions) -> tuple[str, Endpoint]:
    """The path of the streams, and the function that answers browsers."""
    from durably.browser_streams import StreamRequest, Streams

    server = Streams(client, path, **options, caller=caller, raises=(HTTPException,))

    def answer(request: flask.Request) -> flask.Response:
        made = StreamRequest(
            method=request.method,
            query=request.query_string.decode("latin-1"),
            headers=headers_of(request.environ),
            raw_request=request,
        )
        return to_response(server.handle_sync(made, request.environ))

    return server.path, answer


def _add(app: flask.Flask, path: str, endpoint: Endpoint, name: str, **options: Any) -> None:
    app.add_url_rule(path, f"{name}:{path}", lambda: endpoint(current_object(flask.request)), **options)


def _read_body(request: flask.Request, check: Callable[[int], None]) -> bytes:
    """Read the body. ``check`` refuses a size in bytes. Raises the errors in ``UNREADABLE``."""
    environ = request.environ
    is_chunked(environ)
    check_length(environ.get("CONTENT_LENGTH"), check)
    if request.content_length is not None:
        return request.get_data()  # of exactly that length, even if a hook of the app has already read it
    return read_body(request.stream.read, None, (HTTPException,), check)


def _to_flask(response: CommResponse) -> flask.Response:
    content = response.body if response.stream is None else flask.stream_with_context(response.stream_sync())
    return flask.Response(content, response.status_code, response.headers)


def _start_with_app(app: flask.Flask, engine: InProcessEngine) -> None:
    """Start with the server, or with the first request to any URL.

    The request starts the engine if the server is unknown.
    """
    flask.request_started.connect(lambda _: engine.start_with_request(), app, weak=False)
    engine.start_with_server()
