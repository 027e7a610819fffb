"""The gateway in a Flask app, and settings and errors of Temporal."""

import io
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

try:
    import flask
    from flask.blueprints import BlueprintSetupState
    from werkzeug.exceptions import HTTPException
    from werkzeug.local import LocalProxy
    from werkzeug.routing import PathConverter
except ImportError as error:
    raise ImportError('durably.temporal.flask needs Flask: pip install "durably[flask,temporal]"') from error

from temporalio import workflow

from durably.errors import BodyInvalidError
from durably.io.bodies import read_body
from durably.temporal.gateway.messages import RequestHandler
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, refused, to_problem, unreadable
from durably.werkzeug_compat import current_object, run_with_reloader

from .codec_server import CodecServer
from .commands.worker import make_group
from .connection import Temporal
from .errors import TemporalSettingsError
from .gateway import Gateway, GatewayRequest, GatewayResponse, iterate_sync
from .settings import FRAMEWORK_KEYS

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
"""The gateway handles all of them: an unsupported one has the same response in each framework."""


class _AnyPath(PathConverter):
    """Any path, also with empty segments: the gateway reports errors in it."""

    regex = r"[\s\S]*?"
    part_isolating = False


_ANY_PATH = "durably_any_path"


def init_app(app: flask.Flask, temporal: Temporal) -> None:
    """Configure the connection with ``TEMPORAL_…`` keys of ``app.config``.

    The environment and arguments of ``Temporal`` take precedence. Exceptions of ``temporalio`` and of the connection in
    the app's own views are answered with problem documents. ``flask temporal worker`` runs the workers that
    ``temporal.add_worker`` declares, with activities in the app's context.

    An app with several connections calls this for each; all but one have a name. The settings of
    ``Temporal(name="billing")`` begin with ``TEMPORAL_BILLING_``, and its commands are ``flask temporal-billing``.
    Raises ``TemporalSettingsError`` for a second connection of one name.
    """
    if workflow.unsafe.in_sandbox():
        return  # The sandbox imports a single-file app again for each workflow. The process has set up the app already.

    def configuration() -> dict[str, Any]:
        given = app.config.get_namespace(temporal.variable_prefix, lowercase=False)
        return {name: value for name, value in given.items() if name in FRAMEWORK_KEYS}

    extension = "durably-temporal" if temporal.name is None else f"durably-temporal-{temporal.name}"
    if app.extensions.setdefault(extension, temporal) is not temporal:
        raise TemporalSettingsError(
            'the app has another connection to Temporal of that name: give this one a name, Temporal(name="billing")'
        )
    temporal.configure(configuration)
    commands = make_group(temporal, context=app.app_context, run_with_reloader=run_with_reloader)
    app.cli.add_command(commands, extension.removeprefix("durably-"))
    for kind in EXCEPTIONS:
        app.register_error_handler(kind, _handle)


def blueprint(
    gateway: Gateway,
    *,
    name: str = "temporal",
    url_prefix: str | None = None,
    principal: Callable[[], Any] | None = None,
    docs: bool | str = False,
) -> flask.Blueprint:
    """The gateway's endpoints and ``openapi.json``, for ``app.register_blueprint``.

    ``principal`` returns the user, such as ``lambda: flask_login.current_user``. ``authorize`` gets it as
    ``action.principal``, in the thread and the context of the request.
    ``docs=True`` adds a page with Swagger UI at ``docs``, with its code from a CDN; a URL is that of the app's own copy
    of the npm package ``swagger-ui-dist``.
    """
    made = flask.Blueprint(name, __name__, url_prefix=url_prefix)

    def answer(path: str) -> flask.Response:
        return _answer(gateway, path, principal)

    def document() -> flask.Response:
        mount = _mount(flask.request, "openapi.json")
        return _to_flask(gateway.answer_document(flask.request.method, mount=mount, title=flask.current_app.name))

    def docs_page() -> flask.Response:
        return _to_flask(gateway.answer_docs(flask.request.method, title=flask.current_app.name, docs=docs))

    if docs:
        made.add_url_rule("/docs", "docs", docs_page, methods=_METHODS, provide_automatic_options=False)
    made.add_url_rule("/openapi.json", "openapi", document, methods=_METHODS, provide_automatic_options=False)
    _add_rule(made, answer)
    return made


