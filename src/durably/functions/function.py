"""Functions: user code plus its configuration.

A function is called once for each request of the engine.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import msgspec

from durably.app import App, CallInfo
from durably.context import Context, ContextSync, Group, GroupSync
from durably.engine_client import block
from durably.errors import FunctionConfigInvalidError, FunctionNotServedError, NotSupportedError
from durably.events import Model, send_events, step_seed
from durably.execution import (
    Assignment,
    AsyncCall,
    Checkpointed,
    Durations,
    Ending,
    FoundSteps,
    Host,
    Outcome,
    Raised,
    ReplaceStep,
    Replay,
    Returned,
    StepMemos,
    SyncCall,
    drive,
    in_step,
    is_async,
    take_inputs,
)
from durably.experimental import step_context
from durably.io.http_client import IO, AsyncIO
from durably.io.worker_threads import WorkerThreads, loop_watch
from durably.protocol.call import CallContext, CheckpointRequest, DeferredState
from durably.protocol.events import Event, inherit_sessions, shared_sessions
from durably.protocol.limits import MAX_STEP_INPUT_BYTES
from durably.run_logger import AnyLogger, AnyRunLogger, RunContext, RunLogger
from durably.runs import RunHandle, start_run
from durably.steps import Step, StepSync
from durably.values.codecs import SerializerCodec, Unset
from durably.values.outputs import check_found, encode_as, function_codec

from .checkpoints import CallLeaseCheck, Checkpoints, StepCheckpointer, line_keeper
from .config import FunctionDefinition, FunctionOpts
from .defers import CallDefers
from .diagnostics import Diagnostics, DivergenceLog, running_diagnostics
from .middleware import MiddlewareFactory, MiddlewareStack, TransformOutputResult
from .publishing import CallReports, RunPublisher, running_publisher

_SHARED_SECONDS = 1.0
"""Seconds for which a call of a sync function continues with steps of other calls."""

_PARTS = {"mw.transform_input": 0.0, "function": 0.0, "mw.transform_output": 0.0}
"""The measured parts of a call, in order, with initial durations."""

_ASYNC_IO = AsyncIO()
_UNTRACED = nullcontext()
"""Used instead of a call's span if there is no tracing."""

T = TypeVar("T")
Handler = Callable[[Context], Awaitable[T]] | Callable[[ContextSync], T]


class FunctionCall(msgspec.Struct, kw_only=True):
    """One call from ``CommHandler``, with the engine's data.

    ``checkpoints`` sends finished steps to the engine, ``None`` if that is not possible. ``threads`` run sync handlers
    of async functions. ``seconds`` gets the durations of the call's parts. For ``traceparent`` and ``is_engines_trace``
    see ``durably.app.CallInfo``.
    """

    function_id: str
    context: CallContext
    event: Event
    events: list[Event]
    steps: Mapping[str, msgspec.Raw]
    defers: Mapping[str, DeferredState]
    target: str | None
    raw_request: object
    seconds: dict[str, float]
    request_id: str | None = None
    job_id: str | None = None
    disable_immediate: bool = False
    checkpoints: Checkpoints | None = None
    replace_step: ReplaceStep | None = None
    threads: WorkerThreads | None = None
    traceparent: str | None = None
    is_engines_trace: bool = False


class Entry(msgspec.Struct, frozen=True):
    """A handler that engines call by ``id``: a function's, or its failure handler.

    ``source`` names it in errors.
    """

    id: str
    handler: Callable[..., Any]
    is_async: bool
    divergences: DivergenceLog
    source: str
    durations: Durations


