"""The client: an app's identity and settings.

A client creates functions and sends events.
"""

import datetime as dt
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from durably.functions.config import FunctionOpts
from durably.functions.diagnostics import check_send, note_made
from durably.functions.function import Function, Handler, T
from durably.functions.middleware import MiddlewareFactory, MiddlewareStack, check_middleware, list_middleware
from durably.io.http_client import IO, AsyncIO, BlockingIO
from durably.protocol.durations import DurationWithUnit, to_seconds
from durably.protocol.events import Event, RunStatus
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
    check_texts,
)
from durably.protocol.stream_tokens import StreamGrant, sign_grant
from durably.values.outputs import check_output_type

from .app import App
from .asks import answer_by_token, find_question, make_answer_token
from .engine_client import block, execute
from .events import send_events
from .execution import drive
from .run_logger import as_logger
from .runs import RunHandle, list_runs
from .values.codecs import Unset

if TYPE_CHECKING:
    from durably.engine.model.questions import OpenQuestion
    from durably.engine.model.runs import Run

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
            function = Function(opts, handler, on_failure=on_failure, middleware=own_middleware, client=self)
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

    def stream_token(
        self,
        channels: str | Sequence[str],
        topics: Sequence[str] | None = None,
        *,
        expires: DurationWithUnit = dt.timedelta(hours=1),
    ) -> str:
        """A token with which a browser reads the messages of a run, or of other channels, at ``/streams?token=…``.

        Hand it out in a view that has checked what its visitor may see. It is valid for everybody until it expires.

        - ``channels``: The ids of runs, or other channels.
        - ``topics``: Those that may be read, all by default. ``$run``, ``$step`` and ``$progress`` are the engine's.
        - ``expires``: The life of the token (``"10m"`` or a ``timedelta``, 1 h by default).

        It is signed with the client's signing key; without one, with a secret that the processes of an ``Embedded``
        share; otherwise with a secret of this process alone, of which the log warns. Raises ``ValueError`` if there are
        too many channels for a URL.
        """
        names = [channels] if isinstance(channels, str) else channels
        check_texts(names, "stream_token(channels)", "a run's id")
        if topics is not None:
            check_texts(topics, "stream_token(topics=…)", '["$progress"]')
        ends = time.time() + to_seconds(expires, "stream_token(expires=…)")
        grant = StreamGrant(list(names), None if topics is None else list(topics), int(ends))
        return sign_grant(grant, self.stream_keys()[0])

    @overload
    def run(self, run_id: str) -> RunHandle[Any]: ...
    @overload
    def run(self, run_id: str, function: Function[T]) -> RunHandle[T]: ...
    def run(self, run_id: str, function: Function[Any] | None = None) -> RunHandle[Any]:
        """The handle of a run whose id was kept. ``function`` gives the type of its result."""
        return RunHandle(self, run_id, function)

    async def runs(
        self,
        function: Function[Any] | None = None,
        *,
        status: RunStatus | str | None = None,
        started_after: dt.datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[Run]":
        """Runs of the engine as they are now, newest first; by default those of all functions.

        - ``status``: Such as ``"Failed"``.
        - ``started_after``: A time with a time zone.
        - ``limit``: At most 500. ``cursor`` is the id of the last run of the previous page.

        Outputs of more than 16 KiB are omitted; a handle's ``status()`` has them.
        """
        return await list_runs(self, function, status, started_after, limit, cursor, _ASYNC_IO)

    def runs_sync(
        self,
        function: Function[Any] | None = None,
        *,
        status: RunStatus | str | None = None,
        started_after: dt.datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[Run]":
        """``runs`` for synchronous code."""
        return block(self, lambda io: list_runs(self, function, status, started_after, limit, cursor, io))

    # questions of runs

    async def questions(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[OpenQuestion]":
        """Open questions of runs (``ctx.step.receive``), those of the newest runs first.

        - ``function_id``: The full id, which begins with the app's (``Function.id``).
        - ``cursor``: ``f"{last.run_id}.{last.step_id}"`` of the last one of the previous page.

        ``client.run(question.run_id).answer(question.name, …, step_id=question.step_id)`` answers one. On Temporal it
        needs ``run_id``.
        """
        arguments = {"run_id": run_id, "function_id": function_id, "limit": limit, "cursor": cursor}
        return await execute(self, "list_questions", arguments, _ASYNC_IO)  # type: ignore[no-any-return]

    def questions_sync(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[OpenQuestion]":
        """See ``questions``."""
        arguments = {"run_id": run_id, "function_id": function_id, "limit": limit, "cursor": cursor}
        return block(self, lambda io: execute(self, "list_questions", arguments, io))

    def answer_token(self, run_id: str, name: str, *, expires: DurationWithUnit = dt.timedelta(days=7)) -> str:
        """A token with which whoever has it answers a question of a run once, for a link in an e-mail.

        The run accepts one answer of that name by tokens: give each question of a loop a name of its own. The token is
        signed with the client's signing key, so it outlives processes. Make it in a step. Raises
        ``SigningKeyMissingError``.
        """
        return make_answer_token(self, run_id, name, expires)

    async def question(self, token: str) -> "OpenQuestion | None":
        """The open question of a token; ``None`` if it is not open (yet, or any more).

        Raises ``AnswerTokenError`` if the token is not valid, or has expired.
        """
        return await find_question(self, token, _ASYNC_IO)

    def question_sync(self, token: str) -> "OpenQuestion | None":
        """See ``question``."""
        return block(self, lambda io: find_question(self, token, io))

    async def answer(
        self, token: str, data: Any = None, *, timeout: DurationWithUnit = dt.timedelta(seconds=10)
    ) -> None:
        """Answer the question of a token, and return when the run has received the answer.

        Do so for a POST only: programs that look for malware open links. Raises ``AnswerTokenError``,
        ``AnswerRefusedError`` if the answer does not fit, ``QuestionClosedError`` if the question has been answered or
        the run has ended, and ``AskTimeoutError``.
        """
        await answer_by_token(self, token, data, timeout, _ASYNC_IO)

    def answer_sync(
        self, token: str, data: Any = None, *, timeout: DurationWithUnit = dt.timedelta(seconds=10)
    ) -> None:
        """See ``answer``."""
        block(self, lambda io: answer_by_token(self, token, data, timeout, io))

    async def _send(self, events: Event | Sequence[Event], io: IO, skip_middleware: bool) -> list[str]:
        check_send()
        skip_middleware = skip_middleware or not self.middleware
        middleware = None if skip_middleware else MiddlewareStack(self.middleware, self, None, io)
        return await send_events(self, events, io, middleware)
