"""Routing of events to runs, functions and waits, by workflow ids.

An event with one target goes directly to it. An event with several targets first starts its own workflow, so that it
reaches all of them even if this process ends. Visibility queries are not used, because they lag.
"""

import asyncio
import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from ulid import ULID

from durably.engine.core.expressions import compile_expression
from durably.engine.core.flow.admission import PAUSED, cancel_on_of, skipped_error
from durably.engine.core.run_state import Origin, RunStatus, describe_chain, explain_runaway, origin_of
from durably.engine.model.events import (
    RUN_END_EVENTS,
    IdSeed,
    ReceivedEvent,
    check_event,
    invocation_event,
    make_id,
    make_internal_event,
    make_received_event,
    value_at,
)
from durably.engine.model.functions import KnownNames, SyncedFunction, UnmatchedEvents
from durably.engine.model.runs import InvokeReceipt
from durably.engine.model.settings import EngineSettings, trace_of_run
from durably.engine.temporal.client import ignoring_not_found
from durably.engine.temporal.ids import (
    HTTP_QUEUE,
    WORKFLOWS_QUEUE,
    app_queue,
    event_workflow_id,
    make_event_id,
    make_run_id,
    run_workflow_id,
)
from durably.engine.temporal.index import search_attributes_of
from durably.engine.temporal.messages import (
    RUN_MEMO,
    CancelRecord,
    DeliveryRecord,
    EventRecord,
    FunctionRecord,
    InternalEvents,
    InvokeInput,
    InvokerRecord,
    LeaveInput,
    ResolvedInvocation,
    RunInput,
    RunMemo,
    RunOutcome,
    TopicRecord,
)
from durably.engine.temporal.records import Records
from durably.engine.temporal.routing.buckets import Buckets, has_buckets
from durably.engine.temporal.routing.limit_queue import run_flow_of
from durably.engine.temporal.routing.waits import Waits
from durably.engine.temporal.routing.workflows import DELIVER, DELIVERED, SENDERS_TIME, EventWorkflow, cancel_waits
from durably.engine.temporal.support import MAX_PATTERNS
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.engine_errors import EventInvalidError, FunctionNotFoundError, FunctionPausedError
from durably.protocol.errors import RUNAWAY_ERROR, ErrorData
from durably.protocol.events import Event, EventReceipt, InternalEvent, patterns_of
from durably.protocol.options import milliseconds
from durably.protocol.text import get_logger

SEND, RESOLVE = "durably.send", "durably.resolve"
"""Local activities of runs."""
_PARALLEL_EVENTS = 20
_MOST_NAMED_FUNCTIONS = 8
_MAX_DELIVERY_SECONDS = 3.0
"""Seconds for which a sender waits for the delivery of an event that is already durable."""
_MAX_START_DELAY = 600_000
"""Milliseconds within which a run starts if its event could not be delivered immediately."""

_logger = get_logger("durably.engine")


class Routes(msgspec.Struct, frozen=True):
    """The routes of an event.

    ``is_known``: functions or waits use its name, even if it matches none of their conditions.
    """

    delivery: DeliveryRecord
    is_known: bool


