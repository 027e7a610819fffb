"""An engine served over HTTP.

It has the engine, its API on one address, and syncs with apps. No access log is kept, because the paths of ``/e/``
contain event keys.
"""

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypedDict

from aiohttp import hdrs, web

from durably.engine.api.counters import read_log_gauges
from durably.engine.api.dashboard.dashboard import Dashboard, DashboardKeys, KeySignIn
from durably.engine.api.dashboard.messages import at_address_of
from durably.engine.api.local import LocalEngine
from durably.engine.model.overview import LogState
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import EngineError
from durably.protocol.events import DEFAULT_PORT
from durably.protocol.headers import ServerKind
from durably.protocol.text import describe_os_error, reachable

from .application import HEALTH_PATH, create_api, ignore_sync
from .connect import Connect
from .connections import CONNECTIONS, ConnectionLimits, Connections
from .metrics import METRICS_PATH, create_metrics_page, write_text
from .requests import SERVER_LOGGER, AllowedHosts, ApiKeys, answer_expectation, error_response, json_response
from .syncs import AppDiscovery, OnSync

_LIMITS = ConnectionLimits()
DEFAULT_HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 2.0
"""Seconds for requests under way when the server closes."""


class PortTakenError(EngineError):
    """Another program already listens on the address."""


class HostInvalidError(EngineError):
    """The host to listen on must be an address of this machine."""


class ServerOptions(TypedDict, total=False):
    """The arguments of ``EngineServer.open``."""

    event_keys: Sequence[str]
    host: str
    port: int
    allowed_hosts: Sequence[str]
    metrics_address: tuple[str, int] | None
    limits: ConnectionLimits
    on_sync: OnSync
    dashboard_keys: DashboardKeys | None
    standby: Callable[[], Awaitable[LogState | None]] | None


