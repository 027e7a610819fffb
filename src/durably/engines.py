"""The engine of a client: its choice, and the interface of one in this process.

Arguments, environment and mode choose the engine.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from durably.protocol.events import EventReceipt
from durably.protocol.headers import ServerKind

from .errors import FunctionConfigInvalidError, URLInvalidError
from .settings import (
    API_BASE_URL,
    DEV,
    DEV_ORIGIN,
    ENGINE_URL,
    EVENT_API_BASE_URL,
    Environment,
    Setting,
    parse_origin,
)

TEMPORAL_SCHEME = "temporal://"
"""The scheme of the URLs of Temporal servers, with which the app's own processes are the engine."""
_TEMPORAL_URL_SHAPE = f"{TEMPORAL_SCHEME}localhost:7233, with /NAMESPACE and ?workers=false if needed"
_DATABASES = (".db", ".sqlite", ".sqlite3")
_CLOUD_API = "https://api.inngest.com"
_CLOUD_EVENTS = "https://inn.gs"
_CLOUD_HOSTS = frozenset({"api.inngest.com", "app.inngest.com", "inn.gs"})


@dataclass(frozen=True)
class TemporalURL:
    """The parts of ``temporal://HOST:PORT[/NAMESPACE][?workers=false]``."""

    address: str
    namespace: str | None
    workers: bool