class Router:
    def __init__(self, client: Client, settings: EngineSettings) -> None:
        self._client = client
        self._settings = settings
        self.records = Records(client)
        self.waits = Waits(client)
        self.buckets = Buckets(client, self.records, self.run_input, self.start)
        self.has_synced = False
        """Whether an app has synced functions, as far as this process knows. The index has them later."""
        self._unmatched = UnmatchedEvents(are_stored=False)

    # events

    async def receive(
        self,
        events: Sequence[Event],
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
    ) -> EventReceipt:
        """Route events. They are durable when this returns.

        A repeated event with an id of its sender changes nothing, as long as the server keeps ended workflows. Raises
        ``EventInvalidError``.
        """
        checked = [check_event(event, self._settings.max_event_bytes) for event in events]
        id_seed = IdSeed(seed) if seed else None
        now = wall_clock()
        sent_by = (
            _Sender(traceparent=traceparent) if sender is None else await self._find_sender(sender, now, traceparent)
        )
        records = [
            _record(
                each.event,
                make_event_id(0, each.event.id) if each.event.id else None,
                id_seed,
                index,
                now,
                sent_by,
                each.data,
            )
            for index, each in enumerate(checked)
        ]
        limit = asyncio.Semaphore(_PARALLEL_EVENTS)

        async def route(record: EventRecord, event: Event) -> bool:
            async with limit:
                return (await self.route(record, is_deduplicated=bool(event.id))).is_known

        known = await asyncio.gather(*map(route, records, events))
        unmatched = dict.fromkeys(event.name for event, is_known in zip(events, known, strict=True) if not is_known)
        if unmatched and not self.has_synced:
            functions = await self._client.count_workflows("WorkflowType = 'durably.Function'")
            self.has_synced = functions.count > 0
        explained = self._unmatched.explain(unmatched, KnownNames(has_functions=self.has_synced))
        return EventReceipt(ids=[record.id for record in records], unmatched=explained)

    async def _find_sender(self, run_id: str, now: int, traceparent: str | None) -> "_Sender":
        """The run that sends events.

        Its events continue its trace and its chain.
        """
        run = await self.records.find_run(run_id)
        if run is None:
            return _Sender(run_id, traceparent)
        traceparent = traceparent or trace_of_run(self._settings.tracing, run_id, run.traceparent)
        return _Sender(run_id, traceparent, origin_of(0, run.origin, now), run.chain)

    async def route(self, event: EventRecord, *, is_deduplicated: bool = False) -> Routes:
        """Deliver an event to all of its targets. It is durable when this returns.

        ``is_deduplicated``: the event has an id of its sender. Another event with this id changes nothing.
        """
        routes = await self.find_routes(event)
        delivery = routes.delivery
        if is_deduplicated or len(delivery) > 1:
            await self._deliver_with_retries(delivery)
        else:
            functions = await self.records.find_functions(delivery.function_ids)
            if any(each.config.cancel or has_buckets(each.config) for each in functions.values()):
                await self._deliver_with_retries(delivery)
            else:
                await self._deliver(delivery, functions)
        return routes

    async def find_routes(self, event: EventRecord) -> Routes:
        names = list(islice(patterns_of(event.name), 1 + MAX_PATTERNS))
        topics = await self.records.find_topics(names)
        fields = msgspec.json.decode(event.body)
        function_ids = tuple(_triggered(topics, fields))
        waits = tuple((path, value_at(path, fields)) for path in topics[0].paths)
        is_known = bool(topics[0].paths) or any(topic.triggers for topic in topics)
        return Routes(DeliveryRecord(event, function_ids, waits), is_known)

    async def deliver(self, delivery: DeliveryRecord) -> None:
        """Deliver an event to its targets. Repeating this changes nothing.

        Waits come first: an event does not cancel the runs that it starts, and does not end their waits.
        """
        await self._deliver(delivery, {})

    async def _deliver(self, delivery: DeliveryRecord, functions: Mapping[str, FunctionRecord]) -> None:
        """Deliver an event. ``functions`` are those that are known already."""
        event = delivery.event
        await asyncio.gather(*(self.waits.deliver(event, path, value) for path, value in delivery.waits))
        await asyncio.gather(
            *(self._trigger(function_id, event, functions.get(function_id)) for function_id in delivery.function_ids)
        )

    @activity.defn(name=SEND)
    async def send_internal(self, sent: InternalEvents) -> None:
        """Route events of the engine. The caller repeats this until it succeeds."""
        for index, (name, data, sessions) in enumerate(sent.events):
            event_id = make_event_id(sent.at, f"{sent.run_id}\n{index}\n{name}")
            received = make_internal_event(InternalEvent(name), bytes(data), event_id, sent.at, sessions=sessions)
            record = self._event_of_run(sent, received)
            await self.deliver((await self.find_routes(record)).delivery)

    async def _deliver_with_retries(self, delivery: DeliveryRecord) -> None:
        try:
            handle = await self._client.start_workflow(
                EventWorkflow.run,
                delivery,
                id=event_workflow_id(delivery.event.id),
                task_queue=WORKFLOWS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                start_delay=SENDERS_TIME,
                static_summary=delivery.event.name,
            )
        except WorkflowAlreadyStartedError:
            return
        limit = asyncio.timeout(_MAX_DELIVERY_SECONDS)
        try:
            async with limit:
                await self.deliver(delivery)
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
            if not limit.expired():
                raise
            # Buckets need a worker. If there is none, the workflow delivers the event later.
            await self._expect_cancellations(delivery)
            return
        with ignoring_not_found():  # After a long stall of the sender, the workflow has delivered it.
            await handle.signal(DELIVERED)

    @activity.defn(name=DELIVER)
    async def finish_delivery(self, delivery: DeliveryRecord) -> None:
        """Deliver an event that its sender did not deliver."""
        await self.deliver(delivery)
        for run in await self._cancellable_runs(delivery):
            if not await self.waits.is_running(run.run_id):  # A bucket has dropped the event, or the run has ended.
                await self.waits.leave(LeaveInput(cancel_waits(run)))

    async def _expect_cancellations(self, delivery: DeliveryRecord) -> None:
        """Register waits for events that cancel the runs which the event starts later."""
        waits = [wait for run in await self._cancellable_runs(delivery) for wait in cancel_waits(run)]
        try:
            async with asyncio.timeout(_MAX_DELIVERY_SECONDS):
                for wait in waits:
                    await self.waits.register(msgspec.structs.replace(wait, start_within=_MAX_START_DELAY))
        except TimeoutError:
            _logger.warning(
                "the event %s (%s) starts its runs once a worker runs; events cannot cancel them before that",
                delivery.event.id,
                delivery.event.name,
            )

    async def _cancellable_runs(self, delivery: DeliveryRecord) -> list[RunInput]:
        """The runs that an event starts, whether or not their buckets have a worker."""
        functions = (await self.records.find_functions(delivery.function_ids)).values()
        return [
            self.run_input(function, (delivery.event,))
            for function in functions
            if function.is_active
            and function.config.cancel
            and not (function.config.debounce or function.config.batch_events)  # No event cancels before the delay.
        ]

    # runs

    async def _trigger(self, function_id: str, event: EventRecord, known: FunctionRecord | None = None) -> None:
        function = known or await self.records.find_function(function_id)
        if function is not None and function.is_active:
            await self.buckets.trigger(function, event)

    def run_input(self, record: FunctionRecord, events: tuple[EventRecord, ...]) -> RunInput:
        """The input of a function's run for events.

        The run is skipped, or fails immediately, if the function must not start.
        """
        function = SyncedFunction.from_config(record.config, record.app_id, record.app_version)
        outcome = None
        if (runaway := self._explain_runaway(record, events[0])) is not None:
            outcome = RunOutcome(RunStatus.FAILED, runaway)
        elif record.is_paused:
            outcome = RunOutcome(RunStatus.SKIPPED, skipped_error(record.config.id, PAUSED))
        cancel_on = () if outcome is not None else cancel_on_of(function.flow, wall_clock())
        timeouts = function.flow.options.timeouts
        finish = None if timeouts is None else timeouts.finish
        return RunInput(
            run_id=_run_id(events[0], function.id),
            function_id=function.id,
            app_id=record.app_id,
            max_attempts=function.max_attempts,
            calls_queue=app_queue(record.app_id) if record.in_process else HTTP_QUEUE,
            events=events,
            app_version=record.app_version,
            parent=events[0].sender,
            parent_step=None if events[0].invoker is None else events[0].invoker.name,
            outcome=outcome,
            policy=record.policy,
            cancel_on=tuple(
                CancelRecord(each.event, None if each.condition is None else each.condition.text, each.until)
                for each in cancel_on
            ),
            flow=None if outcome is not None else run_flow_of(function.flow, events[0], wall_clock()),
            finish_timeout=milliseconds(finish) if isinstance(finish, dt.timedelta) else finish,
        )

    def _explain_runaway(self, record: FunctionRecord, event: EventRecord) -> ErrorData | None:
        is_run_end = event.name in RUN_END_EVENTS
        reason = explain_runaway(event.origin, record.policy.max_depth, is_run_end=is_run_end)
        if reason is None:
            return None
        named = [record.config.id, *event.chain][:_MOST_NAMED_FUNCTIONS]
        is_whole = event.origin is not None and event.origin.chain < _MOST_NAMED_FUNCTIONS
        chain = describe_chain(named, is_whole)
        return ErrorData(name=RUNAWAY_ERROR, message=f"functions start each other endlessly ({chain}): {reason}")

    async def start(self, run: RunInput) -> str:
        """Start a run of a function, unless it was started before."""
        await asyncio.gather(*map(self.waits.register, cancel_waits(run)))
        try:
            await self._client.start_workflow(
                "durably.Run",
                run,
                id=run_workflow_id(run.run_id),
                task_queue=run.calls_queue,
                request_eager_start=True,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                memo={RUN_MEMO: RunMemo.of(run)},
                search_attributes=search_attributes_of(run),
                static_summary=run.function_id,
            )
        except WorkflowAlreadyStartedError:
            if run.cancel_on and not await self.waits.is_running(run.run_id):
                await self.waits.leave(LeaveInput(cancel_waits(run)))
        return run.run_id

    # invocations

    @activity.defn(name=RESOLVE)
    async def resolve_invocation(self, invocation: InvokeInput) -> ResolvedInvocation:
        """The run to start for an invocation. The caller repeats this until it succeeds."""
        function_id = invocation.function_id
        function = await self.records.find_function(function_id)
        if function is None or not function.is_active:
            return _refused(
                "FunctionNotFoundError",
                f"step {invocation.name!r} invokes the function {function_id!r}, which no app has synced: its id is "
                "its app's id, a hyphen, and its own",
            )
        event = invocation_event(invocation.payload)
        try:
            check_event(event, self._settings.max_event_bytes, is_internal=True)
        except EventInvalidError as invalid:
            return _refused(invalid.name, f"step {invocation.name!r} cannot invoke {function_id!r}: {invalid.message}")
        event = msgspec.structs.replace(event, data={**event.data, "_inngest": _metadata_of(invocation)})
        event_id = make_event_id(invocation.at, f"{invocation.run_id}\n{invocation.step_id}")
        received = make_received_event(event, event_id, invocation.at)
        record = self._event_of_run(invocation, received)
        runaway = self._explain_runaway(function, record)
        if runaway is not None:
            return ResolvedInvocation(error=runaway)
        await self.deliver(await self._find_others(record, function_id))
        run = self.run_input(function, (record,))
        if run.outcome is not None:
            await self.start(run)
            return ResolvedInvocation(error=run.outcome.error)
        if has_buckets(function.config):
            invoker = InvokerRecord(invocation.run_id, invocation.step_id, invocation.name)
            await self.buckets.trigger(function, msgspec.structs.replace(record, invoker=invoker))
            return ResolvedInvocation()
        await asyncio.gather(*map(self.waits.register, cancel_waits(run)))
        return ResolvedInvocation(run=msgspec.structs.replace(run, parent_step=invocation.name))

    def _event_of_run(self, sent: InternalEvents | InvokeInput, event: ReceivedEvent) -> EventRecord:
        """An event that a run sends, in the trace and the chain of the run."""
        return EventRecord(
            id=event.id,
            name=event.name,
            body=msgspec.Raw(event.body),
            origin=sent.origin,
            traceparent=trace_of_run(self._settings.tracing, sent.run_id, sent.traceparent),
            at=sent.at,
            sender=sent.run_id,
            chain=sent.chain,
        )

    async def invoke(
        self, function_id: str, event: Event, *, seed: str | None, sender: str | None, traceparent: str | None
    ) -> InvokeReceipt:
        """Start a run of one function for an event, regardless of its triggers. See ``Engine.invoke``.

        The ids of the event and of the run are made from the function and the sender's id of the event, if there is
        one, so that the server refuses a second run while it keeps the first.
        """
        function = await self.records.find_function(function_id)
        if function is None or not function.is_active:
            raise FunctionNotFoundError(f"no app that has synced has a function with the id {function_id!r}")
        now = wall_clock()
        sent_by = (
            _Sender(traceparent=traceparent) if sender is None else await self._find_sender(sender, now, traceparent)
        )
        event = msgspec.structs.replace(event, data={**event.data, "_inngest": {"fn_id": function_id}})
        event_id = make_event_id(0, f"{function_id}\n{event.id}") if event.id else None
        record = _record(event, event_id, IdSeed(seed) if seed else None, 0, now, sent_by)
        run_id = self.run_input(function, (record,)).run_id
        if function.is_paused and not ((event.id or seed) and await self.records.find_run(run_id)):
            raise FunctionPausedError(f"the function {function_id!r} is paused; resume it before you run anything")
        others = await self._find_others(record, function_id)
        function_ids = (function_id, *others.function_ids)
        await self._deliver_with_retries(msgspec.structs.replace(others, function_ids=function_ids))
        is_held = function.config.debounce or function.config.batch_events
        return InvokeReceipt(event_id=record.id, run_id=None if is_held else run_id)

    async def route_to(self, function_id: str, event: EventRecord) -> None:
        """Route an event that is meant for one function.

        Other functions that it triggers start too. The caller repeats this until it succeeds.
        """
        await self.deliver(await self._find_others(event, function_id))
        await self._trigger(function_id, event)

    async def _find_others(self, event: EventRecord, function_id: str) -> DeliveryRecord:
        """The delivery of an event to all targets but the function for which it is meant."""
        found = (await self.find_routes(event)).delivery
        others = tuple(each for each in found.function_ids if each != function_id)
        return msgspec.structs.replace(found, function_ids=others)


