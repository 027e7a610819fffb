"""Functions: user code plus its configuration, called once for each request of the engine."""

import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from durably.app import App
from durably.context import Context, ContextSync, Step, StepSync
from durably.errors import Error, FunctionConfigInvalidError, FunctionNotServedError
from durably.execution import (
    AsyncCall,
    Checkpointed,
    Checkpointer,
    Divergence,
    Ending,
    Found,
    Outcome,
    Raised,
    Replay,
    Returned,
    StandIn,
    StepMemos,
    SyncCall,
    drive,
    in_step,
    is_async,
)
from durably.experimental import step_context
from durably.groups import Group, GroupSync
from durably.io.http_client import IO
from durably.io.loop_watch import loop_watch
from durably.io.worker_threads import StepThreads, WorkerThreads
from durably.protocol.call import CallContext, CheckpointRequest
from durably.protocol.events import Event
from durably.protocol.text import printable
from durably.run_logger import RunContext, run_logger
from durably.sending import send_events, step_seed
from durably.serializers import Serializer, Unset
from durably.values.annotations import encode_as, function_codec
from durably.values.codecs import Codec, SerializerCodec

from .checkpoints import CallLeaseCheck, Checkpoints, StepCheckpointer
from .config import FunctionDefinition, FunctionOpts
from .divergences import Divergences
from .hooks import MiddlewareFactory, TransformOutputResult
from .middleware_stack import MiddlewareStack
from .step_results import Timings, check_found

_SHARED_SECONDS = 1.0
"""How long a call of a sync function goes on to steps of other calls: a request should not outlast a step by much."""

_CONTEXTS = (Context.__name__, ContextSync.__name__)

_MAX_POINTED_OUT = 100
"""The maximum number of steps of one function with a warning about their duration."""

_MAX_LISTED = 5
"""Steps named in one warning."""

T = TypeVar("T")
Handler = Callable[[Context], Awaitable[T]] | Callable[[ContextSync], T]


@dataclass(slots=True)
class FunctionCall:
    """One call from ``CommHandler``: the engine's data, and the call's context in this process.

    ``checkpoints`` sends finished steps to the engine, ``None`` if that is not possible. ``threads`` run sync
    handlers of async functions.
    """

    function_id: str
    context: CallContext
    event: Event
    events: list[Event]
    steps: Mapping[str, msgspec.Raw]
    target: str | None
    raw_request: object
    timings: Timings
    request_id: str | None = None
    job_id: str | None = None
    disable_immediate: bool = field(default=False)
    checkpoints: Checkpoints | None = None
    stand_in: StandIn | None = None
    threads: WorkerThreads | None = None


