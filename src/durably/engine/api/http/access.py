"""Access to the HTTP API: allowed hosts, cross-origin requests, and keys."""

import hmac
import ipaddress
import logging
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec
from aiohttp import hdrs, web

from durably.engine.api.operations import Access
from durably.engine.model.subscriptions import SparseLog
from durably.protocol.headers import Header, ServerKind
from durably.protocol.signatures import bearer_token, check_signing_key, hash_signing_key
from durably.protocol.text import get_logger, is_name

from .messages import ApiError

_logger = get_logger("durably.engine.api")

_ADVICE = "only local ones are allowed; `durably dev --allowed-host NAME` allows another"
_SITE = "sec-fetch-site"
_MOST_KNOWN = 100
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_HOST = "*"
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(?::[0-9]{0,5})?")


class AllowedHosts:
    """The hosts to which a development engine answers.

    ``listening`` is the host that the engine listens on, ``names`` are further hosts. Loopback addresses, ``localhost``
    and the host that it listens on are always allowed. If the engine listens on all addresses (0.0.0.0, ::), any IP
    address is allowed, because DNS cannot redirect it. ``"*"`` among the names allows every host.
    """

    def __init__(self, listening: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._any = ANY_HOST in names
        self._any_address = listening in ("", "0.0.0.0", "::")
        self._names = frozenset(_normalise(name) for name in (*LOOPBACK_HOSTS, listening, *names))

    def allows_host(self, header: str | None) -> bool:
        """Whether a request may have this ``Host`` header.

        The header is a name or an address, with or without a port.
        """
        match = _HOST.fullmatch(header or "")
        return match is not None and self._allows(match["ipv6"] or match["name"])

    def allows_origin(self, header: str) -> bool:
        """Whether a page of this ``Origin`` may make requests."""
        try:
            host = urlsplit(header).hostname
        except ValueError:  # such as "http://["
            return False
        return host is not None and self._allows(host)

    def refuse(self, request: web.Request) -> str | None:
        """The reason why a development engine refuses this request.

        ``None`` if the engine accepts it.
        """
        header, host, origin = request.headers.get(hdrs.HOST), request.host, request.headers.get(hdrs.ORIGIN)
        if header is None:
            return "the development engine refuses requests without a Host header"
        # An absolute URL in the request line replaces the header (RFC 9112 §3.2.2). aiohttp returns it as the host.
        for name in (header, host):
            if not self.allows_host(name):
                return f"the development engine refuses requests to the host {name!a}: {_ADVICE}"
        if origin and not self.allows_origin(origin):
            return f"the development engine refuses requests of pages of another origin, {origin!a}: {_ADVICE}"
        if not origin and not self._any and _is_embedded_elsewhere(request):
            return f"the development engine refuses requests of pages of another site: {_ADVICE}"
        return None

    def _allows(self, host: str) -> bool:
        host = _normalise(host)
        if self._any or host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


def _is_embedded_elsewhere(request: web.Request) -> bool:
    """Whether a page of another site loads this, as an image or a script.

    Browsers then send no ``Origin``. A link to this site is a navigation, and is allowed.
    """
    headers = request.headers
    return headers.get(_SITE) == "cross-site" and headers.get("sec-fetch-mode") != "navigate"


def check_allowed_host(name: str) -> str:
    """The name in its form for comparison.

    Raises ``ValueError`` for a URL, or a host with a port.
    """
    if name == ANY_HOST:
        return name
    bare = _normalise(name)
    is_host = _is_address(bare) if ":" in bare else _HOST.fullmatch(bare) is not None
    if not is_host:
        raise ValueError(f"{name!r} is not a host: give a name or an address, without scheme, port and path")
    return bare


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _normalise(host: str) -> str:
    """The host in its form for comparison.

    It is in lower case, without the dot of an absolute name. An address is in its shortest form.
    """
    host = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


class ApiKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that the API accepts.

    Raises ``ValueError`` for cloud mode without keys, or for a key that is only a prefix.
    """

    server_kind: ServerKind
    event_keys: tuple[str, ...] = ()
    signing_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.server_kind is ServerKind.CLOUD and not (all(map(is_name, self.event_keys)) and self.event_keys):
            raise ValueError("an engine in cloud mode needs an event key, and none may be blank")
        if self.server_kind is ServerKind.CLOUD and not (all(self.signing_keys) and self.signing_keys):
            raise ValueError("an engine in cloud mode needs a signing key")
        for key in self.signing_keys:
            check_signing_key(key, "ApiKeys(signing_keys=…)")

    def __repr__(self) -> str:
        return f"ApiKeys({self.server_kind}, {len(self.event_keys)} event keys, {len(self.signing_keys)} signing keys)"


class AccessCheck:
    """Checks who may use a route.

    ``hosts`` is used in dev mode only, which needs no keys.
    """

    def __init__(self, keys: ApiKeys, hosts: AllowedHosts) -> None:
        self._is_dev = keys.server_kind is ServerKind.DEV
        self._event_keys = keys.event_keys
        # The JavaScript SDK keeps the key's prefix before the hash, the Python SDK sends only the hash.
        self._tokens = tuple(form(key) for key in keys.signing_keys for form in (bearer_token, hash_signing_key))
        self._hosts = hosts
        self._refusals = SparseLog(_logger)
        self._known_hosts: set[str] = set()

    def check(self, request: web.Request, access: Access) -> None:
        """Check that a request may use a route.

        Raises ``ApiError``: 403 for a foreign host or origin, 401 for a missing or wrong key.
        """
        if self._is_dev:
            host = request.headers.get(hdrs.HOST)
            headers = request.headers
            is_known = host in self._known_hosts and host == request.host
            if is_known and hdrs.ORIGIN not in headers and _SITE not in headers:
                return
            if refusal := self._hosts.refuse(request):
                self._refusals.log(logging.WARNING, "%s", refusal)
                raise ApiError(403, refusal)
            if host is not None and len(self._known_hosts) < _MOST_KNOWN:
                self._known_hosts.add(host)
        elif access is Access.EVENT_KEY:
            _check_event_key(request, self._event_keys)
        elif access is not Access.OPEN:
            _check_bearer(request, self._tokens)


def _check_event_key(request: web.Request, event_keys: Iterable[str]) -> None:
    if not _is_one_of(request.match_info["key"], event_keys):
        raise ApiError(
            401,
            "unknown event key: send events to /e/<event key> with a key that the engine was given (senders take it "
            "from DURABLY_EVENT_KEY)",
        )


def _check_bearer(request: web.Request, tokens: Iterable[str]) -> None:
    scheme, _, token = request.headers.get(Header.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ApiError(
            401,
            "the request needs the header Authorization: Bearer <hashed signing key> (apps and commands send it if "
            "DURABLY_SIGNING_KEY is set)",
        )
    if not _is_one_of(token.strip(), tokens):
        raise ApiError(
            401,
            "the bearer token is not the hash of one of the engine's signing keys: give both sides the same "
            "DURABLY_SIGNING_KEY",
        )


def _is_one_of(given: str, accepted: Iterable[str]) -> bool:
    # All are compared, so that the time does not show which key matched.
    matches = [hmac.compare_digest(_bytes(given), _bytes(one)) for one in accepted]
    return any(matches)


def _bytes(text: str) -> bytes:
    # Bytes of a header that are not UTF-8 arrive as surrogates.
    return text.encode(errors="surrogateescape")
