"""The dashboard in a Django project."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import django.urls
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404

from durably.client import Client
from durably.errors import BodyInvalidError, BodyTooLargeError, FunctionConfigInvalidError
from durably.execution.step import is_async
from durably.web import UNREADABLE, check_length, lower_headers
from durably.web.django import SyncAndAsyncView, in_djangos_thread, to_response

Urls = tuple[list[Any], str, str]


class _LoginNeededError(Exception):
    """An anonymous user may not see the dashboard."""


def dashboard(
    client: Client,
    *,
    authorize: Callable[[Any], Any] | None = None,
    allow_anonymous: bool = False,
    namespace: str = "durably",
) -> Urls:
    """The dashboard's URLs, for ``path`` like ``admin.site.urls``.

    Use them as ``path("durably/", durably.django.dashboard(client))``.

    By default staff with the permission ``durably.view_dashboard`` see it, staff with ``durably.change_dashboard`` may
    use its actions, and superusers may do both. The permissions exist if ``"durably.django"`` is in ``INSTALLED_APPS``.
    Users who have not logged in are redirected to the login page. The other arguments are those of
    ``durably.starlette.dashboard``; ``action.request`` is the request, and ``authorize`` may use the ORM. Raises
    ``FunctionConfigInvalidError`` without ``django.contrib.auth`` and ``authorize``.
    """
    from durably.dashboard import MountedDashboard, name_permission, refuse

    if authorize is None and not allow_anonymous:
        if not apps.is_installed("django.contrib.auth"):
            raise FunctionConfigInvalidError(
                "durably.django.dashboard shows the dashboard to staff, and the project has no django.contrib.auth in "
                "INSTALLED_APPS: give it authorize=, or allow_anonymous=True, with which every visitor can see all "
                "data and change runs"
            )
        authorize = is_permitted
    is_default = authorize is is_permitted
    server = MountedDashboard(
        client,
        "/",
        authorize=None if authorize is None else _with_login(authorize),
        allow_anonymous=allow_anonymous,
        caller="durably.django.dashboard",
        raises=(PermissionDenied, Http404, _LoginNeededError),
        permission_of=_describe_permission if is_default else name_permission,
    )

    def answer(request: Any, path: str, **of_prefix: Any) -> Any:
        try:
            return to_response(server.handle_sync(_read(request, path)))
        except UNREADABLE as error:
            return to_response(refuse(error))
        except _LoginNeededError:
            return _to_login(request, path)

    async def answer_async(request: Any, path: str, **of_prefix: Any) -> Any:
        try:
            return to_response(await server.handle(_read(request, path)))
        except UNREADABLE as error:
            return to_response(refuse(error))
        except _LoginNeededError:
            return _to_login(request, path)

    view: Any = SyncAndAsyncView(answer, answer_async, csrf_exempt=True)  # the dashboard checks its own token
    return [django.urls.re_path(r"^(?P<path>[\s\S]*)\Z", view, name="dashboard")], "durably", namespace


def is_permitted(action: Any) -> bool:
    """Whether the user is staff with the permission for an action: the default policy."""
    user = getattr(action.request, "user", None)
    if user is None:
        raise FunctionConfigInvalidError(
            "durably.django.dashboard shows the dashboard to staff, and requests have no user: add "
            "django.contrib.auth.middleware.AuthenticationMiddleware to MIDDLEWARE, or give it authorize="
        )
    return bool(user.is_active and user.is_staff and user.has_perm(_permission_of(action.name)))


def _permission_of(action: str) -> str:
    return "durably.view_dashboard" if action == "view" else "durably.change_dashboard"


def _describe_permission(action: str) -> str:
    return f"a staff account with the permission {_permission_of(action)}"


def _with_login(authorize: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same policy, with the login page for users who have not logged in.

    It is shown to users who may not see the dashboard.
    """

    def check(action: Any, verdict: Any) -> Any:
        user = getattr(action.request, "user", None)
        if verdict is False and not action.is_change and user is not None and not user.is_authenticated:
            raise _LoginNeededError
        return verdict

    if is_async(authorize):

        async def check_async(action: Any) -> Any:
            verdict = await authorize(action)
            return await sync_to_async(check)(action, verdict)

        return check_async
    return lambda action: check(action, authorize(action))


def _to_login(request: Any, path: str) -> Any:
    """Redirect to the login page: the admin's, if the project has it.

    It leads back to a page, and not to an action.
    """
    from django.contrib.auth.views import redirect_to_login

    try:
        login = django.urls.reverse("admin:login")
    except django.urls.NoReverseMatch:
        login = settings.LOGIN_URL
    back = request.get_full_path()
    if request.method not in ("GET", "HEAD"):
        back = request.path.removesuffix(path)
        sender = urlsplit(request.headers.get("referer", ""))
        if sender.netloc == request.get_host() and sender.path.startswith(back):
            back = urlunsplit(("", "", sender.path, sender.query, ""))
    return redirect_to_login(back, login)


def _read(request: Any, path: str) -> Any:
    """The dashboard's request. Raises the errors in ``UNREADABLE``."""
    from durably.dashboard import DashboardRequest

    return DashboardRequest(
        method=request.method,
        path=f"/{path}",
        mount=request.path.removesuffix(path).rstrip("/"),
        headers=lower_headers(request.headers.items()),
        query=request.META.get("QUERY_STRING", ""),
        body=_read_body(request) if request.method == "POST" else b"",
        is_secure=request.is_secure(),
        raw_request=request,
        call_blocking=in_djangos_thread,
    )


def _read_body(request: Any) -> bytes:
    from durably.dashboard import check_size

    check_length(request.headers.get("content-length"), check_size)
    try:
        return bytes(request.body)
    except RequestDataTooBig as error:
        raise BodyTooLargeError(f"{error} (DATA_UPLOAD_MAX_MEMORY_SIZE)") from None
    except (SuspiciousOperation, OSError, ValueError) as error:
        raise BodyInvalidError(f"the request's body cannot be read: {type(error).__name__}") from None