class Function(FunctionDefinition[T]):
    """A durable function, made by ``Client.create_function``.

    ``entries`` has the handlers that engines call, by id: the function, and its failure handler if it has one.
    """

    def __init__(
        self,
        opts: FunctionOpts,
        handler: Handler[T],
        *,
        on_failure: Handler[Any] | None = None,
        middleware: Sequence[MiddlewareFactory] = (),
        client: App | None = None,
    ) -> None:
        if not callable(handler):
            raise FunctionConfigInvalidError(
                f'function "{opts.local_id}" decorates {handler!r}, which is not a function'
            )
        if on_failure is not None and not callable(on_failure):
            raise FunctionConfigInvalidError(
                f'function "{opts.local_id}": on_failure must be a function, not {on_failure!r}'
            )
        super().__init__(opts, handler, middleware)
        self.client = client
        """The client that created it."""
        function_id, failure_id = opts.id, opts.failure_id
        self.on_failure_fn_id = failure_id if on_failure is not None else None
        self.is_handler_async = is_async(handler)
        self.is_on_failure_handler_async = None if on_failure is None else is_async(on_failure)
        self.entries = {function_id: _make_entry(function_id, handler, f'function "{function_id}"')}
        if on_failure is not None:
            self.entries[failure_id] = _make_entry(failure_id, on_failure, f'on_failure of function "{function_id}"')
        self._checkpointing = {is_default: opts.checkpointing_or(is_default) for is_default in (False, True)}
        self.sends_checkpoints = self._checkpointing[False] is not None
        """Whether the function sends checkpoints to engines for which this is not the default."""

    def __repr__(self) -> str:
        return f"Function({self.id!r})"

    def configs(self, app_url: str) -> list[dict[str, Any]]:
        """This function's entries in the sync payload: its own, and its failure handler's."""
        own = [self.opts.to_wire(app_url)]
        return own if self.on_failure_fn_id is None else [*own, self.opts.failure_to_wire(app_url)]

    async def start(
        self, data: Mapping[str, Any] | Model | None = None, *, id: str | None = None, client: App | None = None
    ) -> RunHandle[T]:
        """Start a run of the function, whatever its triggers. Returns its handle when the run is stored.

        - ``data``: The data of its event, a mapping or a pydantic model.
        - ``id``: For as long as a run that was started with this id is stored, the start returns that run, and starts
          no other, whatever the data. It is also the id of the run's event. A run that was skipped does not count.
        - ``client``: The client whose engine runs it, by default the one that created the function.

        If flow control holds the run back, the handle finds the run later; a run that was skipped has no result. The
        start is repeated on network errors and 5xx, and starts one run. Raises ``FunctionNotFoundError``,
        ``FunctionPausedError``, ``EventInvalidError``, ``EventUnserializableError``, ``TransportError``, and
        ``NotSupportedError`` if the engine starts no functions, or does not know ids.
        """
        return await start_run(self._client_of(client), self, data, id, _ASYNC_IO)

    def start_sync(
        self, data: Mapping[str, Any] | Model | None = None, *, id: str | None = None, client: App | None = None
    ) -> RunHandle[T]:
        """``start`` for synchronous code."""
        app = self._client_of(client)
        return block(app, lambda io: start_run(app, self, data, id, io))

    def _client_of(self, client: App | None) -> App:
        if (chosen := client or self.client) is None:
            raise FunctionConfigInvalidError(f'function "{self.id}": give start the client: start(data, client=…)')
        return chosen

    async def call(self, app: App, call: FunctionCall, io: IO) -> Outcome:
        """Run the function for one call, with middleware around it.

        A call that targets a step, or that is repeated, ends with the first step that it executes. Engines count
        attempts by call, and the steps after the failed one have attempts of their own.
        """
        entry = self.entries.get(call.function_id)
        if entry is None:
            raise FunctionNotServedError(f'function "{self.id}" does not answer to the id "{call.function_id}"')
        with _UNTRACED if app.tracing is None else app.tracing.calling(_describe_call(app, call)) as span:
            middleware = None
            if app.middleware or self.middleware:
                middleware = MiddlewareStack([*app.middleware, *self.middleware], app, call.raw_request, io)
            checkpointer: StepCheckpointer | None = None
            lease_check, context = None, call.context
            reports = CallReports(app, context.run_id)
            defers = CallDefers(call.defers, shared_sessions(call.events))
            if (checkpoints := call.checkpoints) is not None:
                config = self._checkpointing[checkpoints.are_default]
                if config is not None and call.target is None and not context.attempt:
                    empty = _empty_checkpoint(call)
                    checkpointer = StepCheckpointer(
                        checkpoints, config, empty, io, middleware, app.logger, reports, defers
                    )
                if checkpoints.has_lease:
                    lease_check = CallLeaseCheck(checkpoints, _empty_checkpoint(call), io)
            memos = StepMemos(dict(call.steps))
            host = Host(
                hooks=middleware,
                checkpointer=checkpointer,
                lease_check=lease_check,
                tracer=span,
                replace_step=call.replace_step,
                threads=call.threads,
                diagnostics=Diagnostics(
                    app,
                    entry.divergences,
                    context.run_id,
                    app.strict_replay if self.opts.strict_replay is None else self.opts.strict_replay,
                ),
                ids=entry.divergences.ids,
                clock=time.time_ns,
                durations=entry.durations,
                # Middleware that changes values may do so to hide them.
                sent_input_bytes=MAX_STEP_INPUT_BYTES
                if app.send_step_input and not (middleware is not None and middleware.changes_values)
                else 0,
            )
            replay = Replay(memos, _assign(call, memos, shares=middleware is None), host)
            try:
                try:
                    ending = await self._execute(app, call, entry, replay, io, middleware, reports, defers)
                except Exception as error:
                    ending = Raised(error)
                try:
                    await reports.flush(io)
                except NotSupportedError as error:
                    ending = Raised(error)
                outcome = ending if checkpointer is None else await checkpointer.conclude(ending)
            finally:
                if checkpointer is not None:
                    checkpointer.close()
            assert not isinstance(outcome, Checkpointed)
            if span is not None:
                span.ended(outcome)
            return defers.join(outcome)

    def call_sync(self, app: App, call: FunctionCall, io: IO) -> Outcome:
        """``call`` of a sync function, in this thread. ``io`` must be the blocking kind."""
        return drive(self.call(app, call, io))

    async def _execute(
        self,
        app: App,
        call: FunctionCall,
        entry: Entry,
        replay: Replay,
        io: IO,
        middleware: MiddlewareStack | None,
        reports: CallReports,
        defers: CallDefers,
    ) -> Ending:
        running: AsyncCall | SyncCall = AsyncCall(replay) if entry.is_async else SyncCall(replay)
        publisher = RunPublisher(reports, replay)
        ctx = _make_context(app, call, replay, running, io, middleware, publisher, defers)
        call.seconds |= _PARTS
        if middleware is not None:
            began = time.perf_counter()
            await middleware.call("transform_input", ctx, self, replay.step_memos)
            call.seconds["mw.transform_input"] = time.perf_counter() - began
        token = step_context.set(ctx.step)
        publisher_token = running_publisher.set(publisher)
        diagnostics = replay.diagnostics
        assert isinstance(diagnostics, Diagnostics)
        diagnostics_token = running_diagnostics.set(diagnostics)
        began = time.perf_counter()
        try:
            if isinstance(running, AsyncCall):
                # ``loop_watch`` logs that the function blocks the event loop.
                loop = asyncio.get_running_loop()
                loop_watch.logger = app.logger
                watched = loop_watch.loops.get(loop) or loop_watch.start(loop)
                watched.calls += 1
                if not loop_watch.is_awake.is_set():
                    loop_watch.start(loop)
                try:
                    ending = await running.run(partial(entry.handler, ctx))
                finally:
                    watched.calls -= 1
            else:
                ending = running.run(partial(entry.handler, ctx))
        finally:
            call.seconds["function"] = time.perf_counter() - began
            step_context.reset(token)
            running_publisher.reset(publisher_token)
            running_diagnostics.reset(diagnostics_token)
            diagnostics.is_over = True
        if middleware is not None:
            await middleware.end_execution()
        await defers.transform(middleware)
        if isinstance(ending, FoundSteps):
            check_found(ending.reports)
        elif isinstance(ending, Returned):
            ending = self._encode(ending, entry, app)
        elif isinstance(ending, Raised) and not isinstance(ending.error, Exception):
            raise ending.error
        if middleware is not None:
            began = time.perf_counter()
            ending = await _transform_output(ending, middleware)
            call.seconds["mw.transform_output"] = time.perf_counter() - began
            await middleware.call("before_response")
        return ending

    def _encode(self, returned: Returned, entry: Entry, app: App) -> Returned | Raised:
        try:
            if entry.handler is self._handler:
                codec = self.output_codec(app.serializer)
            else:
                codec = function_codec(entry.source, entry.handler, Unset, app.serializer)
                if codec is None and app.serializer is not None:
                    codec = SerializerCodec(app.serializer, object)
            value = returned.value if codec is None else encode_as(codec, entry.source, returned.value)
            return Returned(value, entry.source)
        except Exception as error:
            return Raised(error)


