"""Syncs by URL, for which the engine asks an app for its functions, as ``durably dev -u URL`` does (spec §4.3).

Out of band, the engine sends a PUT, and the app posts its functions to the engine's ``/fn/register``. In cloud mode the
engine requests them in the signed answer, and uses the other way if the app declines.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs
from yarl import URL

from durably.engine.api.local import LocalEngine
from durably.engine.model.calls import sign_request, was_sent
from durably.engine.model.overview import SyncResult
from durably.engine.model.settings import EngineSettings
from durably.protocol.call import decode
from durably.protocol.engine_errors import EngineError
from durably.protocol.headers import Header, Query, ServerKind, SyncKind
from durably.protocol.signatures import SignatureError, verify
from durably.protocol.sync import FunctionConfig, SyncRequest, decode_functions
from durably.protocol.text import get_logger, printable, redact_url, redact_urls


@dataclass(frozen=True)
class AcceptedSync:
    """A sync that the engine has stored, with its request.

    ``deploy_id`` is the id that the engine sent with its request, if any.
    """

    request: SyncRequest
    result: SyncResult
    deploy_id: str | None = None


OnSync = Callable[[AcceptedSync], None]
SyncAt = Callable[[str], Awaitable[AcceptedSync]]
"""Asks the app at a URL to sync."""


TIMEOUT_SECONDS = 10.0
"""Seconds from the request to the end of the answer."""
_CHUNK_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Bytes of an app's largest answer to a sync or an inspection. Thousands of functions fit."""

_logger = get_logger("durably.engine")


class AppUnreachedError(EngineError):
    """No app answers at the URL."""


class NoAppError(EngineError):
    """The server at the URL serves no functions."""


class SyncFailedError(EngineError):
    """The app at the URL did not sync with this engine."""


class Inspection(msgspec.Struct):
    """The field of an inspection response that the engine reads (spec §4.5)."""

    mode: str | None = None


class InBandSync(msgspec.Struct):
    """An app's configuration in its answer to a signed PUT."""

    app_id: str
    url: str
    functions: list[FunctionConfig]
    framework: str | None = None
    app_version: str | None = msgspec.field(default=None, name="appVersion")
    sdk: str | None = None
    sdk_language: str | None = None
    sdk_version: str | None = None
    capabilities: Any = None

    def to_request(self) -> SyncRequest:
        return SyncRequest(
            url=self.url,
            functions=self.functions,
            app_name=self.app_id,
            app_version=self.app_version,
            framework=self.framework,
            sdk=self.sdk or f"{self.sdk_language}:v{self.sdk_version}",
            capabilities=self.capabilities,
        )


_inspection_decoder = msgspec.json.Decoder(Inspection)
_fault_decoder = msgspec.json.Decoder(dict[str, Any])


