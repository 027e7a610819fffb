"""Reports of an app about itself: inspection (spec §4.5), and syncs (spec §4.3).

An inspection is a GET request. A sync sends the engine the app's functions, in an answer or in a request of the app.
Secrets are only shown as hashes, and only to signed requests.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from durably.app import SDK, App
from durably.errors import (
    BodyInvalidError,
    RegistrationFailedError,
    ServeOriginMissingError,
    ServerKindMismatchError,
    SyncTooSoonError,
    TransportError,
    URLInvalidError,
)
from durably.functions.function import Function
from durably.io.http_client import IO, Request, Response, request_with_keys
from durably.protocol.call import decode
from durably.protocol.headers import VERSION, Header, Query, ServerKind, SyncKind
from durably.protocol.signatures import VERSION as WHOLE_ANSWERS
from durably.protocol.signatures import hash_event_key, hash_signing_key
from durably.protocol.sync import SYNC_VERSION
from durably.protocol.text import printable, redact_url
from durably.settings import DEFAULT_SERVE_PATH

from .requests import CommRequest, CommResponse
from .serve_options import read_origin, read_serve_origin, with_slash

# -- inspection (schema 2024-05-24)

SCHEMA_VERSION = "2024-05-24"
_SHOWN_DIGITS = 12
CAPABILITIES = {"in_band_sync": "v1", "trust_probe": "v1"}


@dataclass(frozen=True)
class Endpoint:
    """An app's endpoint in a web framework.

    It has the app's functions, in the order of the sync, and the parts of its URL that settings define. A part of the
    URL that is ``None`` is taken from the request.
    """

    app: App
    framework: str
    functions: Sequence[Function[Any]]
    serve_origin: str | None
    serve_path: str | None
    public_path: str | None


def inspect_unsigned(endpoint: Endpoint, succeeded: bool | None) -> dict[str, Any]:
    """The inspection for a request without a valid signature.

    ``succeeded`` is ``None`` for an unsigned request, ``False`` for an invalid signature.
    """
    return {"authentication_succeeded": succeeded, **_inspection(endpoint)}


def inspect_signed(endpoint: Endpoint, req: CommRequest) -> dict[str, Any]:
    app = endpoint.app
    return {
        "authentication_succeeded": True,
        **_inspection(endpoint),
        "api_origin": app.origins.api,
        "app_id": app.app_id,
        "env": app.env,
        "event_api_origin": app.origins.events,
        "event_key_hash": hash_event_key(app.event_key) if app.event_key else None,
        "framework": endpoint.framework,
        "sdk_language": "py",
        "sdk_version": VERSION,
        "serve_origin": req.serve_origin or endpoint.serve_origin,
        "serve_path": req.serve_path or endpoint.serve_path,
        "signing_key_fallback_hash": _hashed(app.signing_key_fallback),
        "signing_key_hash": _hashed(app.signing_key),
    }


def _inspection(endpoint: Endpoint) -> dict[str, Any]:
    app = endpoint.app
    return {
        "capabilities": CAPABILITIES,
        "function_count": len(endpoint.functions),
        "has_event_key": app.event_key is not None,
        "has_signing_key": app.signing_key is not None,
        "has_signing_key_fallback": app.signing_key_fallback is not None,
        "mode": app.mode.value,
        "schema_version": SCHEMA_VERSION,
    }


def _hashed(key: str | None) -> str | None:
    """The start of a key's hash, as the official JavaScript SDK shows it.

    The whole hash is the token of the engine's API, so it is not shown.
    """
    return hash_signing_key(key)[:_SHOWN_DIGITS] if key else None


# -- syncs

UNSIGNED_SECONDS = 5.0
_SEE_LOG = "the sync failed; the app's log says why, and a signed sync (`durably sync URL`) is answered with the reason"


class _InBandRequest(msgspec.Struct):
    url: str


_in_band_decoder = msgspec.json.Decoder(_InBandRequest)
_object_decoder = msgspec.json.Decoder(dict[str, Any])


class UnsignedSyncs:
    """The last unsigned sync of an app in production.

    All unsigned syncs are equal, and any client may request one. Therefore one answer is reused for
    ``UNSIGNED_SECONDS``, and the app sends its engine at most one request in that time. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._answer: CommResponse | None = None

    def begin(self) -> CommResponse | None:
        """The answer to reuse, or ``None`` if the caller must sync.

        Raises ``SyncTooSoonError``.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._next_at:
                self._next_at, self._answer = now + UNSIGNED_SECONDS, None
                return None
            if self._answer is None:
                raise SyncTooSoonError(
                    "another unsigned sync is under way or has failed; the next is possible within "
                    f"{UNSIGNED_SECONDS:g} s, a signed one (`durably sync URL`) at any time"
                )
            return dataclasses.replace(self._answer, headers=dict(self._answer.headers))

    def end(self, answer: CommResponse) -> None:
        """Keep the sync's answer. Only a success is reused."""
        if answer.status_code < HTTPStatus.BAD_REQUEST:
            with self._lock:
                self._answer = dataclasses.replace(answer, headers=dict(answer.headers))


