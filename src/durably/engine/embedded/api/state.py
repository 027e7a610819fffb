"""What the API's handlers share, kept in the aiohttp application."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from durably.engine.embedded.engine import EmbeddedEngine
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest

OnSync = Callable[[SyncRequest, bool], None]
"""Told of each sync that was accepted, and whether it changed anything."""


@dataclass(frozen=True)
class ApiState:
    engine: EmbeddedEngine
    server_kind: ServerKind
    on_sync: OnSync


STATE = web.AppKey("state", ApiState)


def state_of(request: web.Request) -> ApiState:
    return request.config_dict[STATE]


def engine_of(request: web.Request) -> EmbeddedEngine:
    return state_of(request).engine
