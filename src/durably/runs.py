"""Handles of runs: what a web app does with a run that it started, or whose id it kept."""

import datetime as dt
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from durably.events import Model, as_data, new_seed, sending_run
from durably.functions.config import FunctionDefinition
from durably.functions.diagnostics import check_send
from durably.functions.middleware import MiddlewareFactory, MiddlewareStack, TransformOutputResult, TransformStepInput
from durably.io.http_client import IO, AsyncIO
from durably.protocol.durations import DurationWithUnit, to_seconds
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent, RunStatus
from durably.protocol.headers import trace_headers
from durably.protocol.opcodes import Opcode
from durably.values.json_values import encode_checked
from durably.values.outputs import decode_as

from .app import App
from .asks import ask
from .engine_client import block, execute, find_run, start, wait_for_run
from .errors import EventUnserializableError, RunCancelledError, RunFailedError, RunNotFoundError, RunSkippedError
from .questions import decode_reply
from .streams import StreamMessage, follow, follow_sync

if TYPE_CHECKING:
    from durably.engine.model.runs import Run

T = TypeVar("T")
R = TypeVar("R")
_START_REMEDY = (
    "Write ctx.step.invoke(id, function=…, data=…), which starts it once, or call start with an id in the handler of a "
    "step"
)
_ASYNC_IO = AsyncIO()
_ASK_TIMEOUT = dt.timedelta(seconds=30)