def parse_temporal_url(url: str, setting: str) -> TemporalURL:
    """Parse the URL. ``setting`` names its source. Raises ``URLInvalidError``."""
    invalid = URLInvalidError(f"{setting} is not the URL of a Temporal server: write it like {_TEMPORAL_URL_SHAPE}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise invalid from None
    options = parse_qs(parts.query, keep_blank_values=True)
    workers = options.pop("workers", ["true"])
    namespace = unquote(parts.path).strip("/")
    is_shaped = parts.netloc and "@" not in parts.netloc and "/" not in namespace and not parts.fragment
    if not is_shaped or options or workers not in (["true"], ["false"]):
        raise invalid
    return TemporalURL(parts.netloc, namespace or None, workers == ["true"])


class EngineHandle(Protocol):
    """An engine in this process, for ``Client(engine=…)``.

    It is a ``durably.Embedded`` or ``durably.TemporalEngine``.
    """

    def __in_process__(self) -> "InProcessEngine":
        """The interface for the SDK."""
        ...


class EventRelay(Protocol):
    """Sends the events of an outbox in a thread of its own; see ``durably.outbox.Relay``."""

    def start(self, may_send: Callable[[], bool]) -> None:
        """Start, unless it has started. It works as long as ``may_send``."""
        ...

    def stop(self) -> None:
        """Stop, and wait for that at most 3 s."""
        ...

    def forget(self) -> None:
        """Leave the thread to the parent, in a forked child."""
        ...


class InProcessEngine(Protocol):
    """An engine, as the client, ``CommHandler`` and the adapters use it.

    Awaitables may be awaited on any event loop, or given to ``IO.resolve``. They raise ``durably.errors.Error``: the
    engine's errors, ``TransportError`` if no engine could be reached, ``EngineNotStartedError`` in a test run. In a
    test run the hooks of servers start no engine.
    """

    def send_events(
        self, body: bytes, seed: str, timeout: float, sender: str | None, traceparent: str | None
    ) -> Awaitable[EventReceipt]:
        """Store events, a JSON list, and return after the commit.

        - ``seed``: Makes a repeated send idempotent, as ``x-inngest-event-id-seed`` does.
        - ``timeout``: Seconds.
        - ``sender``: The id of the run that sends them, if any.
        - ``traceparent``: The trace context of the sender (see ``durably.protocol.headers``).
        """
        ...

    @property
    def keeps_logs(self) -> bool:
        """Whether the operation ``add_run_logs`` stores lines."""
        ...

    def execute(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Awaitable[Any]:
        """Execute an operation of ``Engine`` by its name. ``timeout`` is in seconds."""
        ...

    def wait_for_run(self, run_id: str, timeout: float | None) -> Awaitable[Any]:
        """The ``Run``, when it has ended with any status. It survives a change of the engine's process.

        ``timeout``: seconds, ``None`` for no limit. Raises ``TimeoutError``, ``RunNotFoundError``.
        """
        ...

    @property
    def shared_secrets(self) -> Sequence[bytes]:
        """Random secrets that the processes of this engine share, the preferred one first. May be empty."""
        ...

    def refuse_to_block(self) -> None:
        """Raises ``RuntimeError`` in a thread that the engine needs for its answer."""
        ...

    @property
    def runs_relays(self) -> bool:
        """Whether relays run while the engine does. False for a test engine."""
        ...

    def add_relay(self, relay: EventRelay) -> None:
        """Run the relay in the process that runs the engine, or, of an engine elsewhere, in each that serves."""
        ...

    # for CommHandler and the adapters

    def add_handler(self, handler: Any) -> None:
        """Register the functions of a ``CommHandler``.

        The engine calls them once it is started.
        """
        ...

    def running_with_server(self) -> AbstractAsyncContextManager[None]:
        """Start now, and stop at the end. Async functions run on the running event loop."""
        ...

    def expect_start(self) -> None:
        """Announce that the server is starting.

        The server enters ``running_with_server`` soon. Until then, sending an event does not start the engine.
        """
        ...

    def start_with_server(self) -> None:
        """Start in the background if this process is a web server.

        Called while the app is being loaded.
        """
        ...

    def start_with_request(self, loop: asyncio.AbstractEventLoop | None = None) -> bool:
        """Start soon, unless the engine has already started.

        Async functions run on ``loop``, or on a background loop. Returns whether the engine starts, or has started,
        without a call of its ``start``.
        """
        ...


@dataclass(frozen=True, slots=True)
class InngestCloud:
    """The engine that Inngest hosts: ``Client(engine=durably.InngestCloud())``.

    It needs the keys of an account there. It is used in production. In development mode the client still uses the
    development engine.
    """


Engine = EngineHandle | InngestCloud | str
"""The values of ``Client(engine=…)``: an ``Embedded(…)``, a ``TemporalEngine(…)``, ``InngestCloud()``, or a URL.

URLs are those of engines, and those of Temporal servers: ``temporal://localhost:7233``."""


@dataclass(frozen=True, slots=True)
class EngineOrigins:
    """Base URLs of an engine's API and of its event API; ``None`` if not configured."""

    api: str | None = None
    events: str | None = None


CLOUD_ORIGINS = EngineOrigins(_CLOUD_API, _CLOUD_EVENTS)


def choose_engine(
    engine: Engine | None,
    api_base_url: str | None,
    event_api_base_url: str | None,
    mode: ServerKind,
    environment: Environment,
) -> tuple[InProcessEngine | None, EngineOrigins]:
    """The engine in this process, or the URLs of the engine.

    Raises ``FunctionConfigInvalidError`` for an argument of a wrong type and for two that cannot be combined, and
    ``URLInvalidError``.
    """
    if engine is not None and (api_base_url or event_api_base_url):
        raise FunctionConfigInvalidError("Client has engine and api_base_url or event_api_base_url: give one of them")
    match engine:
        case None:
            given = EngineOrigins(
                api_base_url and parse_origin(api_base_url, "api_base_url"),
                event_api_base_url and parse_origin(event_api_base_url, "event_api_base_url"),
            )
            return None, _fill(given, mode, environment)
        case InngestCloud():
            return None, CLOUD_ORIGINS if mode is ServerKind.CLOUD else _fill(EngineOrigins(), mode, environment)
        case str() if "://" not in engine and (engine == ":memory:" or engine.endswith(_DATABASES)):
            raise URLInvalidError(
                f"Client.engine is {engine!r}, which is not a URL: write Embedded({engine!r}) for an engine on that "
                "database in the app's own processes"
            )
        case str():
            # The code names the production engine; `durably dev` names its own.
            origins = _origins_at(parse_origin(engine, "engine"))
            return None, _dev_origins(environment) or origins if mode is ServerKind.DEV else origins
        case _ if hasattr(engine, "__in_process__") and not isinstance(engine, type):
            return engine.__in_process__(), EngineOrigins()
        case _:
            raise FunctionConfigInvalidError(
                "Client.engine must be an Embedded(…), a TemporalEngine(…), an InngestCloud() or the engine's URL, "
                f"not {engine!r}"
            )


_make_engine_on_temporal: Callable[[str, str], EngineHandle] | None = None


def register_temporal(make: Callable[[str, str], EngineHandle]) -> None:
    """Set the factory of engines for URLs like ``temporal://localhost:7233``.

    This module imports none. The factory's arguments are the URL, and the setting that gave it.
    """
    global _make_engine_on_temporal
    _make_engine_on_temporal = make


def open_temporal_url(
    engine: Engine | None, mode: ServerKind, environment: Environment, *, has_origins: bool
) -> Engine | None:
    """The handle of an engine on Temporal, if its URL is given; otherwise ``engine``.

    The URL is ``engine`` or in the environment. ``has_origins``: the client has URLs of its own. Raises
    ``URLInvalidError``.
    """
    url, setting = engine, "Client.engine"
    if engine is None and not has_origins:
        url, setting = environment.read(ENGINE_URL), environment.name_of(ENGINE_URL)
    if not isinstance(url, str) or not url.startswith(TEMPORAL_SCHEME):
        return engine
    if engine is not None and mode is ServerKind.DEV and _dev_origins(environment) is not None:
        return environment.dev_url  # The code names the production engine; `durably dev` names its own.
    assert _make_engine_on_temporal is not None, "durably/__init__.py registers it"
    return _make_engine_on_temporal(url, setting)


def _fill(given: EngineOrigins, mode: ServerKind, environment: Environment) -> EngineOrigins:
    """Fill missing arguments from the environment. Development mode has a default."""
    if origin := _read(ENGINE_URL, environment):
        common = _origins_at(origin)
    else:
        default = _origins_at(DEV_ORIGIN) if mode is ServerKind.DEV else EngineOrigins()
        common = _dev_origins(environment) or default
    return EngineOrigins(
        given.api or _read(API_BASE_URL, environment) or common.api,
        given.events or _read(EVENT_API_BASE_URL, environment) or common.events,
    )


def _dev_origins(environment: Environment) -> EngineOrigins | None:
    """The engine that ``DURABLY_DEV`` names, if it names one."""
    url = environment.dev_url
    return None if url is None else _origins_at(parse_origin(url, environment.name_of(DEV)))


def _read(setting: Setting[str], environment: Environment) -> str | None:
    value = environment.read(setting)
    return None if value is None else parse_origin(value, environment.name_of(setting))


def _origins_at(origin: str) -> EngineOrigins:
    """The origins of an engine at a URL. Only Inngest's own engine has two."""
    return CLOUD_ORIGINS if urlsplit(origin).hostname in _CLOUD_HOSTS else EngineOrigins(origin, origin)


def explain_no_engine(app_id: str, *, in_tests: bool) -> str:
    """The message for an app without an engine. ``in_tests``: this process runs tests."""
    if in_tests:
        return (
            f"app {app_id!r} has no engine in this test run: open a durably.testing.TestEngine(client, functions) "
            "around the code that sends events"
        )
    return (
        f"app {app_id!r} is in production mode and has no engine. Set {ENGINE_URL.name} to the engine's URL, or "
        f"{DEV.name}=1 for development. Or choose the engine in code: Client(engine=…) takes a URL, "
        "durably.Embedded(path) for an engine in the app's own processes, or durably.InngestCloud(), on which an app "
        "with INNGEST_ keys ran before"
    )
