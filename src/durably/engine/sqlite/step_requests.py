"""Requests of the steps ``fetch`` and ``ai.infer``.

The module has the HTTP client, and the way from an op to its memo. Apps choose the URL, so requests go to public
addresses only, unless the engine is configured otherwise. Requests carry credentials. Credentials appear in no error,
log line or stored value.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from durably.engine.core.inputs import MakeRequest, RequestFinished
from durably.engine.core.transition import data_memo, error_memo
from durably.engine.model.outbound_request import (
    AddressRefusedError,
    OutboundRequest,
    RequestInvalidError,
    find_secrets,
    open_public_socket,
    read_fetch,
    read_inference,
    scrub,
)
from durably.engine.model.settings import Clock
from durably.protocol.call import decode
from durably.protocol.engine_errors import EngineClosedError, EngineError
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger, redact_url

from .outbox import ScheduledRequest
from .transactions import runs
from .transactions.transact import Transactions
from .transactions.transaction import Transaction

_json = msgspec.json.Decoder()


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
        status, headers, body = await self._send(attempt, attempt.read(read_fetch))
        answer: dict[str, Any] = {"url": attempt.shown_url, "status_code": status, "headers": headers}
        if status not in _WITHOUT_BODY:
            answer["body"] = body
        return answer

    async def infer(self, opts: Mapping[str, Any]) -> Any:
        """Make the request of an ``AIGateway`` op (spec §5.3.6).

        Returns the answer's JSON. Raises ``OutboundError``, also for any status but success.
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
            return decode(_json, body.encode())
        except msgspec.DecodeError:
            raise attempt.error("was not answered with JSON", retriable=True, status=status) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, attempt: "_Attempt", request: OutboundRequest) -> tuple[int, dict[str, str], str]:
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
            raise attempt.error("was redirected to a URL that is not http or https", retriable=False) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: the messages of these exceptions quote the URL.
            raise _describe(attempt, error, self._timeout) from None
        raise attempt.error(f"was redirected more than {_MAX_REDIRECTS} times", retriable=False)

    async def _read(self, attempt: "_Attempt", response: aiohttp.ClientResponse) -> str:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._max_bytes:
                raise attempt.error(
                    f"was answered with more than {self._max_bytes} bytes, the maximum for a step",
                    retriable=False,
                    status=response.status,
                )
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


def _describe(attempt: _Attempt, error: Exception, timeout: float) -> OutboundError:
    """The error for an exception of aiohttp or the system.

    It quotes no part of the request.
    """
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


_logger = get_logger("durably.engine")


class StepRequests:
    """Requests of steps that are due or under way, by run."""

    def __init__(self, outbound: OutboundClient, transactions: Transactions, clock: Clock) -> None:
        self._outbound = outbound
        self._transactions = transactions
        self._clock = clock
        self._opts: dict[int, dict[str, dict[str, Any]]] = {}
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}

    def note(self, wanted: ScheduledRequest) -> None:
        """Keep the options of a request until it is due."""
        if wanted.request.opts is not None:
            self._opts.setdefault(wanted.run_key, {})[wanted.request.step_id] = wanted.request.opts

    def make(self, wanted: ScheduledRequest) -> None:
        opts = self._opts.get(wanted.run_key, {}).get(wanted.request.step_id)
        if opts is None:
            return
        self._clock.begin_work()
        task = asyncio.get_running_loop().create_task(self._make(wanted, opts))
        self._tasks.setdefault(wanted.run_key, set()).add(task)
        task.add_done_callback(lambda task: self._finished(wanted.run_key, task))

    def forget(self, run_key: int) -> None:
        """Cancel the requests of a run that has ended."""
        self._opts.pop(run_key, None)
        for task in self._tasks.get(run_key, ()):
            task.cancel()

    async def close(self) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outbound.close()

    def _finished(self, run_key: int, task: asyncio.Task[None]) -> None:
        self._tasks[run_key].discard(task)
        if not self._tasks[run_key]:
            del self._tasks[run_key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its message may quote what was sent.
            _logger.error("the result of a step's request could not be stored: %s", type(error).__name__)
        self._clock.end_work()

    async def _make(self, wanted: ScheduledRequest, opts: dict[str, Any]) -> None:
        outcome = await perform(self._outbound, wanted.request, opts)

        def apply(transaction: Transaction) -> bool:
            """Apply the result of a request. Returns whether the request is repeated."""
            runs.apply(transaction, wanted.run_key, outcome)
            return any(
                isinstance(message, ScheduledRequest) and _is_same_step(wanted, message)
                for message in transaction.outbox
            )

        try:
            is_repeated = await self._transactions.transact_with_retry(apply)
        except EngineClosedError:
            return
        if not is_repeated:
            self._drop(wanted, opts)

    def _drop(self, wanted: ScheduledRequest, opts: dict[str, Any]) -> None:
        of_run = self._opts.get(wanted.run_key, {})
        if of_run.get(wanted.request.step_id) is opts:
            del of_run[wanted.request.step_id]
            if not of_run:
                del self._opts[wanted.run_key]


def _is_same_step(one: ScheduledRequest, other: ScheduledRequest) -> bool:
    return (one.run_key, one.request.step_id) == (other.run_key, other.request.step_id)


async def perform(
    outbound: OutboundClient, request: MakeRequest, opts: dict[str, Any], max_bytes: int = MAX_STEP_OUTPUT_BYTES
) -> RequestFinished:
    """Make the request of a step. ``max_bytes`` is the maximum size of a result."""
    send = outbound.infer if request.op == Opcode.AI_GATEWAY else outbound.fetch
    try:
        data = msgspec.json.encode(await send(opts))
    except OutboundError as error:
        return _failed(request, error.name, error.message, is_retriable=error.retriable)
    except Exception as error:
        # Its message and its traceback may quote what was sent.
        kind = type(error).__name__
        _logger.error("the request of step %r could not be made: %s", request.name, kind)
        message = f"the engine could not make the request of step {request.name!r}: {kind}"
        return _failed(request, "RequestFailedError", message, is_retriable=False)
    if len(data) > max_bytes:
        message = f"step {request.name!r} got {len(data)} bytes; at most {max_bytes} are allowed"
        return _failed(request, "StepOutputTooLargeError", message, is_retriable=False)
    return RequestFinished(request.step_id, request.generation, data_memo(data))


def _failed(request: MakeRequest, name: str, message: str, *, is_retriable: bool) -> RequestFinished:
    memo = error_memo(ErrorData(name=name, message=message))
    return RequestFinished(request.step_id, request.generation, memo, failed=True, is_retriable=is_retriable)