class RunHandle(Generic[T]):
    """A run of a function, on any engine. ``T`` is the type of its result.

    ``Function.start`` and ``Client.run`` make handles. Each method has a form for synchronous code, whose name ends
    in ``_sync``. They raise the engine's errors of ``durably.errors``: ``RunNotFoundError`` if the engine does not have
    the run, or no longer, ``NotSupportedError`` for what the engine does not offer, and ``TransportError`` if it does
    not answer.
    """

    def __init__(
        self, app: App, run_id: str, function: FunctionDefinition[T] | None = None, *, is_started: bool = True
    ) -> None:
        self._app = app
        self._function = function
        self._is_started = is_started
        self.id = run_id
        """The id of the run. While flow control holds it back, the id of its event, which ``Client.run`` knows too."""

    def __repr__(self) -> str:
        return f"RunHandle({self.id!r})"

    async def status(self) -> "Run":
        """The run as it is now: ``status``, times, ``output`` and more."""
        return await self._read(_ASYNC_IO)

    def status_sync(self) -> "Run":
        """See ``status``."""
        return block(self._app, self._read)

    async def result(self, timeout: DurationWithUnit | None = None) -> T:
        """Wait for the end of the run, and return the result of its function.

        ``timeout``: text such as ``"10s"`` or a ``timedelta``; without one the wait has no limit, and it survives
        restarts of engine and app. Raises ``RunFailedError`` with the name and the message of the function's error,
        ``RunCancelledError``, ``RunSkippedError``, and ``TimeoutError``.
        """
        return await self._wait(timeout, _ASYNC_IO)

    def result_sync(self, timeout: DurationWithUnit | None = None) -> T:
        """See ``result``."""
        return block(self._app, lambda io: self._wait(timeout, io))

    async def cancel(self) -> bool:
        """Cancel the run. Returns ``False`` if it has already ended."""
        return await self._execute("cancel_run", _ASYNC_IO)  # type: ignore[no-any-return]

    def cancel_sync(self) -> bool:
        """See ``cancel``."""
        return block(self._app, lambda io: self._execute("cancel_run", io))  # type: ignore[no-any-return]

    async def signal(self, name: str, data: Any = None) -> bool:
        """Send a signal to the run. Returns whether it waited for it (``ctx.step.wait_for_signal``)."""
        return await self._signal(name, data, _ASYNC_IO)

    def signal_sync(self, name: str, data: Any = None) -> bool:
        """See ``signal``."""
        return block(self._app, lambda io: self._signal(name, data, io))

    @overload
    async def ask(
        self,
        name: str,
        data: Any = None,
        *,
        reply_type: type[R],
        timeout: DurationWithUnit = ...,
        id: str | None = None,
    ) -> R: ...
    @overload
    async def ask(
        self, name: str, data: Any = None, *, timeout: DurationWithUnit = ..., id: str | None = None
    ) -> Any: ...
    async def ask(
        self,
        name: str,
        data: Any = None,
        *,
        reply_type: Any = Any,
        timeout: DurationWithUnit = _ASK_TIMEOUT,
        id: str | None = None,
    ) -> Any:
        """Send a message to the run, which receives it with ``ctx.step.receive(name)``, and return its reply.

        The run gets the message once, even if connections break or processes are killed. If the function does not
        receive it yet, this waits until it does: nothing is stored before.

        - ``reply_type``: The type of the reply, JSON values by default.
        - ``timeout``: The time for both (``"10s"`` or a ``timedelta``, 30 s by default).
        - ``id``: Identifies the message. Asked again with the same id, the run is not asked twice, and the reply is
          the same.

        Raises ``AskTimeoutError``, ``AnswerRefusedError`` if the message does not fit the type that the function
        receives, and ``QuestionClosedError`` if the run has ended, or ends before it replies.
        """
        return await self._ask(name, data, reply_type, timeout, id, _ASYNC_IO)

    @overload
    def ask_sync(
        self,
        name: str,
        data: Any = None,
        *,
        reply_type: type[R],
        timeout: DurationWithUnit = ...,
        id: str | None = None,
    ) -> R: ...
    @overload
    def ask_sync(
        self, name: str, data: Any = None, *, timeout: DurationWithUnit = ..., id: str | None = None
    ) -> Any: ...
    def ask_sync(
        self,
        name: str,
        data: Any = None,
        *,
        reply_type: Any = Any,
        timeout: DurationWithUnit = _ASK_TIMEOUT,
        id: str | None = None,
    ) -> Any:
        """See ``ask``."""
        return block(self._app, lambda io: self._ask(name, data, reply_type, timeout, id, io))

    async def answer(
        self,
        name: str,
        data: Any = None,
        *,
        step_id: str | None = None,
        timeout: DurationWithUnit = _ASK_TIMEOUT,
        id: str | None = None,
    ) -> None:
        """Send a message to the run as ``ask`` does, and return when it is delivered, without waiting for a reply.

        ``step_id`` is that of the ``OpenQuestion`` that a person has seen: the answer is for no other question.
        """
        await self._answer(name, data, step_id, timeout, id, _ASYNC_IO)

    def answer_sync(
        self,
        name: str,
        data: Any = None,
        *,
        step_id: str | None = None,
        timeout: DurationWithUnit = _ASK_TIMEOUT,
        id: str | None = None,
    ) -> None:
        """See ``answer``."""
        block(self._app, lambda io: self._answer(name, data, step_id, timeout, id, io))

    async def rerun(self) -> "RunHandle[T]":
        """Run the same function again with the same event. Returns the handle of the new run."""
        return await self._rerun(_ASYNC_IO)

    def rerun_sync(self) -> "RunHandle[T]":
        """See ``rerun``."""
        return block(self._app, self._rerun)

    def stream(
        self, topics: Iterable[str] | None = None, *, last_event_id: str | None = None
    ) -> AsyncGenerator[StreamMessage]:
        """The run as it goes on: ``async for message in handle.stream():``, until the run has ended.

        Begins with the state of the run (``$run``, ``$progress``, ``$step``), and the messages that the engine still
        keeps of it. See ``durably.streams.follow``.
        """
        return follow(self._app, self.id, topics=topics, last_event_id=last_event_id, run_id=self.id)

    def stream_sync(
        self, topics: Iterable[str] | None = None, *, last_event_id: str | None = None
    ) -> Generator[StreamMessage]:
        """``stream`` for synchronous code: ``for message in handle.stream_sync():``."""
        return follow_sync(self._app, self.id, topics=topics, last_event_id=last_event_id, run_id=self.id)

    # -- once for both

    async def _execute(self, operation: str, io: IO) -> Any:
        return await self._on_run(lambda: execute(self._app, operation, {"run_id": self.id}, io), io)

    async def _on_run(self, operate: Callable[[], Awaitable[R]], io: IO) -> R:
        """The result of an operation on the run, which is looked up if the handle may have the id of its event."""
        if self._is_started:
            with suppress(RunNotFoundError):
                return await operate()
            self._is_started = False
        await self._require_run(io)
        return await operate()

    async def _require_run(self, io: IO) -> None:
        """Raises ``RunNotFoundError`` if flow control holds the run back, ``RunSkippedError`` if it has skipped it."""
        if self._is_started:
            return
        run = await self._read(io)
        if run.status is RunStatus.SKIPPED:
            raise _error_of(run)
        if not self._is_started:
            raise RunNotFoundError(f"flow control of the function {run.function_id!r} holds the run back")

    async def _read(self, io: IO) -> "Run":
        return self._noted(await find_run(self._app, self.id, io))

    def _noted(self, run: "Run") -> "Run":
        self._is_started = self._is_started or run.id != self.id
        self.id = run.id
        return run

    async def _wait(self, timeout: DurationWithUnit | None, io: IO) -> T:
        value = await wait_for_output(self, None if timeout is None else to_seconds(timeout, "timeout"), io)
        function = self._function
        codec = None if function is None else function.output_codec(self._app.serializer)
        return value if codec is None else decode_as(codec, f"run {self.id} of {function!r}", value)  # type: ignore[no-any-return]

    @property
    def _middleware(self) -> list[MiddlewareFactory]:
        return [*self._app.middleware, *(() if self._function is None else self._function.middleware)]

    async def _signal(self, name: str, data: Any, io: IO) -> bool:
        async def send() -> bool:
            arguments = {"name": name, "data": data, "run_id": self.id}
            return await execute(self._app, "signal", arguments, io) == self.id  # type: ignore[no-any-return]

        return await self._on_run(send, io)

    async def _ask(
        self, name: str, data: Any, reply_type: Any, timeout: DurationWithUnit, ask_id: str | None, io: IO
    ) -> Any:
        options: dict[str, Any] = {"timeout": timeout, "ask_id": ask_id, "middleware": self._middleware}
        reply = await self._on_run(lambda: ask(self._app, self.id, name, data, io, **options), io)
        value = await restore(self._app, None if reply is None else msgspec.json.decode(reply), io, self._middleware)
        return decode_reply(name, value, reply_type, self._app)

    async def _answer(
        self, name: str, data: Any, step_id: str | None, timeout: DurationWithUnit, ask_id: str | None, io: IO
    ) -> None:
        options: dict[str, Any] = {"timeout": timeout, "ask_id": ask_id, "middleware": self._middleware}
        options |= {"needs_reply": False} | ({} if step_id is None else {"step_id": step_id})
        await self._on_run(lambda: ask(self._app, self.id, name, data, io, **options), io)

    async def _rerun(self, io: IO) -> "RunHandle[T]":
        return RunHandle(self._app, await self._execute("rerun", io), self._function)