def _make_entry(function_id: str, handler: Callable[..., Any], source: str) -> Entry:
    return Entry(function_id, handler, is_async(handler), DivergenceLog(function_id), source, Durations())


async def _transform_output(ending: Ending, middleware: MiddlewareStack) -> Ending:
    """Call the hooks ``transform_output`` and ``transform_step_input``.

    ``transform_step_input`` is called for the steps that the engine executes. Several steps that were found together
    are planned. They have no result yet, so there is nothing to transform. Steps in checkpoints were transformed one by
    one.
    """
    if isinstance(ending, Checkpointed):
        return ending
    if isinstance(ending, FoundSteps):
        await middleware.transform_step_inputs(ending.reports)
        if len(ending.reports) == 1:
            await middleware.transform_step(ending.reports[0])
        return ending
    if isinstance(ending, Returned):
        result = TransformOutputResult(None, ending.value, None)
    else:
        assert isinstance(ending.error, Exception)
        result = TransformOutputResult(ending.error, msgspec.UNSET, None)
    await middleware.call("transform_output", result)
    if result.error is not None:
        return Raised(result.error)
    return Returned(result.output, ending.source if isinstance(ending, Returned) else "the function")


def _describe_call(app: App, call: FunctionCall) -> CallInfo:
    return CallInfo(
        app_id=app.app_id,
        function_id=call.function_id,
        run_id=call.context.run_id,
        attempt=call.context.attempt,
        event_name=call.event.name,
        event_ids=[event.id for event in call.events],
        traceparent=call.traceparent,
        is_engines_trace=call.is_engines_trace,
        has_request=call.raw_request is not None,
    )


