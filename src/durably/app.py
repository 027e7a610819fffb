"""An app: its identity, engine, keys and settings, from arguments and the environment.

Also ``AppTracing``, through which the SDK reports sends, calls and steps as spans. ``durably.otel`` implements it. A
client without it reports nothing.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from secrets import token_bytes as random_bytes
from types import NoneType
from typing import Any, Protocol

import msgspec

from durably.engines import Engine, EventRelay, choose_engine, explain_no_engine, open_temporal_url
from durably.errors import EngineNotConfiguredError, FunctionConfigInvalidError
from durably.execution import Outcome, StepTracer
from durably.functions.middleware import MiddlewareFactory, check_middleware, list_middleware
from durably.protocol.durations import Duration, to_timedelta
from durably.protocol.events import Event
from durably.protocol.headers import REQUEST_VERSION, VERSION, Header, ServerKind
from durably.protocol.options import Checkpointing, check_checkpointing, check_switch, check_text, check_type
from durably.protocol.signatures import check_signing_key
from durably.protocol.stream_tokens import derive_key
from durably.protocol.text import is_name
from durably.run_logger import Logger, as_logger
from durably.settings import (
    EVENT_KEY,
    LOG_LEVEL,
    SEND_STEP_INPUT,
    SIGNING_KEY,
    SIGNING_KEY_FALLBACK,
    STRICT_REPLAY,
    Environment,
    is_test_run,
    warn_of_short_signing_keys,
    warn_of_unused_signing_key,
)
from durably.values.codecs import Serializer

SDK_NAME = "durably"
SDK = f"{SDK_NAME}:v{VERSION}"


class App:
    """Base of ``Client``: the part that calls, steps, middleware and requests need."""

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
        send_step_input: bool | None = None,
        serializer: Serializer | None = None,
        signing_key: str | None = None,
        strict_replay: bool | None = None,
    ) -> None:
        if not is_name(app_id):
            raise FunctionConfigInvalidError(
                f"Client.app_id must be a string that names the app, without control characters, not {app_id!r}"
            )
        for name, text in {
            "api_base_url": api_base_url,
            "app_version": app_version,
            "env": env,
            "event_api_base_url": event_api_base_url,
            "event_key": event_key,
        }.items():
            check_text(text, f"Client.{name}", FunctionConfigInvalidError)
            if isinstance(text, str) and text.isspace():
                raise FunctionConfigInvalidError(f"Client.{name} is blank: give a text, or leave it out")
        check_type(signing_key, "Client.signing_key", (str, NoneType), "a string", FunctionConfigInvalidError)
        switches = {"is_production": is_production, "send_step_input": send_step_input, "strict_replay": strict_replay}
        for name, switch in switches.items():
            check_switch(switch, f"Client.{name}", FunctionConfigInvalidError)
        if serializer is not None:
            expected = "an object with serialize and deserialize, such as PydanticSerializer()"
            check_type(serializer, "Client.serializer", Serializer, expected, FunctionConfigInvalidError)
        check_signing_key(signing_key, "Client(signing_key=…)")
        environment = Environment()
        self.app_id = app_id
        self.app_version = app_version
        check_checkpointing(checkpointing, "Client")
        self.checkpointing = checkpointing
        self.warned_events: set[str] = set()
        self.is_served = False
        """Whether a handler of this process has functions of the app."""
        self.logger: Logger = logging.getLogger("durably") if logger is None else as_logger(logger)
        if logger is None and (level := environment.read(LOG_LEVEL)) is not None:
            self.logger.setLevel(level)
        mode = environment.mode  # An invalid value is an error, although is_production overrides it.
        if is_production is not None:
            mode = ServerKind.CLOUD if is_production else ServerKind.DEV
        self.mode = mode
        self.env = env or environment.name
        self.event_key = event_key or environment.read(EVENT_KEY)
        self.signing_key = signing_key or environment.read(SIGNING_KEY)
        self.signing_key_fallback = environment.read(SIGNING_KEY_FALLBACK)
        self._random_secret = b""
        self.middleware = list_middleware(middleware, "Client.middleware")
        check_middleware(self.middleware, "Client.middleware")
        self.serializer = serializer
        self.tracing: AppTracing | None = None
        self.relays: list[EventRelay] = []
        """Those that send the app's events from databases."""
        if send_step_input is None:
            send_step_input = environment.read(SEND_STEP_INPUT) is not False
        self.send_step_input = send_step_input
        if strict_replay is None:
            strict_replay = environment.read(STRICT_REPLAY)
        self.strict_replay = strict_replay is True
        self.request_timeout = 30.0
        if request_timeout is not None:
            self.request_timeout = to_timedelta(request_timeout, "Client.request_timeout").total_seconds()
        if not self.request_timeout:
            raise FunctionConfigInvalidError("Client.request_timeout must be more than 0")
        has_origins = bool(api_base_url or event_api_base_url)
        self.engine = engine = open_temporal_url(engine, self.mode, environment, has_origins=has_origins)
        self.in_process, self.origins = choose_engine(engine, api_base_url, event_api_base_url, self.mode, environment)
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
        return self._require(self.origins.api)

    @property
    def event_api_origin(self) -> str:
        """Base URL that events are sent to. Raises ``EngineNotConfiguredError``."""
        return self._require(self.origins.events)

    def _require(self, origin: str | None) -> str:
        if origin is None:
            raise EngineNotConfiguredError(explain_no_engine(self.app_id, in_tests=is_test_run()))
        return origin

    @property
    def signing_keys(self) -> tuple[str | None, str | None]:
        """The key and its fallback, in the order in which they are tried."""
        return self.signing_key, self.signing_key_fallback

    def stream_keys(self) -> list[bytes]:
        """The keys of tokens for streams. The first one signs."""
        secrets: list[str | bytes] = [key for key in self.signing_keys if key]
        if not secrets and self.in_process is not None:
            secrets += self.in_process.shared_secrets
        if not secrets:
            if not self._random_secret:
                self._random_secret = random_bytes(32)
                self.logger.warning(
                    "the app %r has no signing key, so tokens of streams are valid only in the process that made "
                    "them: set %s to the same key in all processes (`durably keys` makes one)",
                    *(self.app_id, SIGNING_KEY.name),
                )
            secrets.append(self._random_secret)
        return [derive_key(secret) for secret in secrets]

    def headers(self, framework: str | None = None) -> dict[str, str]:
        """The headers of every request and answer (spec §4.1)."""
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


