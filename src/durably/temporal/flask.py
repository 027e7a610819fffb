"""The gateway in a Flask app, and settings and errors of Temporal."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

try:
    import flask
    from werkzeug.exceptions import HTTPException
    from werkzeug.local import LocalProxy
except ImportError as error:
    raise ImportError('durably.temporal.flask needs Flask: pip install "durably[flask,temporal]"') from error

from temporalio import workflow

from durably.errors import BodyInvalidError
from durably.temporal.client.connection import Temporal
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, refused, to_problem, unreadable
from durably.web.flask import add_rule, current_object, mount_point, read_body, run_with_reloader, to_response

from .commands import make_group
from .errors import TemporalSettingsError
from .gateway import Gateway, GatewayRequest
from .settings import FRAMEWORK_KEYS


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
        app.register_error_handler(kind, lambda error: to_response(to_problem(error).response()))


def blueprint(
    server: Gateway,
    *,
    name: str = "temporal",
    url_prefix: str | None = None,
    principal: Callable[[], Any] | None = None,
) -> flask.Blueprint:
    """The endpoints of a gateway, for ``app.register_blueprint``.

    ``principal`` returns the user, such as ``lambda: flask_login.current_user``. ``authorize`` gets it as
    ``action.principal``, in the thread and the context of the request.
    """

    def answer(path: str) -> flask.Response:
        request: flask.Request = current_object(flask.request)
        try:
            body = read_body(request, server.check_length, (Problem,))
        except (Problem, HTTPException, BodyInvalidError, OSError) as error:
            problem = error if isinstance(error, Problem) else unreadable()
            if isinstance(error, HTTPException):
                problem = refused(error.code or HTTPStatus.BAD_REQUEST)
            return to_response(server.refuse(request.method, path, problem))
        who = None if principal is None or request.method == "OPTIONS" else principal()
        if type(who) is LocalProxy:  # It has another value in other threads.
            who = current_object(who)
        config = flask.current_app.config
        secrets = [flask.current_app.secret_key, *(config.get("SECRET_KEY_FALLBACKS") or ())]
        response = server.handle_sync(
            GatewayRequest(
                method=request.method,
                path=path,
                mount=mount_point(request, path),
                headers=dict(request.headers.items()),
                query_params=request.args,
                body=body,
                raw_request=request,
                principal=who,
                secrets=[secret for secret in secrets if secret],
            )
        )
        return to_response(response)

    made = flask.Blueprint(name, __name__, url_prefix=url_prefix)
    add_rule(made, answer, "gateway")
    return made