class Function(FunctionDefinition[T]):
    """A durable function, made by ``Client.create_function``."""

    def __init__(
        self,
        opts: FunctionOpts,
        handler: Handler[T],
        *,
        on_failure: Handler[Any] | None = None,
        middleware: Sequence[MiddlewareFactory] = (),
    ) -> None:
        if not callable(handler):
            raise FunctionConfigInvalidError(f'function "{opts.local_id}" decorates {handler!r}, which is no function')
        for given in (handler, on_failure):
            if given is not None:
                _check_is_no_generator(opts, given)
                _check_takes_context(opts, given)
                _check_context_kind(opts, given)
        super().__init__(opts, handler)
        self._on_failure = on_failure
        self._pointed_out: set[str] = set()
        self.divergences = {name: Divergences(name) for name in (opts.id, opts.failure_id)}
        self.is_handler_async = is_async(handler)
        self.is_on_failure_handler_async = None if on_failure is None else is_async(on_failure)
        self._middleware = middleware

    def __repr__(self) -> str:
        return f"Function({self.id!r})"

    @property
    def on_failure_fn_id(self) -> str | None:
        return self.opts.failure_id if self._on_failure is not None else None

    def is_replay_strict(self, app: App) -> bool:
        """Whether a run fails if its function no longer reaches the run's finished steps."""
        return app.strict_replay if self.opts.strict_replay is None else self.opts.strict_replay

    def point_out_duration(self, app: App, step_id: str, milliseconds: int) -> None:
        """Warn once for each step, in development."""
        if step_id in self._pointed_out or len(self._pointed_out) >= _MAX_POINTED_OUT:
            return
        self._pointed_out.add(step_id)
        app.logger.warning(
            'step "%s" of function "%s": %d means %d milliseconds; write "%ds" if you mean seconds, "%dms" if not',
            step_id,
            self.id,
            *[milliseconds] * 4,
        )

    def is_async(self, function_id: str) -> bool:
        """Whether the handler behind an id, this function's or its failure handler's, is async."""
        is_own = self._handler_for(function_id) is self._handler
        return self.is_handler_async if is_own else bool(self.is_on_failure_handler_async)

    def configs(self, app_url: str) -> list[dict[str, Any]]:
        """This function's entries in the sync payload: its own, and its failure handler's."""
        own = [self.opts.to_wire(app_url)]
        return own if self._on_failure is None else [*own, self.opts.failure_to_wire(app_url)]

    async def call(self, app: App, call: FunctionCall, io: IO) -> Outcome:
        """Run the function for one call, with middleware around it."""
        middleware = MiddlewareStack([*app.middleware, *self._middleware], app, call.raw_request, io)
        checkpoint = _empty_checkpoint(call)
        checkpointer = self._make_checkpointer(app, call, checkpoint, io, middleware)
        if checkpointer is None:
            ending = await self._run(app, call, checkpoint, io, middleware, None)
            assert not isinstance(ending, Checkpointed)
            return ending
        try:
            return await checkpointer.conclude(await self._run(app, call, checkpoint, io, middleware, checkpointer))
        finally:
            checkpointer.close()

    def call_sync(self, app: App, call: FunctionCall, io: IO) -> Outcome:
        """``call`` of a sync function, in this thread; ``io`` must be the blocking kind."""
        return drive(self.call(app, call, io))

    def _make_checkpointer(
        self, app: App, call: FunctionCall, checkpoint: CheckpointRequest, io: IO, middleware: MiddlewareStack
    ) -> StepCheckpointer | None:
        """``None`` for a call that ends with the first step it executes: one that targets a step, and one that is
        made again, since engines count attempts by call and the steps after the one that failed have their own."""
        if call.checkpoints is None or call.target is not None or call.context.attempt:
            return None
        config = self.opts.checkpointing_or(call.checkpoints.are_default)
        if config is None:
            return None
        return StepCheckpointer(call.checkpoints, config, checkpoint, io, middleware, app.logger)

    async def _run(
        self,
        app: App,
        call: FunctionCall,
        checkpoint: CheckpointRequest,
        io: IO,
        middleware: MiddlewareStack,
        checkpointer: Checkpointer | None,
    ) -> Ending:
        try:
            ending = await self._execute(app, call, checkpoint, io, middleware, checkpointer)
            ending = await self._transform_output(ending, call, middleware)
            await middleware.call("before_response")
        except Exception as error:
            return Raised(error)
        return ending

    async def _execute(
        self,
        app: App,
        call: FunctionCall,
        checkpoint: CheckpointRequest,
        io: IO,
        middleware: MiddlewareStack,
        checkpointer: Checkpointer | None,
    ) -> Ending:
        handler = self._handler_for(call.function_id)
        replay = _make_replay(app, call, middleware, checkpointer, _lease_check_of(call, checkpoint, io))
        replay.names = self.divergences[call.function_id].names
        replay.function_id = call.function_id
        replay.findings = _Findings(self, app, call)
        is_async = self.is_async(call.function_id)
        ctx, run = _make_context(is_async, app, call, replay, io, middleware)
        began = call.timings.begin("mw.transform_input")
        if middleware:
            await middleware.call("transform_input", ctx, self, replay.memos)
            call.timings.end("mw.transform_input", began)
        token = step_context.set(ctx.step)
        began = call.timings.begin("function")
        try:
            running = run(partial(handler, ctx))
            ending = await (loop_watch.watch(running, app.logger) if is_async else running)
        finally:
            call.timings.end("function", began)
            step_context.reset(token)
        await middleware.end_execution()
        if isinstance(ending, Found):
            check_found(ending.reports)
        return self._encode(ending, handler, app) if isinstance(ending, Returned) else ending

    def _encode(self, returned: Returned, handler: Handler[Any], app: App) -> Returned | Raised:
        is_own = handler is self._handler
        source = f'function "{self.id}"' if is_own else f'on_failure of function "{self.id}"'
        try:
            codec = self.output_codec(app.serializer) if is_own else self._failure_codec(handler, app.serializer)
            return Returned(returned.value if codec is None else encode_as(codec, source, returned.value), source)
        except Exception as error:
            return Raised(error)

    def _failure_codec(self, handler: Handler[Any], serializer: Serializer | None) -> Codec | None:
        codec = function_codec(f'on_failure of function "{self.id}"', handler, Unset, serializer)
        return SerializerCodec(serializer, object) if codec is None and serializer is not None else codec

    async def _transform_output(self, ending: Ending, call: FunctionCall, middleware: MiddlewareStack) -> Ending:
        """Planned steps returned nothing yet, so where several were found there is nothing to transform; those in
        checkpoints have been transformed one by one."""
        began = call.timings.begin("mw.transform_output")
        if isinstance(ending, Raised) and not isinstance(ending.error, Exception):
            raise ending.error
        if not middleware or isinstance(ending, Checkpointed):
            return ending
        try:
            if isinstance(ending, Found):
                await middleware.transform_step_inputs(ending.reports)
                if len(ending.reports) == 1:
                    await middleware.transform_step(ending.reports[0])
                return ending
            result = _result_of_function(ending)
            await middleware.call("transform_output", result)
            if result.error is not None:
                return Raised(result.error)
            return Returned(result.output, ending.source if isinstance(ending, Returned) else "the function")
        finally:
            call.timings.end("mw.transform_output", began)

    def _handler_for(self, function_id: str) -> Handler[Any]:
        if function_id == self.id:
            return self._handler
        if function_id == self.on_failure_fn_id and self._on_failure is not None:
            return self._on_failure
        raise FunctionNotServedError(f'function "{self.id}" does not answer to the id "{function_id}"')


