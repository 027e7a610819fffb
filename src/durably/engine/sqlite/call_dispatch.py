"""Dispatches due calls: order, concurrency limit, request body.

Requests of the steps ``fetch`` and ``ai.infer``, from the op to the memo.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from durably.engine.core.calls import Answer, CallData, ReportedOps, Unreached, failed, parallel_steps_of
from durably.engine.model.calls import Caller
from durably.engine.model.channels import Channels
from durably.engine.model.settings import Clock, EngineSettings
from durably.engine.model.subscriptions import EndedCall, Observers
from durably.engine.sqlite.after_commit import ScheduledCall, ScheduledRequest
from durably.engine.sqlite.call_queue import CallLoad, ReadyCalls
from durably.engine.sqlite.queries.runs import pending_input, read_batch
from durably.engine.sqlite.reader import Reader
from durably.engine.sqlite.tables.runs import read_run_state
from durably.engine.sqlite.transactions import operations, runs
from durably.engine.sqlite.transactions.transaction import Transaction
from durably.engine.sqlite.writer import Transactions
from durably.protocol.channels import NewMessage
from durably.protocol.engine_errors import (
    DatabaseLostError,
    DatabaseUnavailableError,
    EngineClosedError,
    StaleCallError,
)
from durably.protocol.text import get_logger

if TYPE_CHECKING:
    from durably.engine.model.requests import OutboundClient

_READ_AGAIN_SECONDS = 1.0

_logger = get_logger("durably.engine")


class CallDispatcher:
    """Makes due calls, at most ``max_calls`` requests at a time."""

    def __init__(
        self,
        caller: Caller,
        reader: Reader,
        transactions: Transactions,
        clock: Clock,
        observers: Observers,
        *,
        max_calls: int,
        max_steps: int,
    ) -> None:
        self._caller = caller
        self._reader = reader
        self._transactions = transactions
        self._clock = clock
        self._observers = observers
        self._max_calls = max_calls
        self._max_steps = max_steps
        self._call_queue = ReadyCalls(max_calls)
        self._under_way: dict[tuple[int, int], int] = {}  # start times by run and generation
        self._requests: set[asyncio.Task[Sequence[ScheduledCall]]] = set()
        self._started: dict[int, int] = {}
        self._is_closing = False

    def make(self, calls: list[ScheduledCall]) -> None:
        """Make calls now, or as soon as others have ended."""
        if self._is_closing:
            return
        if len(calls) == 1 and self._call_queue.take_at_once(calls[0]):
            self._start(calls)
            return
        room, now = self._max_calls - len(self._requests), self._clock.now()
        for position, scheduled in enumerate(calls):
            # A call that waits for others is kept without its data.
            may_keep = scheduled.data is None or position < room
            self._call_queue.add(scheduled if may_keep else msgspec.structs.replace(scheduled, data=None), now)
        self._start_waiting()

    def loads(self) -> dict[str, CallLoad]:
        """The calls of each function that has any; see ``ReadyCalls``."""
        return self._call_queue.loads()

    def called_at(self, run_key: int, generation: int) -> int | None:
        """When a call that is under way was made, in milliseconds since the epoch."""
        return self._under_way.get((run_key, generation))

    def first_call_at(self, run_key: int) -> int | None:
        """When the run's first call was made, while that is not stored yet."""
        return self._started.get(run_key)

    async def close(self, grace_seconds: float) -> None:
        """Make no more calls, and wait for those under way.

        A call that has not ended by then is abandoned: its run keeps it as outstanding, so it is made again when the
        engine starts.
        """
        self._is_closing = True
        self._call_queue.clear()
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _start_waiting(self) -> None:
        while not self._is_closing and (taken := self._call_queue.take()):
            self._start(taken)

    def _start(self, taken: Sequence[ScheduledCall]) -> None:
        """Start a request for calls of one run.

        A call that is already under way is not repeated.
        """
        calls = [
            scheduled for scheduled in taken if (scheduled.run_key, scheduled.call.generation) not in self._under_way
        ]
        if not calls:
            self._call_queue.ended(taken[0])
            return
        self._clock.begin_work()
        now = self._clock.now()
        task = asyncio.get_running_loop().create_task(self._make(calls))
        self._requests.add(task)
        for scheduled in calls:
            self._under_way[scheduled.run_key, scheduled.call.generation] = now
        task.add_done_callback(functools.partial(self._finished, calls))

    def _finished(self, calls: Sequence[ScheduledCall], task: asyncio.Task[Sequence[ScheduledCall]]) -> None:
        self._requests.discard(task)
        for scheduled in calls:
            self._under_way.pop((scheduled.run_key, scheduled.call.generation), None)
        self._call_queue.ended(calls[0])
        self._started.pop(calls[0].run_key, None)
        if not task.cancelled():
            if (error := task.exception()) is not None:
                _logger.error("a call failed in the engine: %s", error, exc_info=error)
            else:
                for unanswered in task.result():
                    self._call_queue.add(unanswered, self._clock.now())
        if self._call_queue.waiting:
            self._start_waiting()
        self._clock.end_work()

    async def _make(self, calls: Sequence[ScheduledCall]) -> Sequence[ScheduledCall]:
        """Make calls of one run in one request.

        Returns the calls that the app left to another request.
        """
        run_key = calls[0].run_key
        try:
            data = calls[0].data or await self._read(calls)
            if data is None:
                return ()
            if calls[0].priority:
                data = msgspec.structs.replace(data, priority=calls[0].priority)
            answer = await self._call(calls[0], data)
            if len(calls) == 1:
                if calls[0].function_id in self._call_queue.quick:
                    self._call_queue.note_durations(calls, (answer,))
                await self._store([(calls[0], answer)], data.run_id)
                return ()
            outstanding = {call.generation for call in (data.call, *data.also)}
            answers = list(
                answers_of([scheduled for scheduled in calls if scheduled.call.generation in outstanding], answer)
            )
            self._call_queue.note_durations(calls, [own for _, own in answers])
            await self._store([(scheduled, own) for scheduled, own in answers if own is not None], data.run_id)
            return [scheduled for scheduled, own in answers if own is None]
        except (StaleCallError, EngineClosedError, DatabaseLostError):
            # The call was given up, or is repeated when the engine starts.
            return ()
        except Exception as error:
            _logger.exception("a call failed in the engine, so its run fails")
            await self._transactions.transact_with_retry(runs.fail, run_key, error)
            return ()

    async def _store(self, answers: Sequence[tuple[ScheduledCall, Answer]], run_id: str) -> None:
        first = answers[0][0]
        called_at = self._under_way[first.run_key, first.call.generation]
        try:
            await self._transactions.transact_with_retry(operations.answer, answers, called_at)
        except (StaleCallError, EngineClosedError, DatabaseLostError):
            raise
        except Exception:
            # An answer that cannot be stored costs an attempt, not the run.
            _logger.exception("an answer of run %s could not be stored", run_id)
            unusable = failed("AnswerUnusableError", "the app's answer could not be stored; see the engine's log")
            unstored = [(scheduled, unusable) for scheduled, _ in answers]
            await self._transactions.transact_with_retry(operations.answer, unstored, called_at)

    async def _read(self, calls: Sequence[ScheduledCall]) -> CallData | None:
        """The content of the request.

        ``None`` if none of the calls is outstanding any longer.
        """
        generations = [scheduled.call.generation for scheduled in calls]
        while True:
            try:
                return await self._reader.read_batched(
                    lambda connection: read_call(connection, calls[0].run_key, generations)
                )
            except EngineClosedError:
                return None
            except DatabaseUnavailableError as error:
                _logger.error("%s; trying again in %s s", error, _READ_AGAIN_SECONDS)
                await asyncio.sleep(_READ_AGAIN_SECONDS)

    async def _call(self, scheduled: ScheduledCall, data: CallData) -> Answer:
        function = self._transactions.registry.functions.get(data.function_id)
        if function is None:
            return failed("FunctionNotFoundError", f"no app has synced the function {data.function_id!r}")
        parallel_steps = parallel_steps_of(
            data.call,
            disable_immediate=data.disable_immediate,
            has_limits=bool(function.flow.concurrency),
            room=self._max_steps - len(data.memos),
        )
        now, began = self._clock.now(), time.perf_counter()
        self._started.setdefault(scheduled.run_key, now)
        try:
            answer = await self._caller.call(function, msgspec.structs.replace(data, parallel_steps=parallel_steps))
        except Exception as error:
            _logger.exception("a call of run %s could not be made", data.run_id)
            answer = failed("CallFailedError", f"the call could not be made: {type(error).__name__}: {error}")
        if self._observers.are_of_calls:
            delay = max(0, now - data.call.due)
            self._observers.on_call(EndedCall(function.id, delay, time.perf_counter() - began, answer))
        return answer


