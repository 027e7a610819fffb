"""Requests of the steps ``fetch`` and ``ai.infer``: options, secrets, addresses, the HTTP client, results.

Apps choose the URL, so requests go to public addresses only, unless the engine is configured otherwise. The address of
the socket that is about to connect is checked: after names are resolved, redirects are followed, and unusual spellings
(``0x7f.1``, ``[::ffff:127.0.0.1]``) are parsed. Therefore a name that resolves differently the second time does not
pass the check. Requests carry credentials, which appear in no error, log line or stored value.
"""

import base64
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from durably.engine.core.inputs import MakeRequest, RequestFinished
from durably.engine.core.transition import data_memo, error_memo
from durably.protocol.call import decode
from durably.protocol.channels import MAX_CHANNEL_NAME_LENGTH
from durably.protocol.engine_errors import EngineError
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Opcode
from durably.protocol.text import REDACTED, find_random_words, get_logger, is_secret_name, redact_url
from durably.protocol.usage import ModelUsage, read_answer_usage

from .inference import EventReader, StreamedAnswer, StreamFailedError, TextPublisher, find_format

_logger = get_logger("durably.engine")
_json = msgspec.json.Decoder()
T = TypeVar("T")

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


def read_streamed_inference(opts: Mapping[str, Any]) -> OutboundRequest:
    """The request of an ``AIGateway`` op for a streamed answer. Raises ``RequestInvalidError``."""
    body = opts.get("body")
    if not isinstance(body, Mapping):
        raise RequestInvalidError("the body must be an object, so that the engine can ask for a stream")
    try:
        form = find_format(opts)
    except ValueError as error:
        raise RequestInvalidError(str(error)) from None
    asked = dict(body)
    url = form.prepare(_parse_url(str(opts.get("url", ""))), asked)
    request = read_inference({**opts, "url": str(url), "body": asked})
    request.headers["Accept-Encoding"] = "identity"  # Compression may hold text back.
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


class OutboundError(EngineError):
    """A request for a step failed. The error contains no credential.

    ``name`` is ``GatewayError`` or ``AIGatewayError``, as on the public server. ``retriable``: another attempt may
    succeed. ``status`` is that of the answer, if there was one.
    """

    def __init__(self, name: str, message: str, retriable: bool, status: int | None = None) -> None:
        super().__init__(message)
        self._name = name
        self.retriable = retriable
        self.is_retriable = retriable
        self.status = status

    @property
    def name(self) -> str:
        return self._name


_MAX_REDIRECTS = 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITHOUT_BODY = frozenset({204, 205, 304})
_TRANSPORT_HEADERS = frozenset({"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"})
"""Headers of an answer that are wrong after its body is read and decompressed."""
_RETRIABLE_STATUSES = frozenset({408, 409, 425, 429})
_CONNECT_SECONDS = 15.0
_QUOTED_CHARACTERS = 500