class _Findings:
    """Reports what a call finds (an ``execution.Findings``)."""

    __slots__ = ("_app", "_call", "_function")

    def __init__(self, function: Function[Any], app: App, call: FunctionCall) -> None:
        self._function = function
        self._app = app
        self._call = call

    def small_duration(self, step_id: str, milliseconds: int) -> None:
        if not self._app.is_production:
            self._function.point_out_duration(self._app, step_id, milliseconds)

    def divergence(self, divergence: Divergence) -> Error | None:
        return self._function.divergences[self._call.function_id].report(
            self._call.context.run_id,
            divergence,
            logger=self._app.logger,
            is_strict=self._function.is_replay_strict(self._app),
        )

    def left_steps(self, step_ids: Sequence[str]) -> None:
        _warn_of_left_steps(self._app, self._call, step_ids)


def _warn_of_left_steps(app: App, call: FunctionCall, step_ids: Sequence[str]) -> None:
    more = len(step_ids) - _MAX_LISTED
    app.logger.warning(
        'function "%s", run %s: the function returned without steps that it had given to a task or to gather, which '
        "nothing awaited: %s%s. They are not finished, and nothing waits for their results: await the task or the "
        "gather, or cancel it",
        call.function_id,
        call.context.run_id,
        ", ".join(f'"{printable(step_id)}"' for step_id in step_ids[:_MAX_LISTED]),
        f" and {more} more" if more > 0 else "",
    )


def _result_of_function(outcome: Returned | Raised) -> TransformOutputResult:
    if isinstance(outcome, Returned):
        return TransformOutputResult(None, outcome.value, None)
    assert isinstance(outcome.error, Exception)
    return TransformOutputResult(outcome.error, msgspec.UNSET, None)


def _empty_checkpoint(call: FunctionCall) -> CheckpointRequest:
    """A checkpoint without steps: it identifies the call as the engine does."""
    context = call.context
    return CheckpointRequest(
        run_id=context.run_id,
        fn_id=context.fn_id or call.function_id,
        qi_id=context.qi_id,
        request_id=call.request_id,
        generation_id=context.generation_id,
        request_started_at=time.time_ns() // 1_000_000,
    )


