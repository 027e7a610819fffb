"""What each request passes: its body, with limits of size and time, access, and answers.

Access is by allowed hosts and origins in development, and by keys in production.
"""

import asyncio
import datetime as dt
import hmac
import ipaddress
import logging
import re
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from durably.engine.api.codec import status_of
from durably.engine.api.operations import Access, ArgumentInvalidError
from durably.engine.model.subscriptions import SparseLog
from durably.protocol import engine_errors as errors
from durably.protocol.events import Envelope, ErrorBody, Metadata
from durably.protocol.headers import Header, ServerKind
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.signatures import bearer_token, check_signing_key, hash_signing_key
from durably.protocol.text import get_logger, is_name

_GRACE_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 16 * 1024
"""A body may take ``_GRACE_SECONDS``, or longer if it arrives at this rate (bytes per second)."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib's ``wbits`` that detect either format by its header."""

_encoder = msgspec.json.Encoder()
_logger = get_logger("durably.engine.api")
_refusals: WeakKeyDictionary[web.Application, SparseLog] = WeakKeyDictionary()


class ApiError(Exception):
    """Ends a request with ``status`` and an error body.

    ``message`` is shown to the client, so it must not contain secrets.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def explain_stop(error: errors.EngineError) -> str:
    """The message about an engine that lost its database.

    It is the same whether the engine or a request detects the loss.
    """
    return f"the engine has stopped: {error.message}"


# requests


async def read_body(request: web.Request, limit: int = MAX_REQUEST_BYTES) -> bytes:
    """The whole body, decompressed.

    Call it after the access check, because a few bytes may decompress to ``limit``. Raises ``ApiError``: 413 above
    ``limit``, 408 if it arrives too slowly, 415 for an encoding other than gzip and deflate, 400 if it does not match
    its headers.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ApiError(415, f"the content-encoding {encoding!r} is unknown; send the body uncompressed, or with gzip")
    if (request.content_length or 0) > limit:
        raise ApiError(413, f"the body is larger than {limit} bytes")
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began + _GRACE_SECONDS) as deadline:
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise ApiError(413, f"the body is larger than {limit} bytes")
                deadline.reschedule(began + _GRACE_SECONDS + len(body) / _LEAST_BYTES_PER_SECOND)
    except TimeoutError:
        raise ApiError(
            408, f"the body arrives too slowly: {len(body)} bytes in over {_GRACE_SECONDS:g} s; send it again"
        ) from None
    except ConnectionResetError:
        raise ApiError(400, "the client closed the connection before the end of the body") from None
    except web.RequestPayloadError:
        raise ApiError(400, "the body cannot be read: it does not match its length") from None
    return bytes(body) if encoding in ("identity", "") else await asyncio.to_thread(_unpack, bytes(body), limit)


def _unpack(body: bytes, limit: int) -> bytes:
    """The body of a request, decompressed.

    Raises ``ApiError``: 413 above ``limit``, 400 if the body is not of this encoding.
    """
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > limit:
        raise ApiError(413, f"the body is larger than {limit} bytes when it is decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise ApiError(400, "the body cannot be decompressed: it does not match its content-encoding")
    return unpacked


async def answer_expectation(request: web.Request) -> web.StreamResponse | None:
    """The answer to a route's ``Expect`` header (RFC 9110 §10.1.1).

    ``None`` to continue.
    """
    if request.version < HttpVersion11:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        return error_response(417, "the only supported expectation is 100-continue")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # The answer itself has not begun.
    return None


# answers


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(body), status=status, content_type="application/json")


def data_response(data: Any) -> web.Response:
    return json_response(Envelope(data=data, metadata=Metadata(fetched_at=dt.datetime.now(dt.UTC))))


def error_response(status: int, message: str, *, code: str | None = None, data: Any = None) -> web.Response:
    # A message may quote bytes of a request that are not UTF-8. They are surrogates, which JSON cannot contain.
    text = message.encode(errors="replace").decode()
    return json_response(ErrorBody(error=text, status=status, code=code, data=data), status)


