"""The client: an app's identity and settings, from which functions are made and events are sent."""

import datetime as dt
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from typing import Any, Never

from durably.functions.config import FunctionOpts
from durably.functions.function import Function, Handler, T
from durably.io.http_client import IO, AsyncIO, BlockingIO
from durably.protocol.durations import Duration, to_timedelta
from durably.protocol.events import Event
from durably.protocol.headers import REQUEST_VERSION, Header, ServerKind
from durably.protocol.signatures import check_signing_key

from . import sending
from .engines import Engine, choose_engine, explain_half_an_engine, explain_no_engine
from .errors import EngineNotConfiguredError, FunctionConfigInvalidError
from .execution import drive
from .middleware import MiddlewareFactory, MiddlewareStack, check_middleware
from .options import (
    Batch,
    Cancel,
    Checkpointing,
    Concurrency,
    Debounce,
    Priority,
    RateLimit,
    Singleton,
    Throttle,
    Timeouts,
    Trigger,
    check_checkpointing,
)
from .run_logger import as_logger
from .serializers import Serializer, Unset
from .settings import (
    API_BASE_URL,
    EVENT_API_BASE_URL,
    Environment,
    Setting,
    is_test_run,
    warn_of_short_signing_keys,
    warn_of_unknown_names,
    warn_of_unused_signing_key,
)

