"""The sign-in of an engine's dashboard in production: a key, or a proxy.

Both are in front of a ``Dashboard`` that is open to everyone they let through.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlencode

from durably.protocol.engine_errors import EngineError
from durably.protocol.text import get_logger, printable

from .dashboard import Dashboard
from .messages import DashboardRequest, DashboardResponse, describe_forgery, make_cookie, read_cookie
from .templating import ASSETS
from .visit import PageError, parse_fields

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
SESSION_SECONDS = 12 * 3600
LEAST_KEY_LENGTH = 16
MAX_WRONG_KEYS = 5
WRONG_KEY_SECONDS = 60.0

_COOKIE = "durably-session"
_SESSION = re.compile(r"(?P<expiry>[0-9]{1,12})\.(?P<id>[0-9a-f]{32})\.(?P<signature>[0-9a-f]{64})")
_MOST_REMEMBERED = 10_000
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_OF_BROWSERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "authorization", "connection", "content-length", "content-type"}
    | {"cookie", "host", "origin", "referer", "user-agent", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
)
_LOCAL = ("127.0.0.0/8", "::1/128")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_logger = get_logger("durably.dashboard")


class SignInConfigError(EngineError):
    """The configuration of the dashboard's sign-in is not usable."""


class DashboardServer(Protocol):
    """A dashboard, perhaps behind a sign-in."""

    async def handle(self, request: DashboardRequest) -> DashboardResponse: ...


SignIn = Callable[[Dashboard], DashboardServer]
"""Puts a sign-in in front of a dashboard that is open to all. Raises ``SignInConfigError``."""


class _Role:
    """The visitors with one key, and the dashboard that they see.

    Their sessions are signed with the key.
    """

    def __init__(self, dashboard: Dashboard, key: str) -> None:
        check_key(key)
        self.dashboard = dashboard
        self._key = key.strip().encode(errors="surrogateescape")
        self._secret = hmac.digest(self._key, b"sessions of the dashboard", hashlib.sha256)

    def has_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self._key)

    def sign(self, content: str) -> str:
        return hmac.new(self._secret, content.encode(), hashlib.sha256).hexdigest()