class OutboundClient:
    """Makes the requests of ``step.fetch`` and ``step.ai.infer``.

    Use it on one event loop, and close it. ``allow_private_addresses`` lets them reach this machine and its networks.
    ``timeout`` is the number of seconds from the start of a request to the end of its answer, ``max_bytes`` the size of
    a decompressed answer.
    """

    def __init__(
        self,
        *,
        allow_private_addresses: bool = False,
        timeout: float = 600.0,
        max_bytes: int = MAX_STEP_OUTPUT_BYTES,
    ) -> None:
        self._allow_private_addresses = allow_private_addresses
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, opts: Mapping[str, Any]) -> dict[str, Any]:
        """Make the request of a ``Gateway`` op (spec §5.3.7). Any status is an answer.

        Returns ``{url, status_code, headers, body}``: the requested URL without credentials, headers with several
        values joined by commas, the body as a string. Answers that cannot have a body (204, 205, 304) have no ``body``,
        because JavaScript refuses to build a response of such a status even with an empty one. Raises
        ``OutboundError``.
        """
        attempt = _Attempt("GatewayError", opts)
        status, headers, body = await self._send(attempt, attempt.read(read_fetch), self._read)
        answer: dict[str, Any] = {"url": attempt.shown_url, "status_code": status, "headers": headers}
        if status not in _WITHOUT_BODY:
            answer["body"] = body
        return answer

    async def infer(self, opts: Mapping[str, Any], on_text: Callable[[str], None] | None = None) -> Any:
        """Make the request of an ``AIGateway`` op (spec §5.3.6).

        With ``on_text`` the answer is streamed, and ``on_text`` gets its text as it comes. Returns the answer's JSON.
        Raises ``OutboundError``, also for any status but success.
        """
        attempt = _Attempt("AIGatewayError", opts)
        if on_text is None:
            status, _, body = await self._send(attempt, attempt.read(read_inference), self._read)
        else:
            request = attempt.read(read_streamed_inference)
            read = partial(self._read_stream, answer=find_format(opts)(), on_text=on_text)
            status, _, answer = await self._send(attempt, request, read)
            if not isinstance(answer, str):
                return answer
            body = answer
        if not 200 <= status < 300:
            raise attempt.error(
                f"was answered with status {status}: {body[:_QUOTED_CHARACTERS]}",
                retriable=status >= 500 or status in _RETRIABLE_STATUSES,
                status=status,
            )
        try:
            return decode(_json, body.encode())
        except msgspec.DecodeError:
            raise attempt.error("was not answered with JSON", retriable=True, status=status) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(
        self,
        attempt: "_Attempt",
        request: OutboundRequest,
        read: Callable[["_Attempt", aiohttp.ClientResponse], Awaitable[T]],
    ) -> tuple[int, dict[str, str], T]:
        """Returns the status, the headers and the body, which ``read`` reads."""
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._open_session().request(
                    request.method,
                    request.url,
                    headers=request.headers,
                    data=request.body,
                    skip_auto_headers=("content-type",),
                    allow_redirects=False,
                ) as response:
                    location = response.headers.get("location")
                    if response.status not in _REDIRECTS or location is None:
                        return response.status, _join_headers(response), await read(attempt, response)
                request = request.redirected(response.status, location)
        except RequestInvalidError:
            raise attempt.error("was redirected to a URL that is not http or https", retriable=False) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: the messages of these exceptions quote the URL.
            raise _describe(attempt, error, self._timeout) from None
        raise attempt.error(f"was redirected more than {_MAX_REDIRECTS} times", retriable=False)

    async def _read_stream(
        self,
        attempt: "_Attempt",
        response: aiohttp.ClientResponse,
        *,
        answer: StreamedAnswer,
        on_text: Callable[[str], None],
    ) -> dict[str, Any] | str:
        """The answer that a stream makes up, or the body of an answer that is not a stream."""
        if not 200 <= response.status < 300 or response.content_type != "text/event-stream":
            return await self._read(attempt, response)
        events = EventReader(self._max_bytes)
        try:
            async for chunk in response.content.iter_any():
                self._add_events(attempt, answer, events.read(chunk), on_text)
                if events.has_ended:
                    break
            else:
                self._add_events(attempt, answer, events.read(b""), on_text)
            if answer.is_complete or (events.has_ended and answer.answer):
                return answer.finish()
            fault = "ended before the answer was complete"
        except StreamFailedError as error:
            fault = str(error)[:_QUOTED_CHARACTERS]
        except (LookupError, TypeError, AttributeError, msgspec.MsgspecError) as error:
            fault = f"is not in the provider's format ({type(error).__name__})"
        raise attempt.error(f"was answered with a stream that {fault}", retriable=True, status=response.status)

    def _add_events(
        self,
        attempt: "_Attempt",
        answer: StreamedAnswer,
        events: Iterable[dict[str, Any]],
        on_text: Callable[[str], None],
    ) -> None:
        for event in events:
            text = answer.add(event)
            if answer.size > self._max_bytes:
                raise self._too_large(attempt)
            if text:
                on_text(text)

    def _too_large(self, attempt: "_Attempt") -> OutboundError:
        message = f"was answered with more than {self._max_bytes} bytes, the maximum for a step"
        return attempt.error(message, retriable=False)

    async def _read(self, attempt: "_Attempt", response: aiohttp.ClientResponse) -> str:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large(attempt)
        try:
            return body.decode(response.charset or "utf-8", "replace")
        except LookupError:  # a charset that Python does not support
            return body.decode("utf-8", "replace")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            factory = None if self._allow_private_addresses else open_public_socket
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                cookie_jar=aiohttp.DummyCookieJar(),  # runs share no cookies
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_SECONDS),
                trust_env=False,  # a proxy would connect to addresses that the engine must not reach
            )
        return self._session


class _Attempt:
    """One request, with its errors, which contain no credentials."""

    def __init__(self, name: str, opts: Mapping[str, Any]) -> None:
        self._name = name
        self._opts = opts
        self.shown_url = redact_url(opts.get("url", ""))

    def __repr__(self) -> str:
        return f"_Attempt({self.shown_url!r})"

    def read(self, reader: Any) -> OutboundRequest:
        try:
            request: OutboundRequest = reader(self._opts)
        except RequestInvalidError as error:
            raise self.error(f"cannot be made: {error}", retriable=False) from None
        return request

    def error(self, fault: str, *, retriable: bool, status: int | None = None) -> OutboundError:
        message = f"the request to {self.shown_url} {scrub(fault, find_secrets(self._opts))}"
        return OutboundError(self._name, message, retriable, status)


def _join_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        if key not in _TRANSPORT_HEADERS:
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


