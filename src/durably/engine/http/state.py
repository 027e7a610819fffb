"""What the API's handlers share, kept in the aiohttp application."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from durably.engine.engine import EmbeddedEngine
from durably.engine.views import SyncResult
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest

from .conflicts import AppConflicts


@dataclass(frozen=True)
class AcceptedSync:
    """A sync that the engine has stored. ``deploy_id`` is the id that the engine sent with its request, if any.
    ``conflict`` describes another app with the same id. It ``is_news`` unless it was reported recently."""

    request: SyncRequest
    result: SyncResult
    deploy_id: str | None
    conflict: str | None = None
    is_news: bool = False


OnSync = Callable[[AcceptedSync], None]
SyncAt = Callable[[str], Awaitable[AcceptedSync]]
"""Asks the app at a URL to sync."""


@dataclass(frozen=True)
class ApiState:
    engine: EmbeddedEngine
    server_kind: ServerKind
    on_sync: OnSync
    sync_at: SyncAt | None
    conflicts: AppConflicts


STATE = web.AppKey("state", ApiState)


def state_of(request: web.Request) -> ApiState:
    return request.config_dict[STATE]


def engine_of(request: web.Request) -> EmbeddedEngine:
    return state_of(request).engine