class Syncer:
    """Syncs one endpoint's app.

    It sends an engine the app's functions, and the URL at which to call them.

    In production the URL never comes from an unsigned part of a request. In band, it is in the signed body. Out of
    band, it comes from ``serve_origin``, because a signature does not cover the ``Host`` header. ``serve_origin``,
    ``serve_path`` and ``public_path`` replace parts of either.
    """

    def __init__(self, endpoint: Endpoint, unsigned_syncs: UnsignedSyncs | None = None) -> None:
        self._endpoint = endpoint
        self._app = endpoint.app
        self._unsigned_syncs = unsigned_syncs or UnsignedSyncs()

    def in_band(self, req: CommRequest) -> CommResponse:
        """Answer a signed request with the app's whole configuration (spec §4.3.5).

        Raises ``BodyInvalidError``, ``ServerKindMismatchError``.
        """
        self._refuse_other_kind(req.server_kind)
        try:
            url = self._url_from(req, decode(_in_band_decoder, req.body).url)
        except (msgspec.DecodeError, URLInvalidError) as error:
            raise BodyInvalidError(f"invalid in-band sync request: {error}") from None
        app = self._app
        body = {
            "app_id": app.app_id,
            "appVersion": app.app_version,
            "capabilities": CAPABILITIES,
            "env": app.env,
            "framework": self._endpoint.framework,
            "functions": self._configs(url),
            "inspection": inspect_signed(self._endpoint, req),
            "platform": None,
            "sdk_author": "durably",
            "sdk_language": "py",
            "sdk_version": SDK.partition(":v")[2],
            "url": url,
        }
        return CommResponse.from_json(
            {name: value for name, value in body.items() if value is not None},
            headers={Header.SYNC_KIND.value: SyncKind.IN_BAND.value},
        )

    async def out_of_band(self, req: CommRequest, io: IO, *, is_signed: bool = False) -> CommResponse:
        """Register the app by a request to the engine (spec §4.3.2).

        Returns the engine's answer. Raises ``ServeOriginMissingError``, ``RegistrationFailedError``,
        ``ServerKindMismatchError``, ``TransportError``, ``URLInvalidError``.
        """
        self._refuse_other_kind(req.server_kind)
        request = self._build_request(req, is_signed=is_signed)
        if is_signed or not self._app.is_production:
            return self._hand_back(await request_with_keys(io, request, self._app.signing_keys))
        kept = self._unsigned_syncs
        if (answer := kept.begin()) is None:
            answer = await self._register_unsigned(request, io)
            kept.end(answer)
        return answer

    async def _register_unsigned(self, request: Request, io: IO) -> CommResponse:
        """Register for an unsigned request in production.

        Details, such as the engine's address, are only logged. Raises ``RegistrationFailedError``.
        """
        try:
            answer = self._hand_back(await request_with_keys(io, request, self._app.signing_keys))
        except (RegistrationFailedError, TransportError) as error:
            self._app.logger.error("an unsigned sync of app %s failed: %s", self._app.app_id, printable(error))
            raise RegistrationFailedError(_SEE_LOG) from None
        if answer.status_code < HTTPStatus.BAD_REQUEST:
            return CommResponse.from_json({"ok": True}, headers=answer.headers)
        refused = CommResponse.from_error(RegistrationFailedError(_SEE_LOG))
        refused.status_code = answer.status_code
        refused.headers |= answer.headers
        return refused

    def _refuse_other_kind(self, kind: ServerKind | None) -> None:
        mode = self._app.mode
        if kind is not None and kind is not mode:
            raise ServerKindMismatchError(
                f"sync rejected: the request is from a {kind.value} engine, but the app is in {mode.value} mode; "
                "set DURABLY_DEV=1 for development, unset it for production"
            )

    def payload(self, url: str) -> dict[str, Any]:
        """The body of a sync.

        It has the app's functions, and the URL at which the engine calls them.
        """
        app = self._app
        payload = {
            "url": url,
            "deployType": "ping",
            "framework": self._endpoint.framework,
            "appName": app.app_id,
            "sdk": SDK,
            "v": SYNC_VERSION,
            "capabilities": CAPABILITIES,
            "functions": self._configs(url),
        }
        if app.app_version is not None:
            payload["appVersion"] = app.app_version
        return payload

    def _build_request(self, req: CommRequest, *, is_signed: bool) -> Request:
        app, framework = self._app, self._endpoint.framework
        if app.is_production and not req.has_trusted_url:
            url = self._configured_url(req)
        else:
            url = self._url_from(req, req.request_url)
        payload = self.payload(url)
        headers = app.headers(framework)
        if req.server_kind is not None:
            headers[Header.EXPECTED_SERVER_KIND.value] = req.server_kind.value
        # The engine that signed the request knows the deployment. Another client may invent one.
        deploy_id = req.query(Query.DEPLOY_ID) if is_signed or not app.is_production else None
        query = f"?{urlencode({Query.DEPLOY_ID.value: deploy_id})}" if deploy_id else ""
        return Request(
            "POST",
            f"{app.api_origin}/fn/register{query}",
            headers,
            msgspec.json.encode(payload),
            app.request_timeout,
        )

    def _url_from(self, req: CommRequest, used: str) -> str:
        """The URL that the engine used, with the parts that settings replace.

        Raises ``URLInvalidError``.
        """
        scheme, netloc = self._origin(req) or read_origin(used, "the app's URL")
        return urlunsplit((scheme, netloc, self._path(req) or urlsplit(used).path or "/", "", ""))

    def _configured_url(self, req: CommRequest) -> str:
        """The app's URL from settings alone. Raises ``ServeOriginMissingError``."""
        if (origin := self._origin(req)) is None:
            raise ServeOriginMissingError(
                "the app's own URL is not known, and in production it is not taken from a request's headers: set "
                "serve_origin in serve(…) or DURABLY_SERVE_ORIGIN, like https://app.example.com, or sync in band "
                "(`durably sync URL`, `durably start -u URL`)"
            )
        scheme, netloc = origin
        path = self._path(req) or DEFAULT_SERVE_PATH
        self._warn_of_other_path(req, path)
        return urlunsplit((scheme, netloc, path, "", ""))

    def _origin(self, req: CommRequest) -> tuple[str, str] | None:
        origin = req.serve_origin or self._endpoint.serve_origin
        return read_serve_origin(origin, "serve_origin") if origin else None

    def _path(self, req: CommRequest) -> str | None:
        endpoint = self._endpoint
        path = req.public_path or endpoint.public_path or req.serve_path or endpoint.serve_path
        return with_slash(path) if path else None

    def _warn_of_other_path(self, req: CommRequest, path: str) -> None:
        """Warn if the app may be mounted below a prefix: engines would call a wrong URL."""
        if req.public_path or self._endpoint.public_path:
            return
        with contextlib.suppress(URLInvalidError, ValueError):
            used = urlsplit(req.request_url).path
            if used and used != path:
                self._app.logger.warning(
                    "app %s syncs the path %s, and this sync was sent to %a: if the app is mounted below a prefix, set "
                    "public_path in serve(…)",
                    self._app.app_id,
                    path,
                    used,
                )

    def _configs(self, url: str) -> Sequence[dict[str, Any]]:
        configs = [config for function in self._endpoint.functions for config in function.configs(url)]
        if self._app.is_production:
            for config in configs:
                for step in config["steps"].values():
                    step["runtime"]["answerSignature"] = WHOLE_ANSWERS
        return configs

    def _hand_back(self, response: Response) -> CommResponse:
        try:
            answer = decode(_object_decoder, response.body)
        except msgspec.DecodeError:
            raise RegistrationFailedError(
                f"the engine answered the sync with {response.status} and no JSON object"
            ) from None
        headers = {Header.SYNC_KIND.value: SyncKind.OUT_OF_BAND.value}
        if response.status < HTTPStatus.BAD_REQUEST:
            return CommResponse.from_json(answer, headers=headers)
        message = str(answer.get("error") or answer.get("message") or "the engine refused the sync").strip()
        app = self._app
        if app.is_production:  # In development, the developer who requested the sync sees the answer.
            app.logger.error(
                "%s refused to sync app %s: %s", redact_url(app.api_origin), app.app_id, printable(message)
            )
        refused = CommResponse.from_error(RegistrationFailedError(message))
        refused.status_code = response.status
        refused.headers |= headers
        return refused