def read_call(connection: sqlite3.Connection, run_key: int, generations: Sequence[int]) -> CallData | None:
    """The content of a request for the calls that are still outstanding.

    ``None`` if none is. Raises ``DatabaseCorruptError``.
    """
    row = connection.execute(
        "SELECT run_states.state, run_states.step_input, runs.id, runs.function_id, runs.is_batch, events.body, "
        "events.traceparent FROM run_states JOIN runs ON runs.key = run_states.run_key "
        "JOIN events ON events.key = runs.event_key WHERE run_states.run_key = ?",
        (run_key,),
    ).fetchone()
    if row is None:
        return None
    encoded, step_input, run_id, function_id, is_batch, event, traceparent = row
    state = read_run_state(encoded)
    outstanding = {call.generation: call for call in state.calls}
    calls = [outstanding[generation] for generation in generations if generation in outstanding]
    if not calls:
        return None
    memos = connection.execute("SELECT seq, step_id, memo FROM memos WHERE run_key = ?", (run_key,)).fetchall()
    memos.sort(key=itemgetter(0))
    return CallData(
        run_id=run_id,
        function_id=function_id,
        call=calls[0],
        also=calls[1:],
        max_attempts=state.max_attempts,
        disable_immediate=state.disable_immediate,
        events=[body for _, body in read_batch(connection, run_key)] if is_batch else [event],
        memos=[(step_id, memo) for _, step_id, memo in memos],
        defers=state.defers,
        step_input=None if step_input is None else pending_input(step_input, {step_id for _, step_id, _ in memos}),
        traceparent=traceparent,
    )


