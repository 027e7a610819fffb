"""The client: an app's identity and settings.

A client creates functions and sends events.
"""

from collections.abc import Callable, Sequence
from typing import Any

from durably.functions.config import FunctionOpts
from durably.functions.diagnostics import check_send, note_made
from durably.functions.function import Function, Handler, T
from durably.functions.middleware import MiddlewareFactory, MiddlewareStack, check_middleware, list_middleware
from durably.io.http_client import IO, AsyncIO, BlockingIO
from durably.protocol.events import Event
from durably.protocol.options import (
    Batch,
    Cancel,
    Checkpointing,
    Concurrency,
    Debounce,
    FunctionOptions,
    Priority,
    RateLimit,
    Singleton,
    Throttle,
    Timeouts,
    Trigger,
)
from durably.values.outputs import check_output_type

from .app import App
from .events import send_events
from .execution import drive
from .run_logger import as_logger
from .values.codecs import Unset

_ASYNC_IO = AsyncIO()


class Client(App):
    """An app, which creates functions and sends events.

    Constructor arguments override the environment (see ``durably.settings``).

    - ``app_id``: Names the app to the engine. Changing it creates another app.
    - ``is_production``: Chooses the mode. In production every call must be signed.
    - ``engine``: The URL of an engine, an ``Embedded(…)`` or ``InngestCloud()``. Production has no default.
    - ``request_timeout``: Limits each request to the engine (ms or ``timedelta``, default 30 s).
    - ``checkpointing``: Lets a call execute several steps (see ``Checkpointing``). It is the default with an engine in
      this process, and an option over HTTP.
    - ``send_step_input``: ``False`` keeps the arguments of steps from the engine. Otherwise the engine shows them, and
      lets users repeat a step with other arguments.
    - ``strict_replay``: Fails a run if its function no longer reaches a step that the run has finished. By default this
      is a warning.

    Raises ``FunctionConfigInvalidError`` and ``URLInvalidError``, naming the argument or variable.
    """

    def add_middleware(self, middleware: MiddlewareFactory) -> None:
        """Add middleware to later calls and sends."""
        check_middleware([*self.middleware, middleware], "Client.add_middleware")
        self.middleware.append(middleware)

    def set_logger(self, logger: Any) -> None:
        self.logger = as_logger(logger)

    def create_function(
        self,
        *,
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
        """Create a durable function from an async or a sync function.

        The handler is called with a ``Context`` alone.

        - ``trigger``: With an empty list, the function runs only if other functions invoke it.
        - ``retries``: The number of attempts after the first (default 4, at most 20), counted separately for each step.
        - ``on_failure``: Called when a run has finally failed, as a separate function.
        - ``output_type``: The type of the output, instead of the handler's return annotation.
        - ``checkpointing``, ``strict_replay``: Override the client's.

        Raises ``FunctionConfigInvalidError``, naming the function and the option.
        """
        opts = FunctionOpts(
            app_id=self.app_id,
            local_id=fn_id,
            name=fn_id if name is None or name == "" else name,
            triggers=tuple(trigger) if isinstance(trigger, list) else (trigger,),
            retries=retries,
            output_type=output_type,
            options=FunctionOptions(
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
            ),
            checkpointing=self.checkpointing if checkpointing is None else checkpointing,
            strict_replay=strict_replay,
        )

        check_output_type(f'function "{fn_id}"', output_type, self.serializer)
        own_middleware = list_middleware(middleware, f'function "{fn_id}": middleware')
        if own_middleware:
            check_middleware([*self.middleware, *own_middleware], f'function "{fn_id}": middleware')

        def decorate(handler: Handler[T]) -> Function[T]:
            function = Function(opts, handler, on_failure=on_failure, middleware=own_middleware)
            note_made(function, self.in_process)
            return function

        return decorate

    async def send(self, events: Event | Sequence[Event], *, skip_middleware: bool = False) -> list[str]:
        """Send one event or several. Returns their ids when the engine has stored them.

        Retries with backoff on network errors and 5xx. Raises ``SendEventsError`` with the ids that were accepted
        before the error, ``EngineNotConfiguredError`` or ``EventKeyUnspecifiedError``.
        """
        return await self._send(events, _ASYNC_IO, skip_middleware)

    def send_sync(self, events: Event | Sequence[Event], *, skip_middleware: bool = False) -> list[str]:
        """``send`` for synchronous code."""
        if self.in_process is not None:
            self.in_process.refuse_to_block()
        return drive(self._send(events, BlockingIO(), skip_middleware))

    async def _send(self, events: Event | Sequence[Event], io: IO, skip_middleware: bool) -> list[str]:
        check_send()
        skip_middleware = skip_middleware or not self.middleware
        middleware = None if skip_middleware else MiddlewareStack(self.middleware, self, None, io)
        return await send_events(self, events, io, middleware)
