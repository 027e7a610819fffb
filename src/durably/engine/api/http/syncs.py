"""Detects two apps with one id, whose syncs remove each other's functions.

Both apps get a warning. An app that moves, is redeployed or reloaded also syncs other functions, or from another URL.
It is a conflict only if the app at the earlier URL still answers, and either has no function in common with the new
app, or had itself replaced the new app within the last hour.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from durably.engine.api.interface import LocalEngine
from durably.engine.model.overview import SyncResult
from durably.protocol.sync import SyncRequest
from durably.protocol.text import redact_url

PROBE_SECONDS = 2.0
_BACK_SECONDS = 3600.0
_SAY_AGAIN_SECONDS = 600.0
_MOST_NAMED = 5
_LOCAL = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


@dataclass(frozen=True)
class AcceptedSync:
    """A sync that the engine has stored, with its request.

    ``deploy_id`` is the id that the engine sent with its request, if any. ``conflict`` describes another app with the
    same id. ``is_news`` unless it was reported recently.
    """

    request: SyncRequest
    result: SyncResult
    deploy_id: str | None
    conflict: str | None = None
    is_news: bool = False


OnSync = Callable[[AcceptedSync], None]
SyncAt = Callable[[str], Awaitable[AcceptedSync]]
"""Asks the app at a URL to sync."""


class Served(msgspec.Struct, frozen=True):
    """An app's sync: its URL, and its functions."""

    url: str
    function_ids: frozenset[str]

    @property
    def place(self) -> tuple[str, int | None, str]:
        """The part of the URL that identifies the server."""
        try:
            parts = urlsplit(self.url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:  # Each function has its own URL; this one may be arbitrary.
            return self.url, None, ""
        return _LOCAL.get(host, host), port, parts.path.rstrip("/")


class Accepted(msgspec.Struct, frozen=True):
    """The result of a stored sync, and its conflict.

    ``conflict`` describes another app with the same id; ``is_new`` if it has not been reported yet.
    """

    result: SyncResult
    conflict: str | None = None
    is_new: bool = False


class AppConflicts:
    """Stores syncs, and detects conflicts of two apps with one id.

    ``is_alive`` returns whether an app answers at a URL.
    """

    def __init__(self, engine: LocalEngine, is_alive: Callable[[str], Awaitable[bool]]) -> None:
        self._engine = engine
        self._is_alive = is_alive
        self._replaced: dict[tuple[str, object, object], float] = {}
        self._said: dict[str, float] = {}

    async def accept(self, request: SyncRequest) -> Accepted:
        """Store an app's sync. Raises the errors of ``LocalEngine.sync_app``."""
        before = await self._served(request.app_id)
        result = await self._engine.sync_app(request)
        now = Served(request.url, frozenset(function.id for function in request.functions))
        if before is None or not await self._is_conflict(request.app_id, before, now):
            return Accepted(result)
        conflict = describe_conflict(request.app_id, before, now)
        is_new = time.monotonic() - self._said.get(request.app_id, -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS
        if is_new:
            self._said[request.app_id] = time.monotonic()
        return Accepted(result, conflict, is_new)

    async def _served(self, app_id: str) -> Served | None:
        functions = await self._engine.list_app_functions(app_id)
        url = next((app.url for app in await self._engine.list_apps() if app.id == app_id), None)
        return None if functions is None or url is None else Served(url, frozenset(one.id for one in functions))

    async def _is_conflict(self, app_id: str, before: Served, now: Served) -> bool:
        if before.place == now.place or not before.function_ids - now.function_ids:
            return False
        has_come_back = self._note_replacement(app_id, before, now)
        is_other_app = now.function_ids.isdisjoint(before.function_ids)
        if not (is_other_app and now.function_ids) and not has_come_back:
            return False
        others = [app.url for app in await self._engine.list_apps() if app.id != app_id]
        if any(Served(url, frozenset()).place == before.place for url in others):
            return False  # Another app has replaced it since.
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return await self._is_alive(before.url)
        except TimeoutError:
            return False

    def _note_replacement(self, app_id: str, before: Served, now: Served) -> bool:
        """Record a replacement.

        Returns whether the replaced app had recently replaced the new one.
        """
        at = time.monotonic()
        self._replaced = {key: since for key, since in self._replaced.items() if at - since < _BACK_SECONDS}
        self._replaced[app_id, before.place, now.place] = at
        return (app_id, now.place, before.place) in self._replaced


def describe_conflict(app_id: str, before: Served, now: Served) -> str:
    removed = sorted(before.function_ids - now.function_ids)
    named = ", ".join(removed[:_MOST_NAMED]) + (", …" if len(removed) > _MOST_NAMED else "")
    return (
        f"two apps have the id {app_id!r} and remove each other's functions: the one at {redact_url(now.url)} has just "
        f"removed {named} of the one at {redact_url(before.url)}, which is alive; give each its own app_id"
    )
