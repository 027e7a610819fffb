"""Apps telling the engine their functions (spec §4.3), and what those are."""

from aiohttp import web

from durably.protocol.api import FunctionBody
from durably.protocol.headers import Header, Query
from durably.protocol.sync import decode_sync

from .bodies import decode_json, read_body
from .responses import ApiError, data_response, json_response
from .state import AcceptedSync, engine_of, state_of


async def register(request: web.Request) -> web.Response:
    """``POST /fn/register[?deployId=…]``."""
    _check_server_kind(request)
    sync = decode_json(await read_body(request), decode_sync)
    result = await engine_of(request).sync_app(sync)
    state_of(request).on_sync(AcceptedSync(sync, result.modified, request.query.get(Query.DEPLOY_ID)))
    return json_response({"ok": True, "status": 200, "modified": result.modified, "app_id": result.app_id})


def _check_server_kind(request: web.Request) -> None:
    expected, actual = request.headers.get(Header.EXPECTED_SERVER_KIND), state_of(request).server_kind
    if expected and expected != actual:
        raise ApiError(400, f"the app expected an engine in {expected} mode, and this one is in {actual} mode")


async def list_functions(request: web.Request) -> web.Response:
    """``GET /v1/apps/{app_id}/functions``."""
    app_id = request.match_info["app_id"]
    functions = await engine_of(request).list_functions(app_id)
    if functions is None:
        raise ApiError(404, f"no app with the id {app_id!r} has synced")
    return data_response([FunctionBody(id=fn.id, name=fn.name or fn.id, config=fn) for fn in functions])