_FAULTS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, bool], ...] = (
    (aiohttp.ClientConnectorDNSError, "failed: its host was not found", True),
    (aiohttp.ClientConnectorCertificateError, "failed: the certificate of its host is not valid", False),
    (aiohttp.ClientSSLError, "failed: its host did not agree on TLS", True),
    (aiohttp.ConnectionTimeoutError, f"failed: no connection within {_CONNECT_SECONDS:g} s", True),
    (TimeoutError, "failed: no complete answer within {timeout:g} s", True),
    (aiohttp.ClientConnectorError, "failed: no connection: {reason}", True),
    ((aiohttp.InvalidURL, ValueError), "cannot be made: HTTP cannot carry its URL or its headers", False),
    (
        (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError),
        "failed: the connection was lost before the answer was complete",
        True,
    ),
    (Exception, "failed: its answer is not HTTP ({kind})", True),
)
"""Exceptions of aiohttp and the system, what they say of a request, and whether another attempt may succeed."""


def _describe(attempt: _Attempt, error: Exception, timeout: float) -> OutboundError:
    """The error for an exception. It quotes no part of the request."""
    os_error = getattr(error, "os_error", None)
    if isinstance(os_error, AddressRefusedError):
        return attempt.error(
            "was refused: its host is not on the public internet, and the engine reaches private addresses only if it "
            "is started with private addresses allowed (--allow-private-addresses, or in process "
            "EngineSettings(allow_private_addresses=True))",
            retriable=False,
        )
    fault, retriable = next((fault, retriable) for kind, fault, retriable in _FAULTS if isinstance(error, kind))
    reason = (os_error and os_error.strerror) or "its host is not reachable"
    text = fault.format(timeout=timeout, reason=reason, kind=type(error).__name__)
    return attempt.error(text, retriable=retriable)


Publish = Callable[[str, Any], None]
"""Publishes a message to a topic of a run."""


async def perform(
    outbound: OutboundClient,
    request: MakeRequest,
    opts: dict[str, Any],
    max_bytes: int = MAX_STEP_OUTPUT_BYTES,
    publish: Publish | None = None,
) -> RequestFinished:
    """Make the request of a step. ``max_bytes`` is the maximum size of a result.

    ``publish`` is ``None`` if the engine keeps no messages. Then it refuses streams.
    """
    is_inference = request.op == Opcode.AI_GATEWAY
    usage: tuple[ModelUsage, ...] = ()
    text: TextPublisher | None = None
    if is_inference and (stream := opts.get("stream")) is not None:
        topic = stream.get("topic") if isinstance(stream, Mapping) else None
        if publish is None:
            message = f"step {request.name!r} streams, but this engine keeps no messages: leave out stream"
            return _failed(request, "NotSupportedError", message, is_retriable=False)
        if not isinstance(topic, str) or not 0 < len(topic) <= MAX_CHANNEL_NAME_LENGTH or topic.startswith("$"):
            message = f"step {request.name!r} streams to the topic {topic!r}, which is not a name without $"
            return _failed(request, "OpInvalidError", message, is_retriable=False)
        text = TextPublisher(request.name, partial(publish, topic))
    try:
        if text is not None:
            answer = await outbound.infer(opts, text.add)
        else:
            answer = await (outbound.infer(opts) if is_inference else outbound.fetch(opts))
        if is_inference and (tokens := read_answer_usage(answer, _model_of(opts))) is not None:
            usage = (tokens,)
        data = msgspec.json.encode(answer)
    except OutboundError as error:
        return _failed(request, error.name, error.message, is_retriable=error.retriable)
    except Exception as error:
        # Its message and its traceback may quote what was sent.
        kind = type(error).__name__
        _logger.error("the request of step %r could not be made: %s", request.name, kind)
        message = f"the engine could not make the request of step {request.name!r}: {kind}"
        return _failed(request, "RequestFailedError", message, is_retriable=False)
    finally:
        if text is not None:
            text.close()
    if len(data) > max_bytes:
        message = f"step {request.name!r} got {len(data)} bytes; at most {max_bytes} are allowed"
        failed = _failed(request, "StepOutputTooLargeError", message, is_retriable=False)
        return msgspec.structs.replace(failed, usage=usage)
    return RequestFinished(request.step_id, request.generation, data_memo(data), usage=usage)


def _model_of(opts: Mapping[str, Any]) -> str:
    """The requested model; empty if it is not in the body."""
    body = opts.get("body")
    model = body.get("model") if isinstance(body, Mapping) else None
    return model if isinstance(model, str) else ""


def _failed(request: MakeRequest, name: str, message: str, *, is_retriable: bool) -> RequestFinished:
    memo = error_memo(ErrorData(name=name, message=message))
    return RequestFinished(request.step_id, request.generation, memo, failed=True, is_retriable=is_retriable)