App.__init__.__qualname__ = "Client.__init__"  # Python's errors about arguments have it, and users know only Client.


class CallInfo(msgspec.Struct, frozen=True, gc=False):
    """A call, as its span shows it.

    - ``event_ids``: Several for a batch.
    - ``attempt``: Counts from 0.
    - ``traceparent``: The trace context that the engine sent.
    - ``is_engines_trace``: It belongs to the engine's own trace, which no other service shares.
    - ``has_request``: The call is a request over HTTP, for which the framework may have a span.
    """

    app_id: str
    function_id: str
    run_id: str
    attempt: int
    event_name: str
    event_ids: Sequence[str]
    traceparent: str | None = None
    is_engines_trace: bool = False
    has_request: bool = False


class CallSpan(StepTracer, Protocol):
    """The span of a call, which is current while its function runs."""

    def ended(self, outcome: Outcome) -> None:
        """Record the outcome of the call."""
        ...


class SendSpan(Protocol):
    """The span of a send. ``traceparent`` is its context, for the engine."""

    traceparent: str | None

    def sent(self, ids: Sequence[str]) -> None:
        """Record the ids of the events that the engine has stored."""
        ...


class AppTracing(Protocol):
    """Reports spans of an app. The methods are quick, and raise no errors."""

    def calling(self, call: CallInfo) -> AbstractContextManager[CallSpan]:
        """The span of a call."""
        ...

    def sending(self, events: Sequence[Event]) -> AbstractContextManager[SendSpan]:
        """The span of a send. An exception that leaves the context is recorded."""
        ...

    def current_trace(self) -> str | None:
        """The current trace context in its stored form (see ``durably.protocol.headers``), if there is one."""
        ...

    def continuing(self, trace: str) -> AbstractContextManager[None]:
        """Make a stored trace context the current one."""
        ...

    def for_engine(self) -> object:
        """The ``durably.engine.model.settings.EngineTracing`` of an engine in the same process."""
        ...