def codec_blueprint(
    server: CodecServer,
    *,
    name: str = "temporal-codec",
    url_prefix: str | None = None,
    principal: Callable[[], Any] | None = None,
) -> flask.Blueprint:
    """A codec server for Temporal's web UI and CLI: ``/encode`` and ``/decode``.

    ``principal`` is as for ``blueprint``. Preflight requests have none. ``app.register_blueprint`` raises
    ``TemporalSettingsError`` for a connection without a codec, if ``init_app`` has been called for it before.
    """
    made = flask.Blueprint(name, __name__, url_prefix=url_prefix)

    def answer(path: str) -> flask.Response:
        return _answer(server, path, None if flask.request.method == "OPTIONS" else principal)

    def check_codecs(state: BlueprintSetupState) -> None:
        # A connection without init_app reads its settings later.
        if all(each in state.app.extensions.values() for each in server.connections):
            server.check()

    made.record(check_codecs)
    _add_rule(made, answer)
    return made


def _add_rule(blueprint: flask.Blueprint, view: Callable[[str], flask.Response]) -> None:
    """A rule for all paths and methods."""

    def add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters[_ANY_PATH] = _AnyPath

    blueprint.record(add_converter)
    blueprint.add_url_rule(
        f"/<{_ANY_PATH}:path>",
        "gateway",
        view,
        methods=_METHODS,
        merge_slashes=False,
        provide_automatic_options=False,
    )


def _answer(server: RequestHandler, path: str, principal: Callable[[], Any] | None) -> flask.Response:
    request: flask.Request = current_object(flask.request)
    try:
        server.check_length(request.content_length)
        body = _read(server, request)
    except Problem as problem:
        return _to_flask(server.refuse(request.method, path, problem))
    response = server.handle_sync(
        GatewayRequest(
            method=request.method,
            path=path,
            mount=_mount(request, path),
            headers=dict(request.headers.items()),
            query_params=request.args,
            body=body,
            raw_request=request,
            principal=None if principal is None else _principal_of(principal),
            secrets=_secrets(flask.current_app),
        )
    )
    return _to_flask(response)


def _principal_of(principal: Callable[[], Any]) -> Any:
    """The user itself: a proxy has another value in other threads."""
    found = principal()
    return current_object(found) if type(found) is LocalProxy else found


def _read(server: RequestHandler, request: flask.Request) -> bytes:
    """Raises a problem. Werkzeug has no limit for a body in chunks."""
    try:
        if request.content_length is not None:
            return request.get_data()
        body = read_body(request.stream.read, None, (HTTPException, Problem), server.check_length)
    except HTTPException as error:
        raise refused(error.code or HTTPStatus.BAD_REQUEST) from error
    except (BodyInvalidError, OSError) as error:
        raise unreadable() from error
    request.__dict__["stream"] = io.BytesIO(body)  # The cached property: ``authorize`` can read it again.
    return body


def _secrets(app: flask.Flask) -> list[str | bytes]:
    return [secret for secret in (app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())) if secret]


def _mount(request: flask.Request, path: str) -> str:
    return request.script_root + request.path.removesuffix(path).rstrip("/")


def _handle(error: Exception) -> flask.Response:
    return _to_flask(to_problem(error).response())


def _to_flask(response: GatewayResponse) -> flask.Response:
    if response.stream is None:
        # For HEAD, Werkzeug would replace Content-Length by that of an empty body.
        return flask.Response(response.body or None, response.status_code, response.headers)
    return flask.Response(iterate_sync(response.stream()), response.status_code, response.headers)