async def wait_for_output(
    handle: RunHandle[Any], seconds: float | None, io: IO, *, function_id: str | None = None
) -> Any:
    """The result of a run, of the function if given, as JSON values. See ``RunHandle.result``."""
    run = handle._noted(await wait_for_run(handle._app, handle.id, seconds, io))
    if function_id is not None and run.function_id != function_id:
        raise RunNotFoundError(f"the run {run.id} is one of {run.function_id!r}")
    if run.status is not RunStatus.COMPLETED:
        raise _error_of(run)
    return await restore(handle._app, run.decode_output(), io, handle._middleware)


async def restore(app: App, value: Any, io: IO, middleware: Sequence[MiddlewareFactory]) -> Any:
    """A result of a run, or a reply, as the function returned it before middleware transformed it."""
    if not middleware:
        return value
    result = TransformOutputResult(None, value, None)
    await MiddlewareStack(middleware, app, None, io).call("transform_result", result)
    return result.output


async def start_run(
    app: App,
    function: FunctionDefinition[T],
    data: Mapping[str, Any] | Model | None,
    id: str | None,
    io: IO,
    seed: str | None = None,
) -> RunHandle[T]:
    """Start a run of a function. See ``Function.start``. ``seed`` makes the engine's id of the event."""
    check_send("starts a run by Function.start", _START_REMEDY)
    if id is not None and not (isinstance(id, str) and id.strip()):
        raise ValueError(f'function "{function.id}": the id of a start must be a string that names the run, not {id!r}')
    payload: Mapping[str, Any] = {"data": as_data(data) or {}}
    factories = [*app.middleware, *function.middleware]
    if factories:
        step = TransformStepInput(
            id or function.local_id, Opcode.INVOKE_FUNCTION, {"function_id": function.id, "payload": payload}
        )
        await MiddlewareStack(factories, app, None, io).call("transform_step_input", step)
        payload = (step.opts or {}).get("payload") or {}
    try:
        encoded = encode_checked(payload.get("data") or {})[0]
    except ValueError as error:
        raise EventUnserializableError(
            f'function "{function.id}" is started with data that JSON cannot express: {error}'
        ) from None
    arguments: dict[str, Any] = {
        "function_id": function.id,
        "data": msgspec.json.decode(encoded),
        "seed": seed or new_seed(),
    }
    arguments |= {name: value for name, value in (("id", id), ("sender", sending_run.get())) if value is not None}
    if app.tracing is None:
        receipt = await start(app, arguments, io)
    else:
        with app.tracing.sending([Event(name=InternalEvent.FUNCTION_INVOKED)]) as span:
            receipt = await start(app, arguments | trace_headers(span.traceparent), io)
            span.sent([receipt.event_id])
    return RunHandle(app, receipt.run_id or receipt.event_id, function, is_started=receipt.run_id is not None)


