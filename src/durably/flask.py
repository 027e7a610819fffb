"""Serving functions in a Flask app."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

try:
    import flask
    from werkzeug.exceptions import HTTPException
except ImportError as error:
    raise ImportError('durably.flask needs Flask: pip install "durably[flask]"') from error

from durably.comm.serve_options import StreamingOption, add_mount, check_mount, mount_path
from durably.functions.function import Function
from durably.web import METHODS, UNREADABLE, check_length, is_chunked, read_body
from durably.web.flask import add_rule, mount_point, to_response
from durably.web.flask import read_body as read_form

from .client import Client
from .comm import CommHandler, CommRequest, CommResponse
from .engines import InProcessEngine
from .errors import BodyTooLargeError
from .web.flask import current_object

FRAMEWORK = "flask"


def serve(
    app: flask.Flask,
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

    The arguments are those of ``durably.fast_api.serve``. Sync functions run in the request's thread (with
    streaming in a pool), async ones on the process's background event loop.
    """
    mounts, path = app.extensions.setdefault("durably", {}), mount_path(serve_path)
    check_mount(mounts, path, client, functions)
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        streaming=streaming,
        enable_unauthed_sync=enable_unauthed_sync,
        serve_origin=serve_origin,
        serve_path=serve_path,
        public_path=public_path,
        request_context=app.app_context,
    )
    if (mount := add_mount(mounts, path, handler)) is None:
        return

    def answer() -> flask.Response:
        request: flask.Request = current_object(flask.request)
        try:
            body = _read_body(request)
        except UNREADABLE as error:
            return _to_flask(mount.handler.refuse(error))
        comm_request = CommRequest(
            body=body,
            headers=_headers_of(request.environ),
            has_lower_names=True,
            query_params=request.args,
            raw_request=request,
            request_url=lambda: request.url,
        )
        return _to_flask(mount.handler.handle_sync(request.method, comm_request))

    if client.in_process is not None:
        _start_with_app(app, client.in_process)
    app.add_url_rule(path, f"durably:{path}", answer, methods=["GET", "POST", "PUT"])


def dashboard(
    app: flask.Flask,
    client: Client,
    path: str = "/durably",
    *,
    authorize: Callable[[Any], Any] | None = None,
    allow_anonymous: bool = False,
) -> flask.Blueprint:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    The arguments are those of ``durably.fast_api.dashboard``. ``authorize`` runs in the thread and the context of the
    request. The dashboard checks its own forms: exempt the returned blueprint from an extension that checks them too,
    for example with ``CSRFProtect.exempt`` of Flask-WTF.
    """
    from durably.dashboard import DashboardRequest, MountedDashboard, check_size, refuse

    server = MountedDashboard(
        client,
        path,
        authorize=authorize,
        allow_anonymous=allow_anonymous,
        caller="durably.flask.dashboard",
        raises=(HTTPException,),
    )

    def answer(inner: str = "/") -> flask.Response:
        request: flask.Request = current_object(flask.request)
        try:
            body = read_form(request, check_size, (BodyTooLargeError,)) if request.method == "POST" else b""
        except UNREADABLE as error:
            return to_response(refuse(error))
        made = DashboardRequest(
            method=request.method,
            path=inner,
            mount=mount_point(request, inner),
            headers=_headers_of(request.environ),
            query=request.query_string.decode("latin-1"),
            body=body,
            is_secure=request.is_secure,
            raw_request=request,
        )
        return to_response(server.handle_sync(made))

    name = f"durably-dashboard{server.mount}".replace(".", "-")
    blueprint = flask.Blueprint(name, __name__, url_prefix=server.mount or None)
    add_rule(blueprint, answer, "page")
    if server.mount:
        blueprint.add_url_rule("", "start", answer, methods=list(METHODS), provide_automatic_options=False)
    app.register_blueprint(blueprint)
    return blueprint


def _headers_of(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers by lower-case names. Werkzeug capitalises them, which is slower."""
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
    if content_type := environ.get("CONTENT_TYPE"):
        headers["content-type"] = content_type
    if content_length := environ.get("CONTENT_LENGTH"):
        headers["content-length"] = content_length
    return headers


def _read_body(request: flask.Request) -> bytes:
    """Read the body. Raises the errors in ``UNREADABLE``."""
    environ = request.environ
    is_chunked(environ)
    check_length(environ.get("CONTENT_LENGTH"))
    if request.content_length is not None:
        return request.get_data()  # of exactly that length, even if a hook of the app has already read it
    return read_body(request.stream.read, None, (HTTPException,))


def _to_flask(response: CommResponse) -> flask.Response:
    content = response.body if response.stream is None else flask.stream_with_context(response.stream_sync())
    return flask.Response(content, response.status_code, response.headers)


def _start_with_app(app: flask.Flask, engine: InProcessEngine) -> None:
    """Start with the server, or with the first request to any URL.

    The request starts the engine if the server is unknown.
    """
    flask.request_started.connect(lambda _: engine.start_with_request(), app, weak=False)
    engine.start_with_server()
