"""Calls and checkpoints between an engine and functions in the same process.

They do not use HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec

from durably.comm import CommHandler, Syncer
from durably.comm.requests import retry_after_text, state_retries
from durably.engine.core.backoff import read_retry_after
from durably.engine.core.calls import Answer, AttemptFailed, CallData, ReportedOps, Returned, failed, job_id_of
from durably.engine.core.transition import encode_error
from durably.engine.model.settings import Clock
from durably.engine.sqlite.engine import SqliteEngine
from durably.errors import (
    CallStaleError,
    CheckpointRefusedError,
    EngineStoppingError,
    OutputUnserializableError,
    TransportError,
)
from durably.execution import FoundSteps, Outcome, Raised, ReplaceStep, drive
from durably.functions.checkpoints import Checkpoints
from durably.functions.function import FunctionCall
from durably.io.http_client import IO, AsyncIO, BlockingIO
from durably.protocol.call import CallContext, CheckpointRequest, DeferredState, Stack
from durably.protocol.engine_errors import (
    DatabaseLostError,
    EngineClosedError,
    EngineError,
    RunNotFoundError,
    StaleCallError,
)
from durably.protocol.errors import RetryAfterError, describe_error, is_retriable
from durably.protocol.events import Event
from durably.protocol.headers import DISCOVER
from durably.protocol.limits import MAX_REQUEST_BYTES, MAX_STEP_OUTPUT_BYTES
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger, printable
from durably.values.outputs import encode_output, finish

_ASYNC_IO, _BLOCKING_IO = AsyncIO(), BlockingIO()
_logger = get_logger("durably.engine")
_event_decoder = msgspec.json.Decoder(Event)


def sync_of(handler: CommHandler) -> SyncRequest:
    """The sync request with an app's functions.

    Its URL identifies the app, and is never called.
    """
    url = f"embedded://{quote(handler.client.app_id, safe='')}"
    return msgspec.convert(Syncer(handler.endpoint).payload(url), SyncRequest)


async def run_call(
    handler: CommHandler,
    data: CallData,
    checkpoints: Checkpoints,
    clock: Clock,
    replace_step: ReplaceStep | None = None,
) -> Answer:
    """Run the function, on this event loop or in its handler's thread pool."""
    try:
        outcome = await handler.call(_function_call(handler, data, checkpoints, replace_step), _ASYNC_IO)
        return _answer(handler, data, outcome, clock)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # An engine would make the call again and again, or wait for its end forever.
        return failed_call(data, error, clock)


def run_call_sync(handler: CommHandler, data: CallData, checkpoints: Checkpoints, clock: Clock) -> Answer:
    """Run a sync function in this thread."""
    try:
        outcome = drive(handler.call(_function_call(handler, data, checkpoints, None), _BLOCKING_IO))
        return _answer(handler, data, outcome, clock)
    except BaseException as error:  # Threads are not cancelled, so the function itself has raised ``CancelledError``.
        return failed_call(data, error, clock)


def failed_call(data: CallData, error: BaseException, clock: Clock) -> AttemptFailed:
    """The failed attempt for an exception of the app's code around functions.

    What functions and steps raise is in the call's outcome. This is an exception of the code around them, such as a
    log handler, or a ``SystemExit``.
    """
    _logger.error("a call of function %r, run %s, failed", data.function_id, data.run_id, exc_info=error)
    return _failed_attempt(error, clock)


def _function_call(
    handler: CommHandler, data: CallData, checkpoints: Checkpoints, replace_step: ReplaceStep | None
) -> FunctionCall:
    call, job_id = data.call, job_id_of(data.run_id, data.call.step_id)
    events = [_event_decoder.decode(event) for event in data.events]
    memos = data.memos if data.step_input is None else [*data.memos, data.step_input]
    return FunctionCall(
        function_id=data.function_id,
        context=CallContext(
            run_id=data.run_id,
            attempt=call.attempt,
            max_attempts=data.max_attempts,
            step_id=call.step_id,
            disable_immediate_execution=data.disable_immediate,
            qi_id=data.request_id,
            request_id=data.request_id,
            generation_id=call.generation,
            job_id=job_id,
            stack=Stack(stack=[step_id for step_id, _ in data.memos], current=len(data.memos)),
            also=[other.step_id for other in data.also] or None,
            parallel_steps=data.parallel_steps,
        ),
        event=events[0],
        events=events,
        steps={step_id: msgspec.Raw(memo) for step_id, memo in memos},
        defers={deferred.step_id: DeferredState(deferred.is_abortable) for deferred in data.defers},
        target=None if call.step_id == DISCOVER else call.step_id,
        raw_request=None,
        seconds={},
        request_id=data.request_id,
        job_id=job_id,
        disable_immediate=data.disable_immediate,
        checkpoints=checkpoints,
        replace_step=replace_step,
        threads=handler.threads,
        traceparent=data.traceparent,
    )


def _answer(handler: CommHandler, data: CallData, outcome: Outcome, clock: Clock) -> Answer:
    answer = answer_of(outcome, clock)
    if isinstance(answer, AttemptFailed) and not isinstance(outcome, Raised):
        # Its output or its steps cannot be stored. Errors of the function itself are already logged.
        handler.client.logger.error(
            'function "%s", run %s, failed: %s', data.function_id, data.run_id, printable(answer.error.message)
        )
        if answer.written is None:  # Otherwise the engine logs the run's failure, too.
            answer = msgspec.structs.replace(answer, written=encode_error(answer.error))
    return answer