def answer_error(request: web.Request, error: Exception) -> web.Response:
    """The answer to a request that has failed.

    The ``code`` of an engine's error is its class.
    """
    match error:
        case ApiError():
            return error_response(error.status, error.message, code=error.code)
        case ArgumentInvalidError():
            return error_response(400, str(error))
        case errors.EngineError():
            if isinstance(error, errors.DatabaseUnavailableError):
                _log_unavailable(request.app, error)
            status = status_of(error)
            named = {name: value for name, value in request.match_info.items() if name != "key"}  # an event key
            data = named if status in (409, 413) else None
            return error_response(status, error.message, code=type(error).__name__, data=data)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return error_response(405, f"the method must be {allowed}, not {request.method}")
        case web.HTTPNotFound():
            return error_response(404, f"there is nothing at {request.path}")
        case web.HTTPClientError():  # such as a request that aiohttp cannot make a WebSocket
            return error_response(error.status, error.text or error.reason)
    # The route, not the path: the path of an event contains the event key.
    resource = request.match_info.route.resource
    _logger.error("%s %s failed", request.method, resource.canonical if resource else "(unknown)", exc_info=error)
    return error_response(500, "the engine failed to handle the request; its log says why")


def _log_unavailable(app: web.Application, error: errors.DatabaseUnavailableError) -> None:
    """Log for the engine's operator that requests are refused.

    Senders get the answer. The log is rate-limited, because its disk may be the full one.
    """
    log = _refusals.setdefault(app, SparseLog(_logger))
    log.log(logging.ERROR, "requests are refused with 503, so that they are sent again: %s", error.message)


SERVER_LOGGER = get_logger("durably.engine.api.http")
"""For aiohttp's server. Its lines report that a request could not be read, and do not quote it."""


class _WithoutContent(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.exc_info = record.exc_text = None
            record.msg, record.args = "a request was not HTTP, and was refused: %s", (type(error).__name__,)
        elif isinstance(error, web.RequestPayloadError):  # It has been answered. aiohttp is reading the rest.
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "a request's body did not match its headers, and was refused", ()
        return True


SERVER_LOGGER.addFilter(_WithoutContent())


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
    address is allowed as the host of a request, because DNS cannot redirect it, and as the origin of requests to
    itself. ``"*"`` among the names allows every host.
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
        if match is None:
            return False
        host = match["ipv6"] or match["name"]
        return self._allows(host) or (self._any_address and _is_address(_normalise(host)))

    def allows_origin(self, header: str, host: str) -> bool:
        """Whether a page of this ``Origin`` may make requests to an allowed ``Host``."""
        try:
            origin, own = urlsplit(header).hostname or "", urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as "http://["
            return False
        return origin != "" and (self._allows(origin) or _normalise(origin) == _normalise(own))

    def refuse(self, request: web.Request) -> str | None:
        """The reason why a development engine refuses this request.

        ``None`` if the engine accepts it.
        """
        header, host, origin = request.headers.get(hdrs.HOST), request.host, request.headers.get(hdrs.ORIGIN)
        if header is None:
            return "the development engine refuses requests without a Host header"
        # An absolute URL in the request line replaces the header (RFC 9112 §3.2.2). aiohttp returns it as the host.
        for name in (*request.headers.getall(hdrs.HOST), host):
            if not self.allows_host(name):
                return f"the development engine refuses requests to the host {name!a}: {_ADVICE}"
        if origin and not self.allows_origin(origin, host):
            return f"the development engine refuses requests of pages of another origin, {origin!a}: {_ADVICE}"
        if not origin and not self._any and _is_embedded_elsewhere(request):
            return f"the development engine refuses requests of pages of another site: {_ADVICE}"
        return None

    def _allows(self, host: str) -> bool:
        host = _normalise(host)
        if self._any or host in self._names:
            return True
        return _is_address(host) and ipaddress.ip_address(host).is_loopback


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
            "the bearer token is not the hash of one of the engine's signing keys (the key's prefix, then the SHA-256 "
            "of the rest): give both sides the same DURABLY_SIGNING_KEY",
        )


def _is_one_of(given: str, accepted: Iterable[str]) -> bool:
    # All are compared, so that the time does not show which key matched.
    matches = [hmac.compare_digest(_bytes(given), _bytes(one)) for one in accepted]
    return any(matches)


def _bytes(text: str) -> bytes:
    # Bytes of a header that are not UTF-8 arrive as surrogates.
    return text.encode(errors="surrogateescape")
