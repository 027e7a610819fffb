"""Protection of people who use the dashboard: headers, cookies, tokens of forms.

A form is accepted if its token equals the cookie's, and if the browser says that a page of the dashboard sent it.
"""

import hmac
import re
import secrets
from collections.abc import Mapping

from durably.protocol.headers import is_of_another_site

from .messages import DashboardRequest


def read_cookie(headers: Mapping[str, str], name: str) -> str | None:
    """The value of a cookie, ``None`` if it is missing.

    ``http.cookies`` drops all cookies if one of them is malformed, and the app may have such ones. Of several cookies
    of the name, the first has the longest path.
    """
    for part in headers.get("cookie", "").split(";"):
        found, _, value = part.partition("=")
        if found.strip() == name:
            return value.strip()
    return None


def make_cookie(request: DashboardRequest, name: str, value: str, *, max_age: int | None = None) -> tuple[str, str]:
    """The header that sets a cookie for the dashboard alone.

    ``max_age`` is in seconds. Without it, the cookie is kept until the browser is closed.
    """
    attributes = [f"{name}={value}", f"Path={request.mount or '/'}", "HttpOnly", "SameSite=Lax"]
    if max_age is not None:
        attributes.append(f"Max-Age={max_age}")
    if request.is_secure:
        attributes.append("Secure")
    return "set-cookie", "; ".join(attributes)


CSRF_COOKIE = "durably-csrf"
CSRF_FIELD = "csrf"
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[\w-]{43}", re.ASCII)

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # "no-referrer" would make browsers send "Origin: null" with forms.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of each answer."""


def read_token(request: DashboardRequest) -> str | None:
    """The token in the request's cookie; ``None`` if it has none of ours."""
    token = read_cookie(request.headers, CSRF_COOKIE)
    return token if token is not None and _TOKEN.fullmatch(token) else None


def make_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_cookie(token: str, request: DashboardRequest) -> tuple[str, str]:
    """The header that gives a browser its token."""
    return make_cookie(request, CSRF_COOKIE, token)


def describe_forgery(request: DashboardRequest, form: Mapping[str, str]) -> str | None:
    """The reason not to accept a form; ``None`` to accept it."""
    if is_of_another_site(request.headers):
        return (
            "The form was sent by a page of another site. If it was not, a proxy changes the Host header: let it pass "
            "on Host, or send X-Forwarded-Host."
        )
    token, given = read_token(request), form.get(CSRF_FIELD, "")
    if token is None or not hmac.compare_digest(token.encode(), given.encode(errors="replace")):
        return "The form is older than your session, or cookies are off. Go back, reload the page and try again."
    return None
