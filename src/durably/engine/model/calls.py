"""Calls over HTTP: the signed request to the app, and its answer as a value."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Protocol

import aiohttp
import msgspec
from yarl import URL

from durably.engine.core.calls import (
    Answer,
    AnswerVerification,
    CallData,
    Refuse,
    Unreached,
    build_body,
    canonical_call,
    canonical_json,
    failed,
    job_id_of,
    read_answer,
    to_sign,
)
from durably.protocol.errors import ErrorData
from durably.protocol.headers import ENGINE_USER_AGENT, Header, ServerKind, trace_headers
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.signatures import SentSignatures, sign
from durably.protocol.text import redact_url, redact_urls

from .functions import SyncedFunction
from .settings import EngineSettings, EngineTracing

_CHUNK_BYTES = 64 * 1024
_QUICK_BYTES = 1024 * 1024
"""Bytes of the largest answer that is verified and read on the event loop."""
_QUICK_TO_CANONICALISE_BYTES = 16 * 1024
"""Bytes of the largest body that is canonicalised on the event loop (2 ms if it is full of fractions)."""
_IDLE_SECONDS = 1.5
"""Seconds to keep an idle connection.

Servers keep theirs longer (gunicorn 2 s, uvicorn and Node 5 s), so a call rarely uses a connection that its server is
closing.
"""

_LIVENESS = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPALIVE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 60_000),
)
"""Socket options, if the platform has them.

They detect the loss of a host within a minute, while a call times out after hours. TCP probes the connection after 30 s
of silence, then every 10 s, three times. Data without an acknowledgement fails after 60 s. (macOS calls
``TCP_KEEPIDLE`` ``TCP_KEEPALIVE``.)
"""


# Plain strings: ``Enum.value`` is slow, and there are several for each call.
_RUN_ID, _REQUEST_ID = Header.RUN_ID.value, Header.REQUEST_ID.value
_GENERATION_ID, _JOB_ID = Header.GENERATION_ID.value, Header.JOB_ID.value
_SAME_FOR_ALL_CALLS = {
    kind: {
        Header.CONTENT_TYPE.value: "application/json",
        Header.USER_AGENT.value: ENGINE_USER_AGENT,
        Header.SERVER_KIND.value: kind.value,
    }
    for kind in ServerKind
}

_CLOSING_SECONDS = 2.0
"""Seconds after which a closed connection is known to be closed: several round trips."""


class _Progress(msgspec.Struct, eq=False, gc=False):
    """The progress of a request.

    It records whether its connection was ``reused``, and whether it was ``answered``.
    """

    began: float
    reused: bool = True
    answered: bool = False

    @property
    def was_too_late(self) -> bool:
        """Whether the app may have been closing the connection when the request was sent."""
        is_soon = time.monotonic() - self.began < _CLOSING_SECONDS
        return self.reused and not self.answered and is_soon


_progress: ContextVar[_Progress] = ContextVar("durably_request")
"""The progress of the current request, for the function that opens its connection. (aiohttp's tracing reports the same,
but costs a twentieth of a call.)
"""


class Caller(Protocol):
    """Makes calls to apps, on the engine's event loop."""

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        """Make one call.

        An app that cannot be reached, or answers badly, also gives an ``Answer``. Raises only ``CancelledError``.
        """
        ...

    async def close(self) -> None: ...


class TracedCaller:
    """Makes calls through another caller, each in a span of its own."""

    def __init__(self, caller: Caller, tracing: EngineTracing) -> None:
        self._caller = caller
        self._tracing = tracing

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        with self._tracing.calling(data) as span:
            traced = msgspec.structs.replace(data, traceparent=span.traceparent)
            answer = await self._caller.call(function, traced)
            span.answered(answer)
            return answer

    async def close(self) -> None:
        await self._caller.close()