class KeySignIn:
    """A dashboard for visitors who know a key.

    With the ``viewer_key`` they see all, and change nothing. The browser keeps a signed cookie for ``SESSION_SECONDS``.
    Its signature is made with the key, so sessions survive a restart, and end if the key changes. Wrong keys are
    counted by address: behind ``proxies``, which add the address of their client to X-Forwarded-For, by that one.
    ``clock`` is the time in seconds since the epoch. Raises ``SignInConfigError`` for a key that could be guessed.
    """

    def __init__(
        self,
        dashboard: Dashboard,
        key: str,
        *,
        viewer_key: str | None = None,
        proxies: Iterable[Network] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dashboard, self._clock = dashboard, clock
        self._roles = [_Role(dashboard, key)]
        if viewer_key is not None:
            if viewer_key.strip() == key.strip():
                raise SignInConfigError("the dashboard's key for viewers must not be that for all")
            self._roles.append(_Role(dashboard.for_viewers(), viewer_key))
        self._proxies = list(proxies)
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._attempts = WrongKeys(clock)

    def __repr__(self) -> str:
        return "KeySignIn()"

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        """The dashboard's answer to a visitor who is signed in, or the form."""
        try:
            return await self._answer(request)
        except PageError as error:
            return await self._dashboard.show_error(request, error)

    async def _answer(self, request: DashboardRequest) -> DashboardResponse:
        if request.path == SIGN_IN:
            return await self._answer_form(request)
        session, role = self._session_of(request)
        if request.path == SIGN_OUT and request.method == "POST":
            return await self._sign_out(request, session)
        if session is not None or request.path.startswith(ASSETS):
            return await role.dashboard.handle(replace(request, sign_out=SIGN_OUT if session else None))
        if request.method not in ("GET", "HEAD") or request.path == SIGN_OUT:
            raise PageError(403, "You are not signed in", "Your session has ended. Sign in again.")
        there = request.path + (f"?{request.query}" if request.query else "")
        query = "" if there == "/" else f"?{urlencode({'next': there})}"
        return _redirect(f"{request.mount}{SIGN_IN}{query}")

    async def _answer_form(self, request: DashboardRequest) -> DashboardResponse:
        if request.method in ("GET", "HEAD"):
            if self._session_of(request)[0] is not None:
                return _redirect(request.mount + local_path(parse_fields(request.query).get("next")))
            return await self._show_form(request)
        if request.method != "POST":
            raise PageError(405, "This cannot be done here", "The page takes GET and POST only.")
        form = parse_fields(request.body.decode(errors="replace"))
        if (forgery := describe_forgery(request, form)) is not None:
            return await self._show_form(request, 403, forgery)
        client = client_address(request, self._proxies)
        if (seconds := self._attempts.seconds_to_wait(client)) > 0:
            shown = await self._show_form(request, 429, f"Too many wrong keys. Wait {seconds:.0f} s, then try again.")
            return replace(shown, headers=[*shown.headers, ("retry-after", f"{seconds:.0f}")])
        # Each key is compared, so that the time does not depend on which one is nearly right.
        roles = [role for role in self._roles if role.has_key(form.get("key", ""))]
        if not roles:
            self._attempts.add(client)
            _logger.warning("a wrong key was given at the sign-in of the dashboard, from %s", _shown(client))
            return await self._show_form(request, 403, "This is not the dashboard's key.")
        _logger.info("a visitor signed in to the dashboard, from %s", _shown(client))
        cookie = make_cookie(request, _COOKIE, self._new_session(roles[0]), max_age=SESSION_SECONDS)
        return _redirect(request.mount + local_path(parse_fields(request.query).get("next")), cookie)

    async def _show_form(
        self, request: DashboardRequest, status: int = 200, problem: str | None = None
    ) -> DashboardResponse:
        query = f"?{request.query}" if request.query else ""
        return await self._dashboard.show_page(
            request, "sign_in.html", status, problem=problem, action=f"{request.mount}{SIGN_IN}{query}"
        )

    async def _sign_out(self, request: DashboardRequest, session: Mapping[str, str] | None) -> DashboardResponse:
        form = parse_fields(request.body.decode(errors="replace"))
        if (forgery := describe_forgery(request, form)) is not None:
            raise PageError(403, "The form was refused", forgery)
        if session is not None:
            self._ended[session["id"]] = float(session["expiry"])
            while len(self._ended) > _MOST_REMEMBERED:
                self._ended.popitem(last=False)
        return _redirect(f"{request.mount}{SIGN_IN}", make_cookie(request, _COOKIE, "", max_age=0))

    # sessions

    def _new_session(self, role: _Role) -> str:
        content = f"{int(self._clock()) + SESSION_SECONDS}.{secrets.token_hex(16)}"
        return f"{content}.{role.sign(content)}"

    def _session_of(self, request: DashboardRequest) -> tuple[Mapping[str, str] | None, _Role]:
        """The parts of the request's session, and its role.

        The parts are ``None`` if it has no valid session.
        """
        visitor = self._roles[-1]
        found = _SESSION.fullmatch(read_cookie(request.headers, _COOKIE) or "")
        if found is None:
            return None, visitor
        content = f"{found['expiry']}.{found['id']}"
        roles = [role for role in self._roles if hmac.compare_digest(role.sign(content), found["signature"])]
        if not roles or int(found["expiry"]) <= self._clock() or found["id"] in self._ended:
            return None, visitor
        return found.groupdict(), roles[0]


class WrongKeys:
    """Wrong keys of the last ``WRONG_KEY_SECONDS``, by address."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def seconds_to_wait(self, peer: str | None) -> float:
        """Seconds until the address may try again; 0 if it may now."""
        recent = self._recent(_group(peer))
        return 0.0 if len(recent) < MAX_WRONG_KEYS else max(recent[0] + WRONG_KEY_SECONDS - self._clock(), 1.0)

    def add(self, peer: str | None) -> None:
        group = _group(peer)
        self._times[group] = [*self._recent(group), self._clock()]
        self._times.move_to_end(group)
        while len(self._times) > _MOST_REMEMBERED:
            self._times.popitem(last=False)

    def _recent(self, group: str) -> list[float]:
        since = self._clock() - WRONG_KEY_SECONDS
        return [each for each in self._times.get(group, ()) if each > since]


class ProxySignIn:
    """A dashboard for visitors whom a proxy has signed in.

    The proxy's requests have a header with the user's name. It is accepted only from the addresses and networks in
    ``proxies``, by default those of this machine. Raises ``SignInConfigError`` for a header that browsers set.
    """

    def __init__(self, dashboard: Dashboard, header: str, proxies: Iterable[Network] = ()) -> None:
        check_header(header)
        self._dashboard, self._header = dashboard, header.lower()
        self._networks = list(proxies) or [read_network(text) for text in _LOCAL]

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        """The dashboard's answer to a visitor who is signed in, or a refusal."""
        if not _is_in(request.peer, self._networks):
            message = "This dashboard is reached by its proxy only."
        elif not request.headers.get(self._header, "").strip():
            message = f"The proxy has not signed you in: its request has no header {self._header}."
        else:
            return await self._dashboard.handle(request)
        return await self._dashboard.show_error(request, PageError(403, "You are not signed in", message))


def client_address(request: DashboardRequest, proxies: Collection[Network]) -> str | None:
    """The address of the client in front of the ``proxies``.

    It is the last one of X-Forwarded-For that is not a proxy's, because clients may write the earlier ones themselves.
    """
    address = request.peer
    forwarded = request.headers.get("x-forwarded-for", "").split(",")
    while forwarded and _is_in(address, proxies):
        before = forwarded.pop().strip()
        if _address(before) is None:
            break
        address = before
    return address


def _is_in(peer: str | None, networks: Iterable[Network]) -> bool:
    address = _address(peer)
    return address is not None and any(address in network for network in networks)


def check_key(key: str) -> None:
    """Raises ``SignInConfigError`` for a key that could be guessed."""
    if len(key.strip()) < LEAST_KEY_LENGTH:
        raise SignInConfigError(
            f"the dashboard's key must have {LEAST_KEY_LENGTH} characters or more, because it could be guessed "
            "otherwise: `durably keys --dashboard` makes one"
        )


def check_header(header: str) -> None:
    """Raises ``SignInConfigError`` for a header that browsers set, or is invalid."""
    if not _HEADER.fullmatch(header) or header.lower() in _OF_BROWSERS or header.lower().startswith("sec-"):
        raise SignInConfigError(f"the dashboard's proxy header must be one that only the proxy sets, not {header!r}")


def read_network(text: str) -> Network:
    """Raises ``SignInConfigError``."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise SignInConfigError(
            f"{text!r} is not an address or a network of a proxy, such as 10.0.0.5 or 10.0.0.0/24"
        ) from None


def local_path(text: str | None) -> str:
    """The path of a redirect that stays in the dashboard; ``"/"`` for any other."""
    is_local = text is not None and re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", text) is not None
    return text if text is not None and is_local else "/"


def _redirect(location: str, *cookies: tuple[str, str]) -> DashboardResponse:
    return DashboardResponse(status_code=303, headers=[("location", location), ("cache-control", "no-store"), *cookies])


def _address(peer: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _group(peer: str | None) -> str:
    """The addresses that one client can choose from: for IPv6, a network of 64 bits."""
    address = _address(peer)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _shown(peer: str | None) -> str:
    return printable(peer or "an unknown address")
