"""HTTP client of outbound requests: redirects, limits, and errors."""

from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from durably.engine.core.errors import EngineError
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.text import redact_url

from .addresses import AddressRefusedError, open_public_socket
from .request import Request, RequestInvalidError, find_secrets, read_fetch, read_inference, scrub


class OutboundError(EngineError):
    """A request for a step failed. Holds no credential.

    ``name`` is ``GatewayError`` or ``AIGatewayError``, as the public server has it; ``retriable`` says whether
    another attempt may end otherwise; ``status`` is the answer's, where there was one.
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
"""Headers of an answer that no longer hold once its body is read and unpacked."""
_RETRIABLE_STATUSES = frozenset({408, 409, 425, 429})
_CONNECT_SECONDS = 15.0
_QUOTED_CHARACTERS = 500


class Outbound:
    """Makes the requests of ``step.fetch`` and ``step.ai.infer``. To be used on one event loop, and closed.

    ``allow_private_addresses`` lets them reach this machine and its networks. ``timeout`` is seconds from the start of
    a request to the end of its answer, ``max_bytes`` the size of an answer once it is unpacked.
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
        """Make the request of a ``Gateway`` op (spec §5.3.7); any status is an answer.

        Returns ``{url, status_code, headers, body}``: the URL as asked for, without credentials, headers of several
        values joined by commas, the body as text. Answers that cannot have a body (204, 205, 304) have no ``body``:
        JavaScript refuses to build a response of such a status with even an empty one. Raises ``OutboundError``.
        """
        attempt = _Attempt("GatewayError", opts)
        status, headers, body = await self._send(attempt, attempt.read(read_fetch))
        answer: dict[str, Any] = {"url": attempt.shown_url, "status_code": status, "headers": headers}
        if status not in _WITHOUT_BODY:
            answer["body"] = body
        return answer

    async def infer(self, opts: Mapping[str, Any]) -> Any:
        """Make the request of an ``AIGateway`` op (spec §5.3.6). Returns the answer's JSON.

        Raises ``OutboundError``, for any status but success too.
        """
        attempt = _Attempt("AIGatewayError", opts)
        status, _, body = await self._send(attempt, attempt.read(read_inference))
        if not 200 <= status < 300:
            raise attempt.error(
                f"was answered with status {status}: {body[:_QUOTED_CHARACTERS]}",
                retriable=status >= 500 or status in _RETRIABLE_STATUSES,
                status=status,
            )
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            raise attempt.error("was answered with something else than JSON", retriable=True, status=status) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, attempt: "_Attempt", request: Request) -> tuple[int, dict[str, str], str]:
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
                        return response.status, _join_headers(response), await self._read(attempt, response)
                request = request.redirected(response.status, location)
        except RequestInvalidError:
            raise attempt.error("was redirected to something else than http or https", retriable=False) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: the texts of these exceptions quote the URL.
            raise _describe(attempt, error, self._timeout) from None
        raise attempt.error(f"was redirected more than {_MAX_REDIRECTS} times", retriable=False)

    async def _read(self, attempt: "_Attempt", response: aiohttp.ClientResponse) -> str:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._max_bytes:
                raise attempt.error(
                    f"was answered with more than {self._max_bytes} bytes, the most that a step can hold",
                    retriable=False,
                    status=response.status,
                )
        try:
            return body.decode(response.charset or "utf-8", "replace")
        except LookupError:  # a charset that Python does not know
            return body.decode("utf-8", "replace")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            factory = None if self._allow_private_addresses else open_public_socket
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                cookie_jar=aiohttp.DummyCookieJar(),  # runs share nothing
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_SECONDS),
                trust_env=False,  # a proxy would connect where the engine must not
            )
        return self._session


class _Attempt:
    """One request as errors speak of it: without credentials."""

    def __init__(self, name: str, opts: Mapping[str, Any]) -> None:
        self._name = name
        self._opts = opts
        self.shown_url = redact_url(opts.get("url", ""))

    def __repr__(self) -> str:
        return f"_Attempt({self.shown_url!r})"

    def read(self, reader: Any) -> Request:
        try:
            request: Request = reader(self._opts)
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


def _describe(attempt: _Attempt, error: Exception, timeout: float) -> OutboundError:
    """The exceptions of aiohttp and the system, in words that quote nothing of the request."""
    match error:
        case aiohttp.ClientConnectorError(os_error=AddressRefusedError()):
            return attempt.error(
                "was refused: its host is not on the public internet, and the engine reaches private addresses "
                "only if it is started with private addresses allowed (--allow-private-addresses, or in process "
                "EngineSettings(allow_private_addresses=True))",
                retriable=False,
            )
        case aiohttp.ClientConnectorDNSError():
            return attempt.error("failed: its host was not found", retriable=True)
        case aiohttp.ClientConnectorCertificateError():
            return attempt.error("failed: the certificate of its host is not valid", retriable=False)
        case aiohttp.ClientSSLError():
            return attempt.error("failed: its host did not agree on TLS", retriable=True)
        case aiohttp.ConnectionTimeoutError():
            return attempt.error(f"failed: no connection within {_CONNECT_SECONDS:g} s", retriable=True)
        case TimeoutError():
            return attempt.error(f"failed: no complete answer within {timeout:g} s", retriable=True)
        case aiohttp.ClientConnectorError():
            reason = error.os_error.strerror or "its host is not reachable"
            return attempt.error(f"failed: no connection: {reason}", retriable=True)
        case aiohttp.InvalidURL() | ValueError():
            return attempt.error("cannot be made: HTTP cannot carry its URL or its headers", retriable=False)
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() | OSError():
            return attempt.error("failed: the connection was lost before the answer was complete", retriable=True)
    return attempt.error(f"failed: its answer is not HTTP ({type(error).__name__})", retriable=True)
