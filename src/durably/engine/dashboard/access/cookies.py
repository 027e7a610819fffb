"""Cookies of the dashboard."""

from collections.abc import Mapping

from durably.engine.dashboard.messages import DashboardRequest


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
