"""Django's own CSRF check, whose refusals are problem documents at the gateway and not a page for browsers.

Middleware refuses before a view is asked, so the gateway's view is exempt from it and asks for the check itself.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.module_loading import import_string

from durably.protocol.text import printable
from durably.temporal.gateway.problems import Problem

_logger = logging.getLogger("django.security.csrf")


def csrf_check() -> Callable[[Any], None]:
    """The check that the project's middleware makes; it raises a problem. None is made in a project without it."""
    for path in settings.MIDDLEWARE:
        kind = import_string(path)
        if isinstance(kind, type) and issubclass(kind, CsrfViewMiddleware):
            return _make_check(kind)
    return lambda request: None


def _make_check(kind: type[Any]) -> Callable[[Any], None]:
    """``kind`` may be the project's own, which exempts requests with a token, say."""

    class Check(kind):  # type: ignore[misc]
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
        """What the middleware is told of: a view that is not exempt."""

    check = Check(view)
    return lambda request: check.process_view(request, view, (), {})