class EngineServer:
    """An engine with its HTTP API on one address: an asynchronous context, or closed with ``close``.

    ``origin`` is the address for clients on this machine, and ``metrics_origin`` that of the metrics' own address, if
    they have one. ``discovery`` asks apps to sync with the engine.
    """

    def __init__(
        self,
        engine: LocalEngine,
        discovery: AppDiscovery,
        origin: str,
    ) -> None:
        self.engine, self.discovery, self.origin = engine, discovery, origin
        self.metrics_origin: str | None = None
        self._served: list[tuple[web.AppRunner, Connections]] = []

    @classmethod
    async def open(
        cls,
        open_engine: Callable[[], Awaitable[LocalEngine]],
        settings: EngineSettings,
        *,
        event_keys: Sequence[str] = (),
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        allowed_hosts: Sequence[str] = (),
        metrics_address: tuple[str, int] | None = None,
        limits: ConnectionLimits = _LIMITS,
        on_sync: OnSync = ignore_sync,
        dashboard_keys: DashboardKeys | None = None,
        standby: Callable[[], Awaitable[LogState | None]] | None = None,
    ) -> Self:
        """Open the engine and serve its API.

        - ``port``: 0 takes a free one.
        - ``event_keys``: Cloud mode needs them and signing keys; dev mode ignores them.
        - ``allowed_hosts``: Further hosts to which dev mode answers, in addition to those of this machine.
        - ``metrics_address``: A host and a port that serve only the metrics, without a key.
        - ``standby``: Reads the state of the commit log while ``open_engine`` waits until this process leads. Until
          then, ``/health`` and the metrics are served, and other requests are answered with 503.
        - ``dashboard_keys``: For the dashboard in cloud mode, which has none without them.

        Raises ``PortTakenError``, ``HostInvalidError``, and the errors of ``open_engine``.
        """
        keys = ApiKeys(
            server_kind=settings.server_kind,
            event_keys=tuple(event_keys),
            signing_keys=tuple(key for key in (settings.signing_key, settings.signing_key_fallback) if key),
        )
        with contextlib.ExitStack() as listeners:
            listener = listeners.enter_context(listen(host, port))
            metrics = (
                None
                if metrics_address is None
                else listeners.enter_context(listen(*metrics_address, "--metrics-address"))
            )
            if standby is None:
                engine = await open_engine()
            else:
                async with contextlib.AsyncExitStack() as served:
                    for each in (listener, metrics):
                        if each is not None:
                            app = create_standby(standby, has_metrics=each is metrics)
                            await served.enter_async_context(_serve_until_open(app, each.dup(), limits))
                    engine = await open_engine()
            listeners.pop_all()  # They are open as long as the server.
        origin = _origin_of(host, listener)
        is_dev = settings.server_kind is ServerKind.DEV
        finding_of = partial(at_address_of, is_dev=is_dev)
        dashboard: Dashboard | KeySignIn | None = None
        if is_dev:  # Only local hosts and origins reach it.
            dashboard = Dashboard(engine, allow_anonymous=True, finding_of=finding_of)
        elif dashboard_keys is not None:
            dashboard = KeySignIn(engine, dashboard_keys, finding_of)
        discovery = AppDiscovery(engine, settings, origin=origin, on_sync=on_sync)
        connect = None if engine.connected is None else Connect(engine.connected)
        api = create_api(
            engine,
            keys,
            hosts=AllowedHosts(host, allowed_hosts),
            on_sync=discovery.note_sync,
            sync_at=discovery.sync,
            dashboard=dashboard,
            routes=() if connect is None else connect.routes,
        )
        if connect is not None:
            api.on_shutdown.append(connect.close)
        server = cls(engine, discovery, origin)
        await server._serve(api, listener, limits)
        if metrics_address is not None and metrics is not None:
            await server._serve(create_metrics_page(engine), metrics, limits)
            server.metrics_origin = _origin_of(metrics_address[0], metrics)
        return server

    async def _serve(self, app: web.Application, listener: socket.socket, limits: ConnectionLimits) -> None:
        self._served.append(await serve_api(app, listener, limits, shutdown_timeout=SHUTDOWN_SECONDS))

    async def close(self) -> None:
        """Close the engine, then its API.

        The engine is first, because calls that it lets finish may still send their steps.
        """
        try:
            await self.engine.close()
        finally:
            await self.discovery.close()
            for runner, connections in self._served:
                await connections.close()
                await runner.cleanup()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def serve_api(
    api: web.Application, listener: socket.socket, limits: ConnectionLimits, *, shutdown_timeout: float
) -> tuple[web.AppRunner, Connections]:
    """Serve the API on a listening socket.

    Close the connections first, then clean up the runner.
    """
    connections = Connections(limits)
    api[CONNECTIONS] = connections
    runner = web.AppRunner(
        api,
        access_log=None,
        logger=SERVER_LOGGER,
        shutdown_timeout=shutdown_timeout,
        handle_signals=False,
        auto_decompress=False,  # aiohttp would also decompress bodies of refused requests
    )
    await runner.setup()
    assert runner.server is not None
    connections.start(listener, runner.server)
    return runner, connections


@contextlib.asynccontextmanager
async def _serve_until_open(
    app: web.Application, listener: socket.socket, limits: ConnectionLimits
) -> AsyncIterator[None]:
    runner, connections = await serve_api(app, listener, limits, shutdown_timeout=0)
    try:
        yield
    finally:
        await connections.close()
        await runner.cleanup()


def create_standby(
    read_state: Callable[[], Awaitable[LogState | None]], *, has_metrics: bool = False
) -> web.Application:
    """The API of a standby: it lives, is not ready, and refuses all other requests."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == HEALTH_PATH:
            return json_response({"status": 200, "message": "OK"})
        state = await read_state()
        if has_metrics and request.path == METRICS_PATH:
            body, kind = write_text(read_log_gauges(state), request.headers.get(hdrs.ACCEPT))
            return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})
        detail = "" if state is None else f" ({state})"
        response = error_response(503, f"this process is a standby: another process leads the database{detail}")
        response.headers[hdrs.RETRY_AFTER] = "1"
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer, expect_handler=answer_expectation)
    return app


def _origin_of(host: str, listener: socket.socket) -> str:
    return f"http://{reachable(host)}:{listener.getsockname()[1]}"


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket. Raises ``PortTakenError``, ``HostInvalidError``.

    ``option`` is the one that sets the port.
    """
    if not host.strip():  # It would be all addresses.
        raise HostInvalidError("the host to listen at is empty: give an address, such as 127.0.0.1 or 0.0.0.0 (--host)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"port {port} of {host} is taken by another program; choose another ({option})"
            ) from None
        setting = "--host" if option == "--port" else option
        raise HostInvalidError(f"cannot listen at {host} port {port} ({setting}): {describe_os_error(error)}") from None
