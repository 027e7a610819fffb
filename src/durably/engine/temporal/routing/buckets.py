"""The path of an event through buckets, from a trigger to the start of a run.

An option with a key has a bucket for each value. The order is that of ``engine.core.flow.admission``: a batch, or
idempotency, rate limit and debounce, and then singleton. A request may be repeated for the same event.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.flow.admission import (
    CANCELLED_BY_SINGLETON,
    REPLACED,
    SKIP_REASONS,
    is_batched,
    skipped_error,
)
from durably.engine.core.flow.buckets import BucketKind
from durably.engine.core.flow.config import Flow
from durably.engine.core.inputs import CancelRequested, WaitResolved
from durably.engine.core.run_state import RunStatus
from durably.engine.core.transition import error_memo
from durably.engine.model.functions import SyncedFunction
from durably.engine.temporal.client import describe, ignoring_not_found, update_with_start
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, bucket_workflow_id, run_workflow_id
from durably.engine.temporal.messages import EventRecord, FunctionRecord, RunFlowState, RunInput, RunOutcome
from durably.engine.temporal.records import Records, Restorer
from durably.engine.temporal.routing.bucket import (
    ASK_RATE_LIMIT,
    BUCKET_CONTINUES,
    EVENT_OPTIONS,
    FIND_ENDED,
    OPTION_OF,
    START_STORED,
    ActiveRun,
    BucketAnswer,
    BucketOption,
    BucketRequest,
    BucketState,
    BucketWorkflow,
    StoredEvents,
    option_of_bucket,
)
from durably.engine.temporal.routing.limit_queue import (
    CHANGE_QUEUE,
    GRANT,
    QUEUE,
    READ_LIMITS,
    CallId,
    LimitQueueState,
    QueueChange,
    QueueSignal,
    limits_of,
)
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent
from durably.protocol.options import FunctionOptions
from durably.protocol.sync import FunctionConfig

_ATTEMPTS = 10
_MAX_START_DELAY = 600_000
"""Milliseconds within which the run that has a singleton or a slot must have started."""
_PAUSE_SECONDS = 0.05
_LIMITS_SECONDS = 1.0
_CONTINUED = (BUCKET_CONTINUES, "AcceptedUpdateCompletedWorkflow")
_CLOSED = (RPCStatusCode.NOT_FOUND, RPCStatusCode.ABORTED)
"""Errors of an Update to a workflow that is ending. The next attempt starts a new one."""


def has_buckets(config: FunctionConfig) -> bool:
    return any(getattr(config, name) for name in EVENT_OPTIONS)


class Buckets:
    """The buckets of all functions.

    ``make_run`` and ``start`` belong to the router: ``make_run`` builds the input of a run for events, ``start`` starts
    the run.
    """

    def __init__(
        self,
        client: Client,
        records: Records,
        make_run: Callable[[FunctionRecord, tuple[EventRecord, ...]], RunInput],
        start: Callable[[RunInput], Awaitable[str]],
    ) -> None:
        self._client = client
        self._records = records
        self._make_run = make_run
        self._start = start
        self._restorer = Restorer(client)
        self._limits: dict[str, tuple[float, FunctionOptions]] = {}

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [
            self.ask_rate_limit,
            self.start_stored,
            self.find_ended,
            self.change_queue,
            self.read_limits,
            self.grant,
        ]

    async def trigger(self, record: FunctionRecord, event: EventRecord) -> str | None:
        """Start a run of a function for an event, immediately or later.

        Returns the id of the run, or ``None`` if none starts now. Repeating this changes nothing.
        """
        run = self._make_run(record, (event,))
        if run.outcome is not None or not has_buckets(record.config):
            return await self._start(run)
        flow = SyncedFunction.from_config(record.config, record.app_id).flow
        options = flow.options
        requests = _RequestBuilder(flow, event)
        if options.batch_events is not None and is_batched(flow, requests.fields, requests.now):
            await self._send(requests.to_store(BucketKind.BATCH))
            return None
        reason = await self._find_reason(requests)
        if reason is not None and event.name == InternalEvent.FUNCTION_INVOKED and event.invoker is None:
            # A program started it, and looks for its run.
            error = skipped_error(run.function_id, reason)
            return await self._start(_skipped(run, error))
        if reason is not None:
            await self._fail_invokers((event,), run.function_id, reason)
            return None
        if options.debounce is not None:
            await self._send(requests.to_store(BucketKind.DEBOUNCE))
            return None
        return await self.start(run, record)

    async def start(self, run: RunInput, record: FunctionRecord) -> str:
        """Start a run now, or a run with the status *skipped*."""
        flow = SyncedFunction.from_config(record.config, record.app_id).flow
        option = _RequestBuilder(flow, run.events[0]).option(BucketKind.SINGLETON)
        if option is None:
            return await self._start(run)
        answer = await self._send(BucketRequest(option=option, event_id=run.run_id, ts=0, size=0, run_id=run.run_id))
        if answer.reason is not None:
            return await self._start(_skipped(run, skipped_error(run.function_id, SKIP_REASONS[answer.reason])))
        flow_state = msgspec.structs.replace(run.flow or RunFlowState(), singleton=option.workflow_id)
        await self._start(msgspec.structs.replace(run, flow=flow_state))
        if answer.cancels is not None:
            await self._signal_run(answer.cancels, "cancel", CancelRequested(CANCELLED_BY_SINGLETON))
        return run.run_id

    # activities of buckets

    @activity.defn(name=ASK_RATE_LIMIT)
    async def ask_rate_limit(self, request: BucketRequest) -> BucketAnswer:
        assert request.rate_limit is not None
        return await self._send(msgspec.structs.replace(request, option=request.rate_limit, rate_limit=None))

    @activity.defn(name=START_STORED)
    async def start_stored(self, stored: StoredEvents) -> None:
        if stored.replaced:
            await self._fail_invokers(stored.events, stored.function_id, REPLACED)
            return
        record = await self._records.find_function(stored.function_id)
        if record is None:
            return
        run = self._make_run(record, stored.events)
        await (self.start(run, record) if run.outcome is None else self._start(run))

    @activity.defn(name=FIND_ENDED)
    async def find_ended(self, active: list[ActiveRun]) -> list[str]:
        """The ids of the runs that have ended."""
        found = await asyncio.gather(*(describe(self._client, run_workflow_id(run.run_id)) for run in active))
        return [
            run.run_id
            for run, described in zip(active, found, strict=True)
            if (
                run.since + _MAX_START_DELAY < wall_clock()  # It starts soon, or ended long ago.
                if described is None
                else described.status is not WorkflowExecutionStatus.RUNNING
            )
        ]

    # activities of runs and of queues of calls

    @activity.defn(name=CHANGE_QUEUE)
    async def change_queue(self, change: QueueChange) -> None:
        """Tell a queue of joined and left calls. A queue that a user terminated continues first."""
        options = await self._current_limits(change.function_id) if change.joined else None
        signal = QueueSignal(change, options)
        handle = self._client.get_workflow_handle(change.queue)
        with ignoring_not_found():
            await handle.signal("change", signal)
            return
        if await self._restorer.restore(change.queue) or change.joined:
            await self._client.start_workflow(
                QUEUE,
                LimitQueueState(),
                id=change.queue,
                task_queue=WORKFLOWS_QUEUE,
                start_signal="change",
                start_signal_args=[signal],
                static_summary=f"calls of {change.function_id}",
            )

    async def _current_limits(self, function_id: str) -> FunctionOptions:
        """The limits of a function, at most a second old: a queue gets them with each call."""
        read_at, options = self._limits.get(function_id, (0.0, None))
        if options is None or time.monotonic() - read_at > _LIMITS_SECONDS:
            read_at = time.monotonic()
            ((_, options),) = await self.read_limits([function_id])
            self._limits[function_id] = read_at, options
        return options

    @activity.defn(name=GRANT)
    async def grant(self, calls: list[CallId]) -> list[CallId]:
        """Tell runs that calls have their slots. Returns the calls whose runs have ended."""
        ended: list[CallId] = []

        async def grant(call: CallId) -> None:
            ended.append(call)
            with ignoring_not_found():
                await self._client.get_workflow_handle(run_workflow_id(call.run_id)).signal("granted", call.generation)
                ended.remove(call)

        await asyncio.gather(*map(grant, calls))
        return ended

    @activity.defn(name=READ_LIMITS)
    async def read_limits(self, function_ids: list[str]) -> list[tuple[str, FunctionOptions]]:
        records = await asyncio.gather(*map(self._records.find_function, function_ids))
        return [
            (function_id, FunctionOptions() if record is None else limits_of(record.config))
            for function_id, record in zip(function_ids, records, strict=True)
        ]

    # requests to buckets

    async def _find_reason(self, requests: "_RequestBuilder") -> str | None:
        """The reason why idempotency or rate limit drop the event, or ``None``."""
        rate_limit = requests.option(BucketKind.RATE_LIMIT)
        idempotency = requests.option(BucketKind.IDEMPOTENCY)
        if idempotency is not None:
            answer = await self._send(requests.to_decide(idempotency, rate_limit=rate_limit))
        elif rate_limit is not None:
            answer = await self._send(requests.to_decide(rate_limit))
        else:
            return None
        return None if answer.reason is None else SKIP_REASONS[answer.reason]

    async def _send(self, request: BucketRequest) -> BucketAnswer:
        for attempt in range(_ATTEMPTS):
            await self._restorer.restore(request.option.workflow_id)
            try:
                answer: BucketAnswer = await update_with_start(
                    self._client,
                    "admit",
                    request,
                    workflow=BucketWorkflow.run,
                    state=[BucketState()],
                    id=request.option.workflow_id,
                    summary=f"{request.option.kind} of {request.option.function_id}",
                    result_type=BucketAnswer,
                )
                return answer
            except WorkflowUpdateFailedError as error:
                if attempt == _ATTEMPTS - 1 or getattr(error.cause, "type", "") not in _CONTINUED:
                    raise
            except RPCError as error:
                if attempt == _ATTEMPTS - 1 or error.status not in _CLOSED:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _fail_invokers(self, events: Sequence[EventRecord], function_id: str, reason: str) -> None:
        memo = error_memo(skipped_error(function_id, reason))
        for event in events:
            if event.invoker is not None:
                resolved = WaitResolved(event.invoker.step_id, memo, failed=True)
                await self._signal_run(event.invoker.run_id, "resolve", resolved)

    async def _signal_run(self, run_id: str, signal: str, argument: object) -> None:
        """Signal a run. If it has ended, do nothing."""
        with ignoring_not_found():
            await self._client.get_workflow_handle(run_workflow_id(run_id)).signal(signal, argument)


class _RequestBuilder:
    """Builds the requests of an event to the buckets of a function."""

    def __init__(self, flow: Flow, event: EventRecord) -> None:
        self.flow = flow
        self.fields: dict[str, Any] = msgspec.json.decode(event.body)
        self.now = wall_clock()
        self._event = event
        self._size = len(event.body)

    def option(self, kind: BucketKind) -> BucketOption | None:
        """The bucket of an option, or ``None`` if the option does not apply to the event."""
        if not getattr(self.flow.options, OPTION_OF[kind]):
            return None
        bucket = self.flow.bucket(kind, self.fields, self.now)
        if bucket is None:
            return None
        return option_of_bucket(bucket_workflow_id(self.flow.function_id, kind, bucket.key), self.flow, kind)

    def to_decide(self, option: BucketOption, *, rate_limit: BucketOption | None = None) -> BucketRequest:
        event, ts = self._event, self.fields.get("ts") or self.now
        return BucketRequest(option=option, event_id=event.id, ts=ts, size=self._size, rate_limit=rate_limit)

    def to_store(self, kind: BucketKind) -> BucketRequest:
        """The request to a bucket that stores the event."""
        option = self.option(kind)
        assert option is not None
        return msgspec.structs.replace(self.to_decide(option), event=self._event)


def _skipped(run: RunInput, error: ErrorData) -> RunInput:
    """The same run with the status *skipped*."""
    return msgspec.structs.replace(run, outcome=RunOutcome(RunStatus.SKIPPED, error), flow=None, cancel_on=())