class AppDiscovery:
    """Asks apps to sync with ``engine``. Messages name it by ``origin``.

    Give ``note_sync`` to ``create_api`` as its ``on_sync``; each accepted sync is passed on to ``on_sync``.
    """

    def __init__(self, engine: LocalEngine, settings: EngineSettings, *, origin: str, on_sync: OnSync) -> None:
        self._engine, self._settings, self._origin, self._on_sync = engine, settings, origin, on_sync
        self._awaited: dict[str, AcceptedSync | None] = {}
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            headers={str(Header.SERVER_KIND): settings.server_kind, hdrs.ACCEPT_ENCODING: "identity"},
            auto_decompress=False,  # A few bytes may decompress to gigabytes.
        )

    async def close(self) -> None:
        await self._session.close()

    def note_sync(self, sync: AcceptedSync) -> None:
        if sync.deploy_id in self._awaited:
            self._awaited[sync.deploy_id] = sync
        self._on_sync(sync)

    async def sync(self, url: str) -> AcceptedSync:
        """The app's sync, after it is stored.

        Raises ``AppUnreachedError``, ``NoAppError``, ``SyncFailedError``.
        """
        await self._inspect(url)
        if self._settings.server_kind is ServerKind.CLOUD:
            return await self._sync_in_band(url)
        with self._awaiting() as deploy_id:
            await self._put(url, deploy_id, b"{}", {})
            return self._posted_sync(url, deploy_id)

    async def _inspect(self, url: str) -> None:
        """GET the URL, to check that an app of the engine's mode answers there."""
        status, headers, body = await self._request("GET", url, headers=self._signed(b""))
        if Header.SDK not in headers:
            raise NoAppError(
                f"{redact_url(url)} answered with status {status}, but serves no functions (no {Header.SDK} header): "
                "give the URL of the app's endpoint, whose path is /api/inngest unless serve_path sets another"
            )
        try:
            inspection = decode(_inspection_decoder, body)
        except msgspec.DecodeError:
            inspection = Inspection()
        mode = self._settings.server_kind
        if status == 403 or (inspection.mode or mode) != mode:
            advice = (
                f"start it with DURABLY_DEV={self._origin} in its environment (other SDKs: INNGEST_DEV)"
                if mode is ServerKind.DEV
                else "start it without DURABLY_DEV and INNGEST_DEV, and with the engine's DURABLY_SIGNING_KEY"
            )
            raise SyncFailedError(f"the app at {redact_url(url)} is not in {mode} mode: {advice}")

    async def _sync_in_band(self, url: str) -> AcceptedSync:
        request = msgspec.json.encode({"url": url})
        with self._awaiting() as deploy_id:
            signed = {Header.SYNC_KIND: SyncKind.IN_BAND} | self._signed(request)
            headers, body = await self._put(url, deploy_id, request, signed)
            if headers.get(Header.SYNC_KIND) != SyncKind.IN_BAND:
                return self._posted_sync(url, deploy_id)
        sync = self._read_in_band(url, headers, body)
        accepted = AcceptedSync(sync, await self._engine.sync_app(sync))
        _tell_other_origins(url, sync)
        self.note_sync(accepted)
        return accepted

    @contextlib.contextmanager
    def _awaiting(self) -> Iterator[str]:
        """An id that identifies the app's request to this engine."""
        deploy_id = str(uuid.uuid4())
        self._awaited[deploy_id] = None
        try:
            yield deploy_id
        finally:
            del self._awaited[deploy_id]

    def _posted_sync(self, url: str, deploy_id: str) -> AcceptedSync:
        """The sync that the app posted to this engine.

        Raises ``SyncFailedError`` if it used another engine.
        """
        accepted = self._awaited[deploy_id]
        if accepted is None:
            raise SyncFailedError(
                f"the app at {redact_url(url)} synced with another engine: start it with this engine's URL "
                f"({self._origin}) in DURABLY_DEV or, in production, DURABLY_ENGINE_URL"
            )
        return accepted

    async def _put(
        self, url: str, deploy_id: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        status, answered, answer = await self._request(
            "PUT",
            url,
            params={Query.DEPLOY_ID: deploy_id},
            data=body,
            headers={hdrs.CONTENT_TYPE: "application/json", **headers},  # Express reads no JSON without it.
        )
        if status >= 300:
            raise SyncFailedError(f"the app at {redact_url(url)} failed to sync: {_describe_fault(status, answer)}")
        return answered, answer

    def _read_in_band(self, url: str, headers: Mapping[str, str], body: bytes) -> SyncRequest:
        keys = (self._settings.signing_key, self._settings.signing_key_fallback)
        try:
            signature = headers.get(Header.SIGNATURE, "")
            verify(body, signature, keys, time.time())
            if was_sent(signature):
                raise SignatureError("it is a signed request of the engine's own that was sent back")
            return decode_functions(body, InBandSync).to_request()
        except SignatureError as error:
            raise SyncFailedError(
                f"the answer of the app at {redact_url(url)} cannot be trusted: {printable(error)}"
            ) from None
        except msgspec.DecodeError as error:
            raise SyncFailedError(
                f"the app at {redact_url(url)} answered a sync with a wrong body: {printable(error)}"
            ) from None

    def _signed(self, body: bytes) -> dict[str, str]:
        """Headers that sign a request to an app, in cloud mode only.

        In cloud mode apps answer only signed requests.
        """
        key = self._settings.signing_key
        if key is None or self._settings.server_kind is ServerKind.DEV:
            return {}
        return {Header.SIGNATURE: sign_request(body, key)}

    async def _request(self, method: str, url: str, **options: Any) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                return response.status, response.headers, await _read(url, response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AppUnreachedError(f"no app answers at {redact_url(url)}: {_describe(error)}") from None


async def _read(url: str, response: aiohttp.ClientResponse) -> bytes:
    """Read the body.

    Raises ``SyncFailedError`` for one that is too large or compressed.
    """
    if encoding := response.headers.get(hdrs.CONTENT_ENCODING, "identity").replace("identity", ""):
        raise SyncFailedError(
            f"the app at {redact_url(url)} answered with content-encoding {printable(encoding)}, although the request "
            "does not accept it: have the app or its proxy send these answers uncompressed"
        )
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise SyncFailedError(f"the app at {redact_url(url)} answered with more than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _tell_other_origins(url: str, sync: SyncRequest) -> None:
    """Log a line if the app requests to be called at another host."""
    urls = [step.runtime.url for function in sync.functions for step in function.steps.values()]
    for origin in sorted({str(URL(used).origin()) for used in urls} - {str(URL(url).origin())}):
        _logger.warning(
            "app %r was asked to sync at %s, and is called at %s: its settings say so (serve_origin)",
            sync.app_id,
            redact_url(url),
            origin,
        )


def _describe(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its host name is not known"
        case aiohttp.ClientConnectorCertificateError():
            return f"its TLS certificate is not valid: {redact_urls(error.certificate_error)}"
        case aiohttp.ClientSSLError():
            return "the TLS handshake failed; is it an http:// URL?"
        case aiohttp.ClientConnectorError() if error.os_error.errno:
            return os.strerror(error.os_error.errno).lower()
        case TimeoutError():
            return f"no answer within {TIMEOUT_SECONDS:.0f} s"
    return redact_urls(error) or type(error).__name__


def _describe_fault(status: int, body: bytes) -> str:
    try:
        fault = decode(_fault_decoder, body)
    except msgspec.DecodeError:
        fault = {}
    message = fault.get("message") or fault.get("error") or "no reason given"
    return f"status {status}, {redact_urls(message)}"