def _empty_checkpoint(call: FunctionCall) -> CheckpointRequest:
    """A checkpoint without steps. It identifies the call as the engine does."""
    context = call.context
    return CheckpointRequest(
        run_id=context.run_id,
        fn_id=context.fn_id or None,
        qi_id=context.qi_id,
        request_id=call.request_id,
        generation_id=context.generation_id,
        request_started_at=time.time_ns() // 1_000_000,
    )


def _assign(call: FunctionCall, memos: StepMemos, *, shares: bool) -> Assignment:
    """The replay's part of a call. It takes replaced arguments out of the memos.

    ``shares``: the call may execute steps of other calls too.
    """
    context = call.context
    stack = context.stack.stack if context.stack is not None else None
    inputs = take_inputs(memos.memos) if b'"input"' in b"".join(call.steps.values()) else {}
    deadline = time.monotonic() + _SHARED_SECONDS
    return Assignment(
        function_id=call.function_id,
        inputs=inputs,
        stack=list(memos.memos) if stack is None else stack,
        target=call.target,
        also=context.also or () if shares else (),
        has_time=(lambda: time.monotonic() < deadline) if context.also or context.parallel_steps else None,
        disable_immediate=call.disable_immediate,
        parallel_steps=context.parallel_steps if shares and not context.attempt else 0,
        attempt=context.attempt,
        max_attempts=context.max_attempts,
    )


def _make_context(
    app: App,
    call: FunctionCall,
    replay: Replay,
    running: AsyncCall | SyncCall,
    io: IO,
    middleware: MiddlewareStack | None,
    publisher: RunPublisher,
    defers: CallDefers,
) -> Context | ContextSync:
    """The handler's argument."""
    run_id = call.context.run_id
    find_keeper = partial(line_keeper, app, run_id, call.context.attempt)
    fields: Any = RunContext(replay, app.app_id, call.function_id, run_id, find_keeper)
    logger: Any = app.logger
    logger = AnyRunLogger(logger.target, fields) if isinstance(logger, AnyLogger) else RunLogger(logger, fields)
    shared = (call.event, call.events, run_id, call.context.attempt, logger)
    ids = (call.request_id, call.job_id, call.context.max_attempts, call.function_id, publisher)
    send = partial(_send_in_step, app, call, io, middleware, defers.sessions)
    if isinstance(running, AsyncCall):
        return Context(*shared, Step(app, running, send, run_id, defers.sessions), Group(running), *ids, _defers=defers)
    step = StepSync(app, running, lambda events: drive(send(events)), run_id, defers.sessions)
    return ContextSync(*shared, step, GroupSync(running), *ids, _defers=defers)


async def _send_in_step(
    app: App,
    call: FunctionCall,
    io: IO,
    middleware: MiddlewareStack | None,
    sessions: Mapping[str, str],
    events: Any,
) -> list[str]:
    step = in_step.get()
    assert step is not None, "only steps send"
    if sessions:
        events = [
            msgspec.structs.replace(event, meta=inherit_sessions(event.meta, sessions))
            for event in ([events] if isinstance(events, Event) else events)
        ]
    seed = step_seed(call.context.run_id, step.hashed_id, call.event.ts)
    return await send_events(app, events, io, middleware, seed)
