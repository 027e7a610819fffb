"""What the API's handlers share, kept in the aiohttp application."""

from collections.abc import Callable

from aiohttp import web

from durably.engine.embedded.engine import EmbeddedEngine
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest

OnSync = Callable[[SyncRequest, bool], None]
"""Told of each sync that was accepted, and whether it changed anything."""

ENGINE = web.AppKey("engine", EmbeddedEngine)
SERVER_KIND = web.AppKey("server_kind", ServerKind)
ON_SYNC = web.AppKey("on_sync", OnSync)  # type: ignore[type-abstract]


def engine_of(request: web.Request) -> EmbeddedEngine:
    return request.app[ENGINE]
