"""The gateway as Django views.

They are async under ASGI, sync under WSGI.

Also for Django projects: the CSRF check of the gateway, permissions as ``authorize``, and errors of Temporal in the
project's own views.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import django.urls
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from django.http.multipartparser import MultiPartParserError
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from durably.protocol.text import printable
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway import (
    Action,
    Gateway,
    GatewayRequest,
    Operation,
    Unauthenticated,
)
from durably.temporal.gateway.authorization import is_anonymous
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, refused, to_problem, too_large, unreadable
from durably.temporal.request_log import HTTP_HEADER, RequestLog
from durably.web.django import SyncAndAsyncView, to_response

from .conf import project_secrets

_logger = logging.getLogger("django.security.csrf")


def csrf_check() -> Callable[[Any], object]:
    """The CSRF check of the project's middleware, which raises a problem. Without that middleware there is no check.

    Django's middleware would answer with an HTML page before the view is called. So the gateway's view is exempt from
    it, and makes the check itself. The middleware may be the project's own subclass, which may exempt requests with a
    token.
    """
    kinds: list[Any] = [import_string(path) for path in settings.MIDDLEWARE]
    kind = next((each for each in kinds if isinstance(each, type) and issubclass(each, CsrfViewMiddleware)), None)
    if kind is None:
        return lambda request: None

    class Check(kind):  # type: ignore[misc, valid-type]
        def _reject(self, request: Any, reason: str) -> Any:
            _logger.warning(
                "Forbidden (%s): %s", reason, printable(request.path), extra={"status_code": 403, "request": request}
            )
            header = settings.CSRF_HEADER_NAME.removeprefix("HTTP_").replace("_", "-").title()
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "csrf",
                f"Django's CSRF check: {reason.rstrip('.')}. Send the token of the site's CSRF cookie as {header}",
            )

    def view(request: Any) -> None:
        """A view for the middleware, which is not exempt."""

    check = Check(view)
    return lambda request: check.process_view(request, view, (), {})


def require_permissions(
    permissions: Mapping[Operation | str, str], *, otherwise: str | None = None
) -> Callable[[Action], bool]:
    """An ``authorize`` that requires Django's permissions.

    Use it as ``authorize=require_permissions({Operation.START: "shop.add_order"}, otherwise="shop.view_order")``.

    The mapping has the permission for each operation. ``otherwise`` is the permission for all other operations, which
    are refused without it. An anonymous user gets 401. Raises ``TemporalSettingsError`` for unknown operations.
    """
    try:
        wanted = {Operation(operation): permission for operation, permission in permissions.items()}
    except ValueError as error:
        raise TemporalSettingsError(f"{error}; there are {', '.join(Operation)}") from None

    def authorize(action: Action) -> bool:
        if is_anonymous(action.principal):
            raise Unauthenticated("Session")
        permission = wanted.get(action.operation, otherwise)
        return permission is not None and bool(action.principal.has_perm(permission))

    return authorize


Urls = tuple[list[Any], str, str]


def urls(
    server: Gateway,
    *,
    namespace: str = "temporal",
    principal: Callable[[Any], Any] | None = None,
    csrf_exempt: bool | None = None,
) -> Urls:
    """The URLs of a gateway, as with ``admin.site.urls``.

    Use them as ``path("api/", durably.temporal.django.urls(gateway))``.

    - ``principal``: ``authorize`` gets ``principal(request)``, or ``request.user`` by default, as ``action.principal``.
      It may use the ORM.
    - ``csrf_exempt=True``: for APIs whose users send tokens. By default CSRF is checked if the project's middleware
      does so, unless the gateway allows anonymous use, which has no session to protect.
    """
    view: Any = _make_view(server, principal, server.allow_anonymous if csrf_exempt is None else csrf_exempt)
    return [django.urls.re_path(r"^(?P<path>[\s\S]*)\Z", view, name="gateway")], "durably_temporal", namespace


def _make_view(server: Gateway, principal: Callable[[Any], Any] | None, csrf_exempt: bool) -> SyncAndAsyncView:
    check_csrf = (lambda request: None) if csrf_exempt else csrf_check()
    # An open gateway needs no user: that saves a thread, a session and a query.
    principal_of = (lambda request: None) if server.allow_anonymous else principal or _user_of
    may_block = not (server.allow_anonymous and csrf_exempt)

    def read(request: Any, path: str) -> GatewayRequest:
        """Raises a problem."""
        made = _to_gateway(request, path, check_csrf)
        made.principal = principal_of(request)
        return made

    def answer(request: Any, path: str) -> Any:
        try:
            gateway_request = read(request, path)
        except Problem as problem:
            return to_response(server.refuse(request.method, path, problem))
        return to_response(server.handle_sync(gateway_request))

    async def answer_async(request: Any, path: str) -> Any:
        try:
            gateway_request = await sync_to_async(read)(request, path) if may_block else read(request, path)
        except Problem as problem:
            return to_response(server.refuse(request.method, path, problem))
        gateway_request.call_blocking = lambda hook: sync_to_async(hook)()
        return to_response(await server.handle(gateway_request))

    return SyncAndAsyncView(answer, answer_async, csrf_exempt=True)


def _user_of(request: Any) -> Any:
    """``request.user``, evaluated.

    The user is lazy, and the ORM may be unavailable later. ``request.auser()`` would ignore a user that the project's
    own middleware has set.
    """
    user = getattr(request, "user", None)
    getattr(user, "is_authenticated", None)
    return user


def _to_gateway(request: Any, path: str, check_csrf: Callable[[Any], object]) -> GatewayRequest:
    """Make the gateway's request. Raises a problem.

    The body is read before the check, which may look for a token in a form.
    """
    try:
        query_params, body = dict(request.GET.lists()), request.body
        is_cut_off = len(body) < int(request.META.get("CONTENT_LENGTH") or 0)
        check_csrf(request)
    except RequestDataTooBig as error:
        raise too_large(settings.DATA_UPLOAD_MAX_MEMORY_SIZE) from error
    except (SuspiciousOperation, MultiPartParserError) as error:
        raise refused(HTTPStatus.BAD_REQUEST) from error
    except (OSError, ValueError) as error:
        raise unreadable() from error
    if is_cut_off:
        raise unreadable()
    return GatewayRequest(
        method=request.method,
        path=path,
        mount=request.path.removesuffix(path).rstrip("/"),
        headers=request.headers,
        query_params=query_params,
        body=body,
        raw_request=request,
        secrets=project_secrets(),
    )


class TemporalErrorMiddleware(MiddlewareMixin):  # type: ignore[misc]
    """Middleware that answers errors as problem documents, for ``MIDDLEWARE``.

    The errors are those of ``temporalio`` and the connection. Django handles other errors.
    """

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, EXCEPTIONS):
            return None
        response = to_problem(error).response()
        return HttpResponse(response.body, status=response.status_code, headers=response.headers)


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def request_log_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware that logs requests with the ids of workflows.

    Its name in ``MIDDLEWARE`` is ``"durably.temporal.django.request_log_middleware"``. Put it before
    middleware whose time should count.
    """

    def log(request: Any) -> Any:
        with RequestLog(str(request.method), request.path, request.headers.get(HTTP_HEADER)) as line:
            response = get_response(request)
            line.status = response.status_code
            return response

    async def log_async(request: Any) -> Any:
        with RequestLog(str(request.method), request.path, request.headers.get(HTTP_HEADER)) as line:
            response = await get_response(request)
            line.status = response.status_code
            return response

    return markcoroutinefunction(log_async) if inspect.iscoroutinefunction(get_response) else log