def _watch(seconds: float) -> Callable[[], bool]:
    """Whether less time than that has passed since."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


def _lease_check_of(call: FunctionCall, checkpoint: CheckpointRequest, io: IO) -> CallLeaseCheck | None:
    return None if call.checkpoints is None else CallLeaseCheck(call.checkpoints, checkpoint, io)


def _make_replay(
    app: App,
    call: FunctionCall,
    middleware: MiddlewareStack,
    checkpointer: Checkpointer | None,
    lease_check: CallLeaseCheck | None,
) -> Replay:
    context = call.context
    stack = context.stack.stack if context.stack is not None else None
    replay = Replay(
        memos=StepMemos(call.steps),
        hooks=middleware if middleware else None,
        checkpointer=checkpointer,
        stack=list(call.steps) if stack is None else stack,
        target=call.target,
        also=() if middleware else context.also or (),
        disable_immediate=call.disable_immediate,
        attempt=context.attempt,
        max_attempts=context.max_attempts,
        lease_check=lease_check,
        stand_in=call.stand_in,
    )
    if call.threads is not None:
        replay.threads = StepThreads(call.threads, app.logger, call.function_id, context.run_id)
    if context.also:
        replay.has_time = _watch(_SHARED_SECONDS)
    return replay


async def _send_in_step(app: App, call: FunctionCall, io: IO, middleware: MiddlewareStack, events: Any) -> list[str]:
    step = in_step.get()
    assert step is not None, "only steps send"
    seed = step_seed(call.context.run_id, step.hashed_id, call.event.ts)
    return await send_events(app, events, io, middleware, seed)


def _make_context(
    is_async: bool,
    app: App,
    call: FunctionCall,
    replay: Replay,
    io: IO,
    middleware: MiddlewareStack,
) -> tuple[Any, Callable[[Callable[[], Any]], Coroutine[Any, Any, Ending]]]:
    """The handler's argument, and how to run it."""
    shared: dict[str, Any] = {
        "event": call.event,
        "events": call.events,
        "run_id": call.context.run_id,
        "attempt": call.context.attempt,
        "logger": run_logger(app.logger, RunContext(replay, app.app_id, call.function_id, call.context.run_id)),
        "request_id": call.request_id,
        "job_id": call.job_id,
    }

    send = partial(_send_in_step, app, call, io, middleware)
    if is_async:
        async_call = AsyncCall(replay)
        ctx = Context(**shared, step=Step(app, async_call, send), group=Group(async_call))
        return ctx, async_call.run

    sync_call = SyncCall(replay)
    step = StepSync(app, sync_call, lambda events: drive(send(events)))

    async def run(function: Callable[[], Any]) -> Ending:
        return sync_call.run(function)

    return ContextSync(**shared, step=step, group=GroupSync(sync_call)), run


def _check_is_no_generator(opts: FunctionOpts, handler: Handler[Any]) -> None:
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        name = getattr(handler, "__name__", repr(handler))
        raise FunctionConfigInvalidError(
            f'function "{opts.local_id}": {name} is a generator, because its body has a `yield`: return the result'
        )


def _check_takes_context(opts: FunctionOpts, handler: Handler[Any]) -> None:
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        name = getattr(handler, "__name__", repr(handler))
        raise FunctionConfigInvalidError(
            f'function "{opts.local_id}": {name} must take one argument, the context, whose steps are ctx.step'
        ) from None
    except ValueError:  # Written in C, without a signature.
        pass


def _check_context_kind(opts: FunctionOpts, handler: Handler[Any]) -> None:
    """An async function with the context of sync ones would not await its steps, and the reverse."""
    wanted = Context.__name__ if is_async(handler) else ContextSync.__name__
    annotated = _annotated_context(handler)
    if annotated is None or annotated == wanted:
        return
    name = getattr(handler, "__name__", repr(handler))
    kinds = ("async", "def") if is_async(handler) else ("sync", "async def")
    other = f", or make it `{kinds[1]}`" if annotated in _CONTEXTS else ""
    raise FunctionConfigInvalidError(
        f'function "{opts.local_id}": {name} is {kinds[0]}, but its argument is annotated as {annotated}: annotate '
        f"it as durably.{wanted}{other}"
    )


def _annotated_context(handler: Handler[Any]) -> str | None:
    """The name of the first argument's class, if it is one of ours or of the ``inngest`` package.

    Names that exist only for type checkers cannot be evaluated; then the annotation's text is used.
    """
    try:
        parameter = next(iter(inspect.signature(handler).parameters.values()))
    except (ValueError, StopIteration):
        return None
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = next(iter(inspect.signature(handler, eval_str=True).parameters.values())).annotation
        except Exception:
            text = annotation.strip("\"' ").rpartition(".")[2]
            return text if text in _CONTEXTS else None
    if not isinstance(annotation, type):
        return None
    for base in annotation.__mro__:
        if base.__name__ in _CONTEXTS and base.__module__.partition(".")[0] in ("durably", "inngest"):
            return base.__name__
    return annotation.__name__ if annotation.__module__.partition(".")[0] in ("durably", "inngest") else None
