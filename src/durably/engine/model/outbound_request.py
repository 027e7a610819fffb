"""Outbound requests: options, secrets, and the addresses that they may reach.

The address of the socket that is about to connect is checked: after names are resolved, redirects are followed, and
unusual spellings (``0x7f.1``, ``[::ffff:127.0.0.1]``) are parsed. Therefore a name that resolves differently the second
time does not pass the check.
"""

import base64
import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from multidict import CIMultiDict
from yarl import URL

from durably.protocol.text import REDACTED, find_random_words, is_secret_name

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_FORWARDED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of the connection, which the engine sets."""
_HARMLESS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
"""Headers that a redirect to another origin keeps. Any other header may be a credential."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_REDIRECTS_TO_GET = frozenset({301, 302, 303})


class RequestInvalidError(ValueError):
    """The options do not describe a valid request."""


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    method: str
    url: URL
    headers: CIMultiDict[str]
    body: bytes | None

    def redirected(self, status: int, location: str) -> "OutboundRequest":
        """The request that follows a redirect.

        Another origin gets no header that may be a credential. 301, 302 and 303 change all methods but HEAD into GET,
        as in browsers.
        """
        url = _parse_url(location, base=self.url)
        request = replace(self, url=_without_user(url))
        if url.origin() != self.url.origin():
            request = replace(request, headers=_keep(request.headers, _HARMLESS))
        if status in _REDIRECTS_TO_GET and request.method not in ("GET", "HEAD"):
            headers = CIMultiDict(request.headers)
            headers.pop("content-type", None)
            request = replace(request, method="GET", body=None, headers=headers)
        return request


def read_fetch(opts: Mapping[str, Any]) -> OutboundRequest:
    """The request of a ``Gateway`` op.

    The op has ``url``, ``method`` (GET if absent), ``headers``, and ``body``, a string or else JSON. Raises
    ``RequestInvalidError``.
    """
    method = opts.get("method") or "GET"
    if not isinstance(method, str) or method.upper() not in _METHODS:
        raise RequestInvalidError(f"the method {str(method)[:20]!r} must be one of {', '.join(sorted(_METHODS))}")
    headers = _read_headers(opts.get("headers"))
    body = None if opts.get("body") is None else _encode(opts["body"])
    if body:
        headers.setdefault("Content-Type", _guess_type(body))
    return _authorised(method.upper(), opts, headers, body)


def read_inference(opts: Mapping[str, Any]) -> OutboundRequest:
    """The request of an ``AIGateway`` op.

    The op has ``url``, ``headers``, ``body`` (JSON), ``auth_key`` and ``format``, which defines where the key goes. A
    header that the app sets overrides the key's. Raises ``RequestInvalidError``.
    """
    headers = _read_headers(opts.get("headers"))
    headers.setdefault("Content-Type", "application/json")
    request = _authorised("POST", opts, headers, _encode(opts.get("body")))
    key = opts.get("auth_key")
    if not key or not isinstance(key, str):
        return request
    match opts.get("format"):
        case "gemini":
            if "key" in request.url.query:
                return request
            return replace(request, url=request.url.update_query(key=key))
        case "anthropic":
            name, text = "X-Api-Key", key
        case "bedrock":
            name, text = "Authorization", key  # a complete signature, made by the app
        case _:
            name, text = "Authorization", f"Bearer {key}"
    headers.setdefault(name, _checked_value(name, text))
    return request


def _authorised(method: str, opts: Mapping[str, Any], headers: CIMultiDict[str], body: bytes | None) -> OutboundRequest:
    """The request of an op, with the user information of its URL in a header.

    User information becomes its meaning, an ``Authorization`` header.
    """
    text = opts.get("url")
    if not isinstance(text, str):
        raise RequestInvalidError("it has no URL")
    url = _parse_url(text)
    if url.raw_user or url.raw_password:
        credentials = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
        headers.setdefault("Authorization", f"Basic {credentials}")
    return OutboundRequest(method, _without_user(url), headers, body)


def _parse_url(text: str, base: URL | None = None) -> URL:
    try:
        url = URL(text) if base is None else base.join(URL(text))
        if url.scheme in ("http", "https") and url.host and url.port:
            return url.with_fragment(None)
    except ValueError:
        pass  # its message quotes the URL, which may contain credentials
    raise RequestInvalidError("the URL must be an absolute one of http or https")


def _without_user(url: URL) -> URL:
    return url.with_user(None) if url.raw_user or url.raw_password else url


def _read_headers(headers: Any) -> CIMultiDict[str]:
    if headers is None:
        headers = {}
    if not isinstance(headers, Mapping):
        raise RequestInvalidError("headers must be an object of names and strings")
    read: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise RequestInvalidError("a header's name has characters that HTTP does not allow")
        if value is None or name.lower() in _NOT_FORWARDED:
            continue
        read[name] = _checked_value(name, value)
    read.setdefault("User-Agent", "durably")
    return read


def _checked_value(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
    if text is None or not _HEADER_VALUE.fullmatch(text):
        raise RequestInvalidError(f"the header {name!r} is not a string that HTTP can carry")
    return text


def _encode(body: Any) -> bytes:
    """A string unchanged, any other value as JSON."""
    try:
        return body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    except (TypeError, ValueError, RecursionError):
        raise RequestInvalidError("the body is neither a string nor JSON") from None


def _guess_type(body: bytes) -> str:
    """The content type of a body without one. SDKs pass JSON as a string."""
    return "application/json" if body.lstrip()[:1] in (b"{", b"[") else "text/plain; charset=utf-8"


def _keep(headers: CIMultiDict[str], names: frozenset[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() in names)


_SHORTEST_SECRET = 4
"""Minimum characters of a secret to scrub. Scrubbing shorter ones would garble messages and hide nothing."""


def find_secrets(opts: Mapping[str, Any]) -> list[str]:
    """The strings of a request that must not be shown, longest first."""
    found: set[str] = set()
    headers = opts.get("headers")
    named = [*opts.items(), *(headers.items() if isinstance(headers, Mapping) else ())]
    try:
        url = URL(str(opts.get("url", "")))
        named += url.query.items()
        found.update(text for text in (url.password, url.raw_password) if text)
        found.update(find_random_words(url.raw_path))
    except ValueError:
        pass
    for name, value in named:
        if isinstance(value, str) and is_secret_name(str(name)):
            found |= {value, *value.split()}  # "Bearer abc" is secret, and "abc" too
    return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The string without those secrets.

    It is a server's: some servers repeat what they were sent.
    """
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's metadata and control endpoint, among public addresses
        "2001::/23",  # IETF protocol assignments, Teredo among them, which wraps IPv4 addresses
        "2002::/16",  # 6to4, which wraps IPv4 addresses
        "3fff::/20",  # documentation
    )
)


class AddressRefusedError(OSError):
    """An address is not public.

    All have the same message, so that aiohttp merges the errors of one name.
    """

    def __init__(self) -> None:
        super().__init__("not a public address")


def is_public(address: str) -> bool:
    """Whether an IP address is public.

    Private, loopback, link-local (where clouds serve credentials), shared (CGNAT), multicast and reserved addresses are
    not, nor are IPv6 addresses that wrap an IPv4 address.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def open_public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """A socket for an entry of ``getaddrinfo``.

    Raises ``AddressRefusedError`` unless its address is public.
    """
    family, kind, protocol, _, address = address_info
    if not is_public(address[0]):
        raise AddressRefusedError
    return socket.socket(family=family, type=kind, proto=protocol)
