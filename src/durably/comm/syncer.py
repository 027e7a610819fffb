"""Syncing: telling the engine the app's functions, in its request's answer or by a request of our own (spec §4.3)."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from durably.client import SDK
from durably.errors import BodyInvalidError, RegistrationFailedError, ServerKindMismatchError
from durably.protocol.headers import Header, Query, ServerKind, SyncKind
from durably.protocol.sync import SYNC_VERSION
from durably.transport import IO, Request, Response, request_with_keys

from .inspection import CAPABILITIES, authenticated
from .models import CommRequest, CommResponse

if TYPE_CHECKING:
    from .handler import CommHandler


class _InBandRequest(msgspec.Struct):
    url: str


class Syncer:
    """Syncs one handler's app."""

    def __init__(self, handler: "CommHandler") -> None:
        self._handler = handler
        self._client = handler.client

    def in_band(self, req: CommRequest) -> CommResponse:
        """Answer a signed request with the app's whole configuration (spec §4.3.5)."""
        self._refuse_other_kind(req.server_kind)
        try:
            url = self._app_url(req, msgspec.json.decode(req.body, type=_InBandRequest).url)
        except msgspec.MsgspecError as error:
            raise BodyInvalidError(f"invalid in-band sync request: {error}") from None
        client = self._client
        body = {
            "app_id": client.app_id,
            "appVersion": client.app_version,
            "capabilities": CAPABILITIES,
            "env": client.env,
            "framework": self._handler.framework,
            "functions": self._configs(url),
            "inspection": authenticated(self._handler, req),
            "platform": None,
            "sdk_author": "durably",
            "sdk_language": "py",
            "sdk_version": SDK.partition(":v")[2],
            "url": url,
        }
        return CommResponse(
            body={name: value for name, value in body.items() if value is not None},
            headers={Header.SYNC_KIND.value: SyncKind.IN_BAND.value},
        )

    async def out_of_band(self, req: CommRequest, io: IO) -> CommResponse:
        """Register the app by a request to the engine, and hand its answer back (spec §4.3.2)."""
        self._refuse_other_kind(req.server_kind)
        response = await request_with_keys(io, self._build_request(req), self._client.signing_keys)
        answer = _hand_back(response)
        client = self._client
        if client.is_production and answer.status_code >= HTTPStatus.BAD_REQUEST:
            # In development, whoever asked for the sync looks at the answer.
            client.logger.error(
                "%s refused to sync app %s: %s", client.api_origin, client.app_id, answer.body["message"]
            )
        return answer

    def _refuse_other_kind(self, kind: ServerKind | None) -> None:
        mode = self._client.mode
        if kind is not None and kind is not mode:
            raise ServerKindMismatchError(
                f"sync rejected: the request is from a {kind.value} engine, but the app is in {mode.value} mode; "
                "set DURABLY_DEV=1 for development, unset it for production"
            )

    def payload(self, url: str) -> dict[str, Any]:
        """What tells an engine the app's functions, and that they are called at ``url``."""
        client = self._client
        payload = {
            "url": url,
            "deployType": "ping",
            "framework": self._handler.framework,
            "appName": client.app_id,
            "sdk": SDK,
            "v": SYNC_VERSION,
            "capabilities": CAPABILITIES,
            "functions": self._configs(url),
        }
        if client.app_version is not None:
            payload["appVersion"] = client.app_version
        return payload

    def _build_request(self, req: CommRequest) -> Request:
        client, framework = self._client, self._handler.framework
        payload = self.payload(self._app_url(req, req.url()))
        headers = client.headers(framework)
        if req.server_kind is not None:
            headers[Header.EXPECTED_SERVER_KIND.value] = req.server_kind.value
        deploy_id = req.query(Query.DEPLOY_ID)
        query = f"?{urlencode({Query.DEPLOY_ID.value: deploy_id})}" if deploy_id else ""
        return Request(
            "POST",
            f"{client.api_origin}/fn/register{query}",
            headers,
            msgspec.json.encode(payload),
            client.request_timeout,
        )

    def _app_url(self, req: CommRequest, used: str) -> str:
        """Where the engine reaches the app: the URL it used, with what settings replace of it."""
        parts = urlsplit(used)
        scheme, netloc = parts.scheme, parts.netloc
        if origin := req.serve_origin or self._handler.serve_origin:
            given = urlsplit(origin if "://" in origin else f"https://{origin}")
            scheme, netloc = given.scheme, given.netloc
        path = req.public_path or req.serve_path or self._handler.serve_path or parts.path
        return urlunsplit((scheme, netloc, path if path.startswith("/") else f"/{path}", "", ""))

    def _configs(self, url: str) -> Sequence[dict[str, Any]]:
        return [config for function in self._handler.functions for config in function.configs(url)]


def _hand_back(response: Response) -> CommResponse:
    try:
        answer = msgspec.json.decode(response.body)
    except msgspec.MsgspecError:
        answer = None
    if not isinstance(answer, dict):
        raise RegistrationFailedError(f"the engine answered the sync with {response.status} and no JSON object")
    headers = {Header.SYNC_KIND.value: SyncKind.OUT_OF_BAND.value}
    if response.status < HTTPStatus.BAD_REQUEST:
        return CommResponse(body=answer, headers=headers)
    message = answer.get("error") or answer.get("message") or "the engine refused the sync"
    refused = CommResponse.from_error(RegistrationFailedError(str(message).strip()))
    refused.status_code = response.status
    refused.headers |= headers
    return refused
