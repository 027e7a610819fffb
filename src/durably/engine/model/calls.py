"""Calls over HTTP: the signed request to the app, and its answer as a value."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

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

from .dispatcher import Dispatcher
from .functions import SyncedFunction
from .http_connections import AnswerTooLargeError, ConnectionBrokenError, HttpConnections, NotConnectedError
from .settings import EngineSettings, EngineTracing

_QUICK_BYTES = 1024 * 1024
"""Bytes of the largest answer that is verified and read on the event loop."""
_QUICK_TO_CANONICALISE_BYTES = 16 * 1024
"""Bytes of the largest body that is canonicalised on the event loop (2 ms if it is full of fractions)."""

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
    """Calls apps over HTTP, at the URLs that they synced.

    ``connected`` calls the apps that dial the engine.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._timeout = settings.call_timeout.total_seconds()
        self._connections = HttpConnections(settings.connect_timeout.total_seconds())
        self.connected = Dispatcher(settings)
        self._canonicaliser = ThreadPoolExecutor(1, thread_name_prefix="durably-canonical")
        """One thread, because several would compete with the event loop for the interpreter's lock."""

    async def close(self) -> None:
        self._canonicaliser.shutdown(wait=False, cancel_futures=True)
        await self.connected.close()
        await self._connections.close()

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        if function.is_connected:
            return await self.connected.call(function, data)
        body = build_body(data)
        url = function.url_of(data.call.step_id)
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
        began = time.monotonic()
        try:
            # If a kept connection was closed, a new one shows whether the app can be reached.
            answered = await self._connections.post(
                url,
                headers,
                body,
                timeout=self._timeout,
                max_bytes=MAX_REQUEST_BYTES,
                fresh=bool(data.call.unreached),
            )
        except AnswerTooLargeError:
            message = f"the app's answer has more than {MAX_REQUEST_BYTES} bytes"
            return failed("AnswerTooLargeError", message, no_retry=self._verification(function, "") is None)
        except (NotConnectedError, ConnectionBrokenError, TimeoutError, ValueError) as error:
            return _explain(error, url, began)
        now = self._settings.clock.now()
        refuse = self._verification(function, headers.get(Header.SIGNATURE.value, ""))
        read = partial(read_answer, answered.status, answered.headers, answered.body, now, refuse)
        return read() if len(answered.body) <= _QUICK_BYTES else await asyncio.to_thread(read)

    def _verification(self, function: SyncedFunction, call_signature: str) -> Refuse | None:
        """The verification of the app's answer to a call.

        ``None`` if unsigned answers of the app are accepted: in development, and those of ``unsigned_apps``.
        """
        settings = self._settings
        if settings.server_kind is not ServerKind.CLOUD or function.app_id in settings.unsigned_apps:
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


def _explain(error: Exception, url: URL, began: float) -> Answer:
    """The answer for a failed request.

    It depends on whether the app may have received the request.
    """
    place = f"{url.host}:{url.port}"
    if isinstance(error, NotConnectedError):
        return Unreached(ErrorData(name="AppUnreachableError", message=f"no connection to the app at {place}: {error}"))
    if isinstance(error, TimeoutError):
        return failed("CallTimeoutError", f"the app at {place} did not answer in time")
    if not isinstance(error, ConnectionBrokenError):
        return failed("CallFailedError", f"the app's URL is not valid: {redact_url(url)}")
    # A kept connection that fails at once, without a byte of an answer, was most likely being closed by the server. It
    # is not certain: the call may have crashed the app. So the next call uses a new connection, and if that breaks, an
    # attempt has failed.
    if error.was_kept and not error.has_begun and time.monotonic() - began < _CLOSING_SECONDS:
        return Unreached(ErrorData(name="AppUnreachableError", message=f"the app at {place} had closed the connection"))
    what = redact_urls(error)
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
