"""Syncs: apps that send the engine their functions (spec §4.3)."""

from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from durably.protocol.api import AppSyncBody, FunctionBody
from durably.protocol.headers import Header, Query
from durably.protocol.sync import decode_sync
from durably.protocol.text import redact_url

from .bodies import decode_json, read_body, read_json
from .discovery import AppUnreachedError, NoAppError, SyncFailedError
from .functions import without_credentials
from .responses import ApiError, data_response, json_response
from .state import AcceptedSync, engine_of, state_of


class _SyncApp(msgspec.Struct):
    url: str


_sync_app_decoder = msgspec.json.Decoder(_SyncApp)


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def register(request: web.Request) -> web.Response:
    """``POST /fn/register[?deployId=…]``."""
    _check_server_kind(request)
    sync = decode_json(await read_body(request), decode_sync)
    accepted = await state_of(request).conflicts.accept(sync)
    result, conflict = accepted.result, accepted.conflict
    told = AcceptedSync(sync, result, request.query.get(Query.DEPLOY_ID), conflict, accepted.is_new)
    state_of(request).on_sync(told)
    answer = {"ok": True, "status": 200, "modified": result.modified, "app_id": result.app_id}
    return json_response(answer | ({} if conflict is None else {"warning": conflict}))


def _check_server_kind(request: web.Request) -> None:
    expected, actual = request.headers.get(Header.EXPECTED_SERVER_KIND), state_of(request).server_kind
    if expected and expected != actual:
        raise ApiError(400, f"the app expected an engine in {expected} mode, and this one is in {actual} mode")


async def sync_app(request: web.Request) -> web.Response:
    """``POST /v1/apps/sync {url}``: ask the app at a URL to sync. 502 if it does not answer."""
    url = (await read_json(request, _sync_app_decoder)).url
    sync_at = state_of(request).sync_at
    if sync_at is None:
        raise ApiError(400, "this engine runs in its app's own processes, and syncs whenever they start")
    if not _is_http_url(url):
        raise ApiError(400, "the body's url must be a URL like http://127.0.0.1:8000/api/inngest")
    try:
        accepted = await sync_at(url)
    except AppUnreachedError as error:
        raise ApiError(502, error.message) from None
    except (NoAppError, SyncFailedError) as error:
        raise ApiError(422, error.message) from None
    return data_response(_describe(accepted))


def _describe(accepted: AcceptedSync) -> AppSyncBody:
    result = accepted.result
    return AppSyncBody(
        app_id=result.app_id,
        url=redact_url(accepted.request.url),
        version=result.version,
        previous_version=result.previous_version,
        modified=result.modified,
        functions=[function.id for function in accepted.request.functions],
        added=list(result.added),
        changed=list(result.changed),
        removed=list(result.removed),
        previous_url=None if result.previous_url is None else redact_url(result.previous_url),
        warning=accepted.conflict,
    )


async def list_functions(request: web.Request) -> web.Response:
    """``GET /v1/apps/{app_id}/functions``."""
    app_id = request.match_info["app_id"]
    functions = await engine_of(request).list_functions(app_id)
    if functions is None:
        raise ApiError(404, f"no app with the id {app_id!r} has synced")
    return data_response(
        [FunctionBody(id=fn.id, name=fn.name or fn.id, config=without_credentials(fn)) for fn in functions]
    )