def answers_of(calls: Sequence[ScheduledCall], answer: Answer) -> Iterator[tuple[ScheduledCall, Answer | None]]:
    """Each call's part of the answer, the first call's first.

    ``None`` for a call to be repeated as if it had not been made. An app that does not support shared requests only
    handles the first call. Anything not clearly addressed goes to the first call.
    """
    first, others = calls[0], calls[1:]
    if not isinstance(answer, ReportedOps):
        yield first, answer
        yield from ((other, answer if isinstance(answer, Unreached) else None) for other in others)
        return
    ids = {other.call.step_id for other in others}
    parts = [[op for op in answer.ops if op.id not in ids]]
    parts += [[op for op in answer.ops if op.id == other.call.step_id] for other in others]
    answers_nothing = not any(parts)
    for scheduled, ops in zip(calls, parts, strict=True):
        is_answered = ops or (scheduled is first and answers_nothing)
        yield scheduled, msgspec.structs.replace(answer, ops=ops) if is_answered else None


_logger = get_logger("durably.engine")


class StepRequests:
    """Requests of steps that are due or under way, by run."""

    def __init__(self, settings: EngineSettings, transactions: Transactions, channels: Channels) -> None:
        self._allow_private_addresses = settings.allow_private_addresses
        self._outbound: OutboundClient | None = None
        self._channels = channels
        self._transactions = transactions
        self._clock = settings.clock
        self._opts: dict[int, dict[str, dict[str, Any]]] = {}
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}

    def note(self, wanted: ScheduledRequest) -> None:
        """Keep the options of a request until it is due."""
        if wanted.request.opts is not None:
            self._opts.setdefault(wanted.run_key, {})[wanted.request.step_id] = wanted.request.opts

    def make(self, wanted: ScheduledRequest) -> None:
        opts = self._opts.get(wanted.run_key, {}).get(wanted.request.step_id)
        if opts is None:
            return
        self._clock.begin_work()
        task = asyncio.get_running_loop().create_task(self._make(wanted, opts))
        self._tasks.setdefault(wanted.run_key, set()).add(task)
        task.add_done_callback(lambda task: self._finished(wanted.run_key, task))

    def forget(self, run_key: int) -> None:
        """Cancel the requests of a run that has ended."""
        self._opts.pop(run_key, None)
        for task in self._tasks.get(run_key, ()):
            task.cancel()

    async def close(self) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._outbound is not None:
            await self._outbound.close()

    def _finished(self, run_key: int, task: asyncio.Task[None]) -> None:
        self._tasks[run_key].discard(task)
        if not self._tasks[run_key]:
            del self._tasks[run_key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its message may quote what was sent.
            _logger.error("the result of a step's request could not be stored: %s", type(error).__name__)
        self._clock.end_work()

    def _publish(self, run_id: str, topic: str, data: Any) -> None:
        self._channels.publish([NewMessage(run_id, topic, msgspec.Raw(msgspec.json.encode(data)))])

    async def _make(self, wanted: ScheduledRequest, opts: dict[str, Any]) -> None:
        # It needs aiohttp, which takes more time and memory than the rest of an engine.
        from durably.engine.model.requests import OutboundClient, perform

        run_key, step_id = wanted.run_key, wanted.request.step_id
        if self._outbound is None:
            self._outbound = OutboundClient(allow_private_addresses=self._allow_private_addresses)
        outcome = await perform(
            self._outbound, wanted.request, opts, publish=functools.partial(self._publish, wanted.run_id)
        )

        def apply(transaction: Transaction) -> bool:
            """Apply the result of a request. Returns whether the request is repeated."""
            runs.apply(transaction, run_key, outcome)
            repeated = [message for message in transaction.after_commit if isinstance(message, ScheduledRequest)]
            return any((other.run_key, other.request.step_id) == (run_key, step_id) for other in repeated)

        try:
            is_repeated = await self._transactions.transact_with_retry(apply)
        except EngineClosedError:
            return
        of_run = self._opts.get(run_key, {})
        if not is_repeated and of_run.get(step_id) is opts:
            del of_run[step_id]
            if not of_run:
                del self._opts[run_key]