def _triggered(topics: Iterable[TopicRecord], fields: dict[str, object]) -> dict[str, None]:
    now = wall_clock()
    return {
        trigger.function_id: None
        for topic in topics
        for trigger in topic.triggers
        if trigger.expression is None or compile_expression(trigger.expression).matches(fields, now=now)
    }


def _refused(name: str, message: str) -> ResolvedInvocation:
    return ResolvedInvocation(error=ErrorData(name=name, message=message))


def _metadata_of(invocation: InvokeInput) -> dict[str, object]:
    return {
        "correlation_id": f"{invocation.run_id}.{invocation.step_id}",
        "expire": invocation.until,
        "fn_id": invocation.function_id,
        "name": invocation.name,
        "source_app_id": invocation.source_app_id,
        "source_fn_id": invocation.source_function_id,
    }


class _Sender(msgspec.Struct, frozen=True):
    """The parts of an event that come from its sender."""

    run_id: str | None = None
    traceparent: str | None = None
    origin: Origin | None = None
    chain: tuple[str, ...] = ()


def _run_id(event: EventRecord, function_id: str) -> str:
    """The id of the run that an event starts.

    That of an invocation does not depend on its time if the event has an id of its sender.
    """
    at = event.at
    if event.name == InternalEvent.FUNCTION_INVOKED:
        at = ULID.from_str(event.id).milliseconds
    return make_run_id(at, event.id, function_id)


def _record(
    event: Event,
    event_id: str | None,
    seed: IdSeed | None,
    index: int,
    now: int,
    sender: _Sender,
    data: bytes | None = None,
) -> EventRecord:
    """The record of an event from outside. ``event_id`` is made from the sender's id, if the event has one."""
    at = now
    if event_id is None and seed is not None:
        event_id = seed.id_of(index)
        at = ULID.from_str(event_id).milliseconds
    elif event_id is None:
        event_id = make_id(now, os.urandom)
    received = make_received_event(event, event_id, now, data=data)
    return EventRecord(
        id=event_id,
        name=event.name,
        body=msgspec.Raw(received.body),
        origin=sender.origin,
        traceparent=sender.traceparent,
        at=at,
        sender=sender.run_id,
        chain=sender.chain,
        index=index,
    )