VERSION = importlib.metadata.version("durably")
SDK_NAME = "durably"
_ASYNC_IO = AsyncIO()
SDK = f"{SDK_NAME}:v{VERSION}"

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Client:
    """An app. Constructor arguments override the environment (see ``durably.settings``).

    ``app_id`` names the app to the engine; changing it makes another app. ``is_production`` chooses the
    mode: in production every call must be signed. ``engine`` is the URL of an engine, an ``Embedded(…)`` or
    ``InngestCloud()``; production has no default. ``request_timeout`` (ms or ``timedelta``, default 30 s)
    bounds each request to the engine. ``checkpointing`` lets a call execute several steps (see
    ``Checkpointing``). It is the default with an engine in this process, and an option over HTTP.

    ``strict_replay`` fails a run if its function no longer reaches a step that the run has finished. By default this
    is a warning.

    Raises ``FunctionConfigInvalidError`` and ``URLInvalidError``, naming the argument or variable.
    """

    def __init__(
        self,
        *,
        app_id: str,
        api_base_url: str | None = None,
        app_version: str | None = None,
        checkpointing: bool | Checkpointing | None = None,
        engine: Engine | None = None,
        env: str | None = None,
        event_api_base_url: str | None = None,
        event_key: str | None = None,
        is_production: bool | None = None,
        logger: Any = None,
        middleware: Sequence[MiddlewareFactory] | None = None,
        request_timeout: Duration | None = None,
        serializer: Serializer | None = None,
        signing_key: str | None = None,
        strict_replay: bool | None = None,
    ) -> None:
        if not isinstance(app_id, str) or not app_id.strip():
            raise FunctionConfigInvalidError(f"Client.app_id must be text that names the app, not {app_id!r}")
        if isinstance(serializer, type):
            raise FunctionConfigInvalidError(
                f"Client.serializer takes an instance, {serializer.__name__}(), not the class"
            )
        check_signing_key(signing_key, "Client(signing_key=…)")
        environment = Environment()
        self.app_id = app_id
        self.app_version = app_version
        self.engine = engine
        check_checkpointing(checkpointing, "Client")
        self.checkpointing = checkpointing
        self.warned_events: set[str] = set()
        self.logger: Logger = _default_logger(environment) if logger is None else as_logger(logger)
        mode = environment.mode  # A value that is not allowed is an error, although is_production overrides it.
        if is_production is not None:
            mode = ServerKind.CLOUD if is_production else ServerKind.DEV
        self.mode = mode
        self.env = env or environment.name
        self.event_key = event_key or environment.event_key
        self.signing_key = signing_key or environment.signing_key
        self.signing_key_fallback = environment.signing_key_fallback
        self.middleware: list[MiddlewareFactory] = list(middleware or ())
        check_middleware(self.middleware, "Client.middleware")
        self.serializer = serializer
        self.strict_replay = environment.strict_replay if strict_replay is None else strict_replay
        self.request_timeout = _seconds(request_timeout)
        self.in_process, self.origins = choose_engine(engine, api_base_url, event_api_base_url, self.mode, environment)
        self._has_inngest_keys = environment.has_inngest_keys
        warn_of_unknown_names(self.logger)
        if self.is_production:
            warn_of_short_signing_keys(self.signing_keys, self.logger)
        elif self.signing_key and self.in_process is None:
            warn_of_unused_signing_key(app_id, self.logger)

    def __repr__(self) -> str:
        return f"Client(app_id={self.app_id!r}, mode={self.mode.value!r})"

    @property
    def is_production(self) -> bool:
        return self.mode is ServerKind.CLOUD

    @property
    def api_origin(self) -> str:
        """Base URL of the engine's API. Raises ``EngineNotConfiguredError``."""
        return self._require(self.origins.api, API_BASE_URL, self.origins.events, EVENT_API_BASE_URL)

    @property
    def event_api_origin(self) -> str:
        """Base URL that events are sent to. Raises ``EngineNotConfiguredError``."""
        return self._require(self.origins.events, EVENT_API_BASE_URL, self.origins.api, API_BASE_URL)

    def _require(self, origin: str | None, setting: Setting[str], other: str | None, others: Setting[str]) -> str:
        if origin is not None:
            return origin
        if other is not None:
            raise EngineNotConfiguredError(explain_half_an_engine(missing=setting, given=others))
        raise EngineNotConfiguredError(
            explain_no_engine(self.app_id, has_inngest_keys=self._has_inngest_keys, in_tests=is_test_run())
        )

    @property
    def signing_keys(self) -> tuple[str | None, str | None]:
        """The key and its fallback, in the order in which they are tried."""
        return self.signing_key, self.signing_key_fallback

    def add_middleware(self, middleware: MiddlewareFactory) -> None:
        """Add middleware for functions that are called, and events that are sent, from now on."""
        check_middleware([*self.middleware, middleware], "Client.add_middleware")
        self.middleware.append(middleware)

    def set_logger(self, logger: Any) -> None:
        self.logger = as_logger(logger)

    def create_function(
        self,
        *handler: Never,
        fn_id: str,
        trigger: Trigger | list[Trigger] | list[Any],
        name: str | None = None,
        retries: int | None = None,
        on_failure: Handler[Any] | None = None,
        middleware: Sequence[MiddlewareFactory] | None = None,
        output_type: Any = Unset,
        batch_events: Batch | None = None,
        cancel: list[Cancel] | None = None,
        concurrency: list[Concurrency] | None = None,
        debounce: Debounce | None = None,
        idempotency: str | None = None,
        priority: Priority | None = None,
        rate_limit: RateLimit | None = None,
        singleton: Singleton | None = None,
        throttle: Throttle | None = None,
        timeouts: Timeouts | None = None,
        checkpointing: bool | Checkpointing | None = None,
        strict_replay: bool | None = None,
    ) -> Callable[[Handler[T]], Function[T]]:
        """Make a durable function of an async or a sync one, which is called with a ``Context`` alone.

        With an empty list as ``trigger`` it runs only if other functions invoke it.
        ``retries`` is the number of attempts after the first (default 4, at most 20), counted separately for
        each step. ``on_failure`` is called when a run has finally failed, as a separate function.
        ``output_type`` is the type of the output, instead of the handler's return annotation.
        ``checkpointing`` and ``strict_replay`` override the client's.

        Raises ``FunctionConfigInvalidError``, naming the function and the option.
        """
        if handler:
            raise FunctionConfigInvalidError(
                f'function "{fn_id}": create_function takes options by name and returns a decorator: '
                "@client.create_function(fn_id=…, trigger=…)"
            )
        opts = FunctionOpts(
            app_id=self.app_id,
            local_id=fn_id,
            name=name or fn_id,
            triggers=tuple(trigger) if isinstance(trigger, list) else (trigger,),
            retries=retries,
            output_type=output_type,
            batch_events=batch_events,
            cancel=cancel,
            concurrency=concurrency,
            debounce=debounce,
            idempotency=idempotency,
            priority=priority,
            rate_limit=rate_limit,
            singleton=singleton,
            throttle=throttle,
            timeouts=timeouts,
            checkpointing=self.checkpointing if checkpointing is None else checkpointing,
            strict_replay=strict_replay,
        )

        if middleware:
            check_middleware([*self.middleware, *middleware], f'function "{fn_id}": middleware')

        def decorate(handler: Handler[T]) -> Function[T]:
            return Function(opts, handler, on_failure=on_failure, middleware=middleware or ())

        return decorate

    async def send(self, events: Event | Sequence[Event], *, skip_middleware: bool = False) -> list[str]:
        """Send one event or several. Returns their ids when the engine has stored them.

        Retries with backoff on network errors and 5xx. Raises ``SendEventsError`` with the ids that were
        accepted nevertheless, ``EngineNotConfiguredError`` or ``EventKeyUnspecifiedError``.
        """
        return await self._send(events, _ASYNC_IO, skip_middleware)

    def send_sync(self, events: Event | Sequence[Event], *, skip_middleware: bool = False) -> list[str]:
        """``send`` for synchronous code."""
        if self.in_process is not None:
            self.in_process.refuse_to_block()
        return drive(self._send(events, BlockingIO(), skip_middleware))

    async def _send(self, events: Event | Sequence[Event], io: IO, skip_middleware: bool) -> list[str]:
        middleware = None if skip_middleware else MiddlewareStack(self.middleware, self, None, io)
        return await sending.send_events(self, events, io, middleware)

    def headers(self, framework: str | None = None) -> dict[str, str]:
        """What every request and answer carries (spec §4.1)."""
        headers = {
            Header.CONTENT_TYPE.value: "application/json",
            Header.REQUEST_VERSION.value: REQUEST_VERSION,
            Header.SDK.value: SDK,
            Header.USER_AGENT.value: SDK,
        }
        if self.env:
            headers[Header.ENV.value] = self.env
        if framework:
            headers[Header.FRAMEWORK.value] = framework
        return headers


def _default_logger(environment: Environment) -> logging.Logger:
    logger = logging.getLogger("durably")
    if (level := environment.log_level) is not None:
        logger.setLevel(level)
    return logger


def _seconds(timeout: Duration | None) -> float:
    if timeout is None:
        return 30.0
    return dt.timedelta.total_seconds(to_timedelta(timeout))