class HttpCaller:
    """Calls apps over HTTP, at the URLs that they synced."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._session = _open_session(
            settings, aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS, socket_factory=_connect)
        )
        self._fresh_session = _open_session(
            settings, aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_connect)
        )
        self._canonicaliser = ThreadPoolExecutor(1, thread_name_prefix="durably-canonical")
        """One thread, because several would compete with the event loop for the interpreter's lock."""

    async def close(self) -> None:
        self._canonicaliser.shutdown(wait=False, cancel_futures=True)
        await self._session.close()
        await self._fresh_session.close()

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        body = build_body(data)
        url = function.url_of(data.call.step_id)
        # If a kept connection was closed, a new one shows whether the app can be reached.
        session = self._fresh_session if data.call.unreached else self._session
        progress = _Progress(time.monotonic())
        _progress.set(progress)
        headers = {
            **_SAME_FOR_ALL_CALLS[self._settings.server_kind],
            _RUN_ID: data.run_id,
            _REQUEST_ID: data.request_id,
            _GENERATION_ID: str(data.call.generation),
            _JOB_ID: job_id_of(data.run_id, data.call.step_id),
        }
        headers |= trace_headers(data.traceparent)
        if self._settings.signing_key:
            body, signed = await self._to_sign(function, data, body)
            headers[Header.SIGNATURE.value] = sign_request(signed, self._settings.signing_key)
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                progress.answered = True
                content = await read_limited(response, MAX_REQUEST_BYTES)
                now = self._settings.clock.now()
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return _explain(error, url, progress)
        refuse = None
        if self._settings.server_kind is ServerKind.CLOUD:
            refuse = self._verification(function, headers.get(Header.SIGNATURE.value, ""))
        if content is None:
            message = f"the app's answer has more than {MAX_REQUEST_BYTES} bytes"
            return failed("AnswerTooLargeError", message, no_retry=refuse is None)
        answered = {name.lower(): value for name, value in response.headers.items()}
        read = partial(read_answer, response.status, answered, content, now, refuse)
        return read() if len(content) <= _QUICK_BYTES else await asyncio.to_thread(read)

    def _verification(self, function: SyncedFunction, call_signature: str) -> Refuse | None:
        """The verification of the app's answer to a call.

        ``None`` if unsigned answers of the app are accepted (``unsigned_apps``).
        """
        settings = self._settings
        if function.app_id in settings.unsigned_apps:
            return None
        return AnswerVerification(
            keys=(settings.signing_key, settings.signing_key_fallback),
            call_signature=call_signature,
            signs_whole=function.signs_whole_answers,
            now=time.time(),
            was_sent=was_sent,
        ).refuse

    async def _to_sign(self, function: SyncedFunction, data: CallData, body: bytes) -> tuple[bytes, bytes]:
        """The body to send to an app, and the bytes to sign.

        For Durably's apps the signed bytes are those of the body. Other SDKs verify the canonical form, so they are
        sent this form (see ``canonical``). Durably's apps are sent it if that is quick: then they accept the call even
        if a platform has re-encoded its body.
        """
        verifies_bytes = function.signs_whole_answers
        if len(body) <= _QUICK_TO_CANONICALISE_BYTES:
            body = canonical_json(body)
            return body, body if verifies_bytes else to_sign(body)
        if verifies_bytes:
            return body, body
        return await asyncio.get_running_loop().run_in_executor(self._canonicaliser, canonical_call, data)


def open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for an address of ``getaddrinfo``.

    It detects the loss of the other host.
    """
    opened = socket.socket(*address[:3])
    for name, level, value in _LIVENESS:
        if hasattr(socket, name):
            opened.setsockopt(level, getattr(socket, name), value)
    return opened


def _connect(address: aiohttp.AddrInfoType) -> socket.socket:
    _progress.get().reused = False
    return open_socket(address)


def _open_session(settings: EngineSettings, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=settings.call_timeout.total_seconds(), sock_connect=settings.connect_timeout.total_seconds()
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
    )


async def read_limited(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """The answer's body, or ``None`` if it is larger than ``max_bytes``."""
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        size += len(chunk)
        if size > max_bytes:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _explain(error: BaseException, url: URL, progress: _Progress) -> Answer:
    """The answer for a failed request.

    It depends on whether the app may have received the request.
    """
    place = f"{url.host}:{url.port}"
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        reason = getattr(error, "os_error", None) or error
        return Unreached(
            ErrorData(name="AppUnreachableError", message=f"no connection to the app at {place}: {reason}")
        )
    # A kept connection that fails at once, without a byte of an answer, was most likely being closed by the server. It
    # is not certain: the call may have crashed the app. So the next call uses a new connection, and if that breaks, an
    # attempt has failed.
    if progress.was_too_late and isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError):
        return Unreached(ErrorData(name="AppUnreachableError", message=f"the app at {place} had closed the connection"))
    if isinstance(error, asyncio.TimeoutError):
        return failed("CallTimeoutError", f"the app at {place} did not answer in time")
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return failed("CallFailedError", f"the app's URL is not valid: {redact_url(url)}")
    what = redact_urls(error) or type(error).__name__
    return failed("CallLostError", f"the connection to the app at {place} broke before its answer was complete: {what}")


_sent = SentSignatures()
"""The signatures of all engines in the process. None of them is an app's."""


def sign_request(body: bytes, key: str) -> str:
    """The signature header of a request that is sent now."""
    header = sign(body, key, int(time.time()))
    _sent.add(header)
    return header


def was_sent(header: str) -> bool:
    """Whether an engine of this process has signed a request with this header.

    The signature is at most ten minutes old. Raises ``SignatureError`` for a malformed header.
    """
    return header in _sent
