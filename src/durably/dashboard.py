"""The dashboard of a client's engine in a web app, for the adapters.

``Action`` is the argument of a user's ``authorize``. The adapters only translate requests and responses.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from durably.io.background_loop import run_with_callbacks
from durably.io.http_client import AsyncIO
from durably.protocol.headers import ServerKind
from durably.protocol.limits import MAX_FORM_BYTES
from durably.protocol.options import check_type

from .client import Client
from .engine.api.codec import ANY_EVENT_KEY, HttpEngine, HttpRequest, HttpResponse
from .engine.api.dashboard.dashboard import SEGMENTS, Dashboard, name_permission
from .engine.api.dashboard.messages import (
    Action,
    CallBlocking,
    DashboardRequest,
    DashboardResponse,
    Finding,
    at_url,
    on_database,
)
from .engine.api.interface import Engine
from .engine_client import exchange
from .errors import BodyTooLargeError, FunctionConfigInvalidError
from .settings import check_serve_path

__all__ = ["Action", "DashboardRequest", "MountedDashboard", "name_permission"]

STREAM_SECONDS = 5.0
"""Maximum seconds of a dashboard's stream in an app. Servers such as uvicorn wait for it when they stop."""
_DEV_STREAM_SECONDS = 1.0
"""The same in development: a server that reloads waits for it, and would run old code for as long."""
_TIMEOUT_SECONDS = 30.0
ROOT_SEGMENTS = sorted(SEGMENTS - {""})
"""The first segments of the paths of a dashboard at the root. All other paths belong to the app."""
ROOT_PATHS = rf"(?:(?:{'|'.join(map(re.escape, ROOT_SEGMENTS))})(?:/[\s\S]*)?)?"
"""The paths of a dashboard at the root, without the first slash."""
_OF_PATHS = "/:@!$&'()*+=~"
"""Characters that browsers send unescaped in a path. Commas and semicolons end cookies' paths."""


class MountedDashboard:
    """A dashboard in a web app, independent of frameworks.

    - ``mount``: The path of the mount point, ``""`` for the root.
    - ``caller``: The function that users call, for errors.
    - ``raises``: The framework's errors that ``authorize`` may raise, for the framework to answer.
    - ``permission_of``: Names the permission that an action needs.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        *,
        authorize: Callable[[Action], Any] | None = None,
        allow_anonymous: bool = False,
        caller: str,
        raises: tuple[type[Exception], ...] = (),
        permission_of: Callable[[str], str] = name_permission,
    ) -> None:
        if not isinstance(client, Client):
            raise FunctionConfigInvalidError(f"{caller} takes a durably.Client as its client, not {client!r}")
        check_type(path, f"{caller}(path=…)", str, 'a string, such as "/durably"', FunctionConfigInvalidError)
        self.mount = "/" + check_serve_path(path, f"{caller}(path=…)").strip("/") if path.strip("/") else ""
        self.mount = self.mount.rstrip("/")
        self._client = client
        self._make = partial(
            Dashboard,
            authorize=authorize,
            allow_anonymous=allow_anonymous,
            caller=caller,
            raises=raises,
            permission_of=permission_of,
        )
        self._dashboard = self._make(engine_of(client), finding_of=lambda request: _finding_of(client))

    def _current(self) -> Dashboard:
        """The dashboard of the client's engine, or of the test engine that replaces it."""
        engine = getattr(self._client.in_process, "operations", None)
        return self._make(engine) if isinstance(engine, Engine) else self._dashboard

    async def handle(self, request: DashboardRequest) -> DashboardResponse:
        """The response, on an event loop. Only raises errors of ``raises``."""
        seconds = STREAM_SECONDS if self._client.is_production else _DEV_STREAM_SECONDS
        return await self._current().handle(_prepare(request, stream_seconds=seconds))

    def handle_sync(self, request: DashboardRequest) -> DashboardResponse:
        """The response, for a server with a thread for each request.

        ``authorize`` runs in this thread. The response is never a lasting stream, which would occupy the thread.
        """

        if self._client.in_process is not None:
            self._client.in_process.refuse_to_block()

        def start(call_blocking: CallBlocking) -> Any:
            return self._current().handle(_prepare(request, call_blocking=call_blocking, stream_seconds=0.0))

        response: DashboardResponse = run_with_callbacks(start)
        return response


def _prepare(request: DashboardRequest, **changes: Any) -> DashboardRequest:
    """The request with an escaped mount point, as in URLs and paths of cookies.

    Frameworks decode it. It begins with one slash, because links to ``//name`` would leave the site.
    """
    mount = quote(request.mount.strip("/"), safe=_OF_PATHS, errors="replace")
    return replace(request, mount=f"/{mount}" if mount else "", **changes)


def check_size(size: int) -> None:
    """Raises ``BodyTooLargeError`` for a form that is too large. ``size`` is in bytes."""
    if size > MAX_FORM_BYTES:
        raise BodyTooLargeError(f"the form is larger than {MAX_FORM_BYTES} bytes")


def refuse(error: Exception) -> DashboardResponse:
    """The response to a body that is too large or cannot be read."""
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if isinstance(error, BodyTooLargeError) else HTTPStatus.BAD_REQUEST
    return DashboardResponse(
        status_code=status,
        headers=[("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")],
        body=f"{error}\n".encode(errors="replace"),
    )


def engine_of(client: Client) -> Engine:
    """The engine of a client: its ``Embedded``, or the one at its URL."""
    if isinstance(client.engine, Engine):
        return client.engine
    if hasattr(client.engine, "__in_process__"):
        raise FunctionConfigInvalidError(f"the engine of the app {client.app_id!r} has no operations for a dashboard")

    async def send(request: HttpRequest) -> HttpResponse:
        return await exchange(client, request, AsyncIO(), _TIMEOUT_SECONDS)

    return HttpEngine(send, event_key=client.event_key or ANY_EVENT_KEY)


def _finding_of(client: Client) -> Finding:
    """The options with which commands find a client's engine.

    There are none for an engine on Temporal in process.
    """
    if client.in_process is None:
        return at_url(client.api_origin, is_dev=client.mode is ServerKind.DEV)
    path = getattr(client.engine, "path", None)
    return Finding() if path is None else on_database(str(path))