def answer_of(outcome: Outcome, clock: Clock) -> Answer:
    """The answer that the engine would read from an HTTP response with this outcome."""
    if isinstance(outcome, Raised):
        return _failed_attempt(outcome.error, clock)
    if isinstance(outcome, FoundSteps):
        return _reported_ops(outcome, clock)
    try:
        output = encode_output(outcome.value, outcome.source)
    except OutputUnserializableError as error:
        return _failed_attempt(error, clock)
    if len(output) > MAX_STEP_OUTPUT_BYTES:
        message = f"the function returned {len(output)} bytes; at most {MAX_STEP_OUTPUT_BYTES} are allowed"
        return failed("OutputTooLargeError", message, no_retry=True)
    return Returned(output)


def _failed_attempt(error: BaseException, clock: Clock) -> AttemptFailed:
    described = describe_error(error)
    written = msgspec.json.encode(described.to_wire())
    return AttemptFailed(described, not is_retriable(error), _retry_at(error, clock), written)


def _reported_ops(found: FoundSteps, clock: Clock) -> Answer:
    size = 0
    for report in found.reports:
        finish(report)
        op = report.op
        if isinstance(op.data, msgspec.Raw):
            size += len(bytes(op.data))
        if op.opts:  # JSON values that user code cannot change any more.
            encoded = msgspec.json.encode(op.opts)
            size += len(encoded)
            op.opts = msgspec.json.decode(encoded)
    if size > MAX_REQUEST_BYTES:
        message = f"the app's answer has more than {MAX_REQUEST_BYTES} bytes"
        return failed("AnswerTooLargeError", message, no_retry=True)
    ops = [report.op for report in found.reports]
    failures = [report for report in found.reports if report.error is not None]
    if len(failures) == 1 and (error := failures[0].error) is not None:
        return ReportedOps(ops, not is_retriable(error), _retry_at(error, clock))
    state_retries(failures)
    return ReportedOps(ops)


def _retry_at(error: BaseException, clock: Clock) -> int | None:
    """Milliseconds since the epoch; ``None`` for the usual backoff."""
    return read_retry_after(retry_after_text(error), clock.now()) if isinstance(error, RetryAfterError) else None


class Heartbeat:
    """Records beats, and the gaps between them.

    The leader beats with the engine's loop, a follower with data from the leader. ``longest_gap`` is the longest time
    between two beats, in seconds, at which no process has treated another as dead.
    """

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap = longest_gap
        self._clock = clock
        self._last_beat = clock()
        self._gap_ended = -math.inf

    def beat(self) -> None:
        """Record that this process runs and has contact."""
        now = self._clock()
        if now - self._last_beat > self._longest_gap:
            self._gap_ended = now
        self._last_beat = now

    def lose_contact(self) -> None:
        """Mark everything known before now as possibly stale."""
        self._gap_ended = self._clock()

    def certain_at_arrival(self) -> float:
        """Data received now is valid as of this time.

        Just after a gap, it may have been sent before the gap.
        """
        return self._clock() - self._longest_gap

    def may_be_stale(self, since: float) -> bool:
        """Whether a fact known at ``since`` may have changed without notice.

        ``since`` is a time of the same clock.
        """
        # In this order: ``beat``, in the engine's thread, records a gap before it ends it.
        is_in_gap = self._clock() - self._last_beat > self._longest_gap
        return is_in_gap or since < self._gap_ended


class EngineCheckpoints:
    """``Checkpoints`` without HTTP.

    - ``engine``: the engine while it runs in this process; awaitable on any event loop. Without it, ``checkpoint`` is
      used to reach the engine.
    - ``block``: waits for a coroutine in a thread without an event loop.
    - ``heartbeat``: set in a process that others may treat as dead.
    - ``are_default``: checkpoints are cheap here, so they are on by default unless this is false.
    """

    def __init__(
        self,
        checkpoint: Callable[[str, CheckpointRequest], Coroutine[Any, Any, None]],
        block: Callable[[Coroutine[Any, Any, None]], None],
        heartbeat: Heartbeat | None = None,
        *,
        are_default: bool = True,
    ) -> None:
        self.engine: SqliteEngine | None = None
        self.are_default = are_default
        self.join_answers = True
        self.has_lease = heartbeat is not None
        self.certain_at_arrival = time.monotonic if heartbeat is None else heartbeat.certain_at_arrival
        self.may_be_stale = _is_current if heartbeat is None else heartbeat.may_be_stale
        self._checkpoint = checkpoint
        self._block = block

    async def commit(self, request: CheckpointRequest, io: IO) -> None:
        if isinstance(io, BlockingIO):
            self._block(self.commit(request, _ASYNC_IO))
            return
        try:
            engine = self.engine
            if engine is not None:
                with suppress(EngineClosedError, DatabaseLostError):  # Another process becomes the leader.
                    await engine.checkpoint(request.run_id, request)
                    return
            await self._checkpoint(request.run_id, request)
        except (StaleCallError, RunNotFoundError) as error:
            raise CallStaleError(error.message) from None
        except EngineStoppingError:
            raise
        except (EngineError, TransportError) as error:
            raise CheckpointRefusedError(error.message) from None


def _is_current(since: float) -> bool:
    return False
