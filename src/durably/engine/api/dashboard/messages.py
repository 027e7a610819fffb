"""Requests, responses and actions in no framework's terms, and the protection of people: headers, cookies, form tokens.

Servers and the dashboard exchange them. ``Finding`` says how the commands that pages show find the engine. A form is
accepted if its token equals the cookie's, and if the browser says that a page of the dashboard sent it.
"""

import hmac
import re
import secrets
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from durably.protocol.events import DEFAULT_PORT
from durably.protocol.headers import is_of_another_site
from durably.protocol.text import redact_url

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function that may block its thread, and returns its result."""


@dataclass(frozen=True, kw_only=True)
class DashboardRequest:
    """A request as an adapter passes it on.

    ``path`` follows the dashboard's mount point ``mount`` (``""`` or ``"/durably"``), begins with a slash and is
    percent-decoded. ``query`` is the undecoded query string without the question mark. Names of ``headers`` are in
    lower case. ``is_secure``: the browser uses HTTPS. ``raw_request`` is the framework's own request, for
    ``authorize``. ``call_blocking`` runs a synchronous ``authorize`` in a thread of the framework; by default in any
    thread. ``peer`` is the address of the client, for the log. ``stream_seconds`` is how long a stream may last before
    the browser opens another, so that one without a reader is not kept; 0 if the server's worker cannot answer others
    during that time (WSGI).
    """

    method: str
    path: str
    mount: str
    headers: Mapping[str, str]
    query: str = ""
    body: bytes = b""
    is_secure: bool = False
    raw_request: Any = field(default=None, repr=False)
    call_blocking: CallBlocking | None = field(default=None, repr=False)
    peer: str | None = None
    stream_seconds: float = 300.0

    @property
    def may_wait(self) -> bool:
        return self.stream_seconds > 0


@dataclass(frozen=True, kw_only=True)
class DashboardResponse:
    """Status, headers and a body; or ``stream``, which yields chunks of a body.

    ``headers`` is a list, since cookies need a header each.
    """

    status_code: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None


@dataclass(frozen=True, kw_only=True)
class Action:
    """The argument of ``authorize``: what a person is about to do.

    ``name`` is ``"view"``, or the name of the engine's operation: ``"cancel_run"``, ``"rerun"``, ``"receive_events"``,
    ``"invoke"``, ``"pause_function"``, ``"resume_function"``, ``"skip_delays"``, ``"cancel_runs"``, ``"replay_runs"``,
    ``"delete_cancellation"``, ``"ask_run"`` (an answer to the run's question). ``subject`` is the id of the run or
    function that it changes. ``request`` is the framework's own request.
    """

    name: str
    request: Any
    subject: str | None = None

    @property
    def is_change(self) -> bool:
        return self.name != "view"


_DEFAULT_ORIGINS = (f"http://127.0.0.1:{DEFAULT_PORT}", f"http://localhost:{DEFAULT_PORT}")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The options and variables that find an engine.

    ``option`` is that of the command line, with a space before it; ``""`` if the default finds the engine, ``None`` if
    no command can. ``variable`` is for the environment of apps; ``None`` if the engine runs in an app's own processes.
    ``needs_keys``: both need the engine's keys in their environment, too.
    """

    option: str | None = None
    variable: str | None = None
    needs_keys: bool = False


FindingOf = Callable[[DashboardRequest], Finding]


def at_url(url: str, *, is_dev: bool) -> Finding:
    """An engine with an API at a URL."""
    if is_dev and url.rstrip("/") in _DEFAULT_ORIGINS:
        return Finding(option="", variable="DURABLY_DEV=1")
    shown = shlex.quote(redact_url(url).rstrip("/"))
    name = "DURABLY_DEV" if is_dev else "DURABLY_ENGINE_URL"
    return Finding(option=f" --url {shown}", variable=f"{name}={shown}", needs_keys=not is_dev)


def at_address_of(request: DashboardRequest, *, is_dev: bool) -> Finding:
    """The engine that serves the dashboard itself.

    It has its API at the address that the browser has opened.
    """
    scheme, host = "https" if request.is_secure else "http", request.headers.get("host", "")
    return at_url(f"{scheme}://{host}{request.mount}", is_dev=is_dev)


def on_database(path: str) -> Finding:
    """An engine in an app's own processes."""
    return Finding(option=f" --db {shlex.quote(path)}")


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
    """The token in the request's cookie; ``None`` if it has none of ours.

    ``http.cookies`` drops all cookies if one of them is malformed, and the app may have such ones. Of several cookies
    of the name, the first has the longest path.
    """
    cookies = (part.partition("=") for part in request.headers.get("cookie", "").split(";"))
    token = next((value.strip() for name, _, value in cookies if name.strip() == CSRF_COOKIE), "")
    return token if _TOKEN.fullmatch(token) else None


def make_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_cookie(token: str, request: DashboardRequest) -> tuple[str, str]:
    """The header that gives a browser its token, for the dashboard alone, until the browser is closed."""
    attributes = [f"{CSRF_COOKIE}={token}", f"Path={request.mount or '/'}", "HttpOnly", "SameSite=Lax"]
    return "set-cookie", "; ".join([*attributes, "Secure"] if request.is_secure else attributes)


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