async def list_runs(
    app: App,
    function: FunctionDefinition[Any] | None,
    status: RunStatus | str | None,
    started_after: dt.datetime | None,
    limit: int,
    cursor: str | None,
    io: IO,
) -> "list[Run]":
    """Runs of the engine. See ``Client.runs``."""
    if started_after is not None and started_after.tzinfo is None:
        raise ValueError(f"started_after must have a time zone, such as datetime(…, tzinfo=UTC), not {started_after!r}")
    given = {
        "function_id": None if function is None else function.id,
        "status": None if status is None else RunStatus.read(status),
        "started_after": started_after,
        "limit": limit,
        "cursor": cursor,
    }
    found: list[Run] = await execute(
        app, "list_runs", {name: value for name, value in given.items() if value is not None}, io
    )
    return found


def _error_of(run: "Run") -> RunFailedError | RunCancelledError | RunSkippedError:
    try:
        error = ErrorData() if run.output is None else msgspec.json.decode(run.output, type=ErrorData)
    except msgspec.MsgspecError:  # the JSON that the app wrote
        error = ErrorData(message=bytes(run.output or b"").decode(errors="replace"))
    match run.status:
        case RunStatus.CANCELLED:
            return RunCancelledError(run.id, f"run {run.id} of {run.function_id!r} was cancelled")
        case RunStatus.SKIPPED:
            return RunSkippedError(run.id, error.message or f"run {run.id} of {run.function_id!r} was skipped")
        case _:
            return RunFailedError(run.id, error.message or "", error.name or "Error", error.stack)
