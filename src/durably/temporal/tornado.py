"""The gateway in a Tornado application, and errors of Temporal."""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

try:
    import tornado.web
except ImportError as error:
    raise ImportError('durably.temporal.tornado needs Tornado: pip install "durably[tornado,temporal]"') from error

from durably.temporal.gateway.problems import EXCEPTIONS, refused, to_problem
from durably.web import METHODS
from durably.web.tornado import write, write_head

from .gateway import Gateway, GatewayRequest
from .request_log import HTTP_HEADER, RequestLog


class ProblemMixin(tornado.web.RequestHandler):
    """Returns problems for exceptions of Temporal in the app's own handlers."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, EXCEPTIONS):
            write_head(self, response := to_problem(error).response())
            self.finish(response.body or None)
        else:
            super().write_error(status_code, **kwargs)


class RequestLogMixin(tornado.web.RequestHandler):
    """Logs a line for each request, with the ids of its workflows.

    Use it as the first base of the app's own handlers, and with ``routes(gateway, base=…)`` of the gateway's.
    """

    async def _execute(self, *args: Any, **kwargs: Any) -> None:
        # The whole request, in its own task. The app can override ``prepare`` and ``on_finish``.
        given_id = self.request.headers.get(HTTP_HEADER)
        with RequestLog(self.request.method or "", self.request.path, given_id) as log:
            await super()._execute(*args, **kwargs)
            log.status = self.get_status()


def routes(
    server: Gateway,
    *,
    prefix: str = "",
    base: Any = tornado.web.RequestHandler,
    principal: Callable[[tornado.web.RequestHandler], Any] = lambda handler: handler.current_user,
    check_xsrf: bool | None = None,
) -> list[tuple[str, type[tornado.web.RequestHandler]]]:
    """The endpoints of a gateway, for ``Application``.

    - ``base``: the application's own handler class. Its ``get_current_user`` returns the user.
    - ``check_xsrf``: on by default, except for a gateway that is open to all and has no cookies to protect. Turn it off
      if users do not authenticate with cookies.
    """
    checks_xsrf = not server.allow_anonymous if check_xsrf is None else check_xsrf

    class Handler(base):  # type: ignore[misc]
        SUPPORTED_METHODS = METHODS

        def check_xsrf_cookie(self) -> None:
            if checks_xsrf:
                super().check_xsrf_cookie()

        async def _answer(self, path: str) -> None:
            request = self.request
            response = await server.handle(
                GatewayRequest(
                    method=request.method or "",
                    path=path,
                    mount=prefix,
                    headers=dict(request.headers.items()),
                    query_params={
                        name: [value.decode(errors="replace") for value in values]
                        for name, values in request.query_arguments.items()
                    },
                    body=request.body,
                    raw_request=request,
                    principal=None if request.method == "OPTIONS" else principal(self),
                    secrets=_secrets(self.settings),
                )
            )
            await write(self, response)

        get = head = post = put = patch = delete = options = trace = _answer

        def write_error(self, status_code: int, **kwargs: Any) -> None:
            """The response to a request that Tornado refuses, such as one without XSRF."""
            error = kwargs.get("exc_info", (None, None))[1]
            if isinstance(error, tornado.web.HTTPError) and status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                write_head(self, response := server.refuse(self.request.method or "", "", refused(status_code)))
                self.finish(response.body or None)
            else:
                super().write_error(status_code, **kwargs)

    return [(rf"{re.escape(prefix)}/(.*)", Handler)]


def _secrets(settings: Mapping[str, Any]) -> list[str | bytes]:
    """The secrets. ``cookie_secret`` is a secret, or a mapping of versions to secrets."""
    secret = settings.get("cookie_secret")
    if isinstance(secret, Mapping):
        present = secret.get(settings.get("key_version"))
        return [*([present] if present else []), *secret.values()]
    return [secret] if secret else []
