"""Routing of events to runs, functions and waits, by the ids of workflows.

An event that leads to one workflow goes straight to it. One that leads to several starts a workflow of its own first,
so that it reaches all of them even if this process ends. Nothing is looked up by visibility queries, which lag.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from temporalio.client import Client, WithStartWorkflowOperation
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.expressions import compile_expression
from durably.engine.scheduling.events import make_internal_event, make_received_event, value_at
from durably.engine.scheduling.registry import Function, patterns_of
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.text import get_logger

from .event_workflow import EventWorkflow
from .function_workflow import FUNCTION, FunctionWorkflow
from .ids import (
    HTTP_QUEUE,
    WORKFLOWS_QUEUE,
    app_queue,
    event_workflow_id,
    function_workflow_id,
    make_event_id,
    make_run_id,
    run_workflow_id,
    signal_workflow_id,
    topic_workflow_id,
    wait_workflow_id,
)
from .messages import (
    RUN_MEMO,
    EventRecord,
    FunctionRecord,
    InternalEvents,
    InvokeInput,
    ResolvedInvocation,
    RunInput,
    RunMemo,
    SignalRecord,
    TopicRecord,
    TriggerRecord,
    WaitRecord,
)
from .search_attributes import search_attributes_of
from .signal_workflow import SignalWorkflow
from .topic_workflow import TOPIC, AppTriggers, TopicWorkflow
from .wait_workflow import WaitState, WaitWorkflow

_logger = get_logger("durably.engine")

T = TypeVar("T")


class Routes(msgspec.Struct, frozen=True):
    """The functions that an event triggers, and paths and values of waits."""

    function_ids: list[str]
    waits: list[tuple[str | None, str | None]]

    def __len__(self) -> int:
        return len(self.function_ids) + len(self.waits)


class Router:
    def __init__(self, client: Client) -> None:
        self._client = client

    # events

    async def route(self, event: EventRecord) -> Routes:
        """Bring an event to all that it leads to. It is durable when this returns."""
        routes = await self.find_routes(event)
        if len(routes) > 1:
            await self._start_event(event)
        else:
            await self.deliver(event, routes)
        return routes

    async def find_routes(self, event: EventRecord) -> Routes:
        names = list(patterns_of(event.name))
        topics = await asyncio.gather(*(self._read(topic_workflow_id(name), TOPIC, TopicRecord) for name in names))
        fields = msgspec.json.decode(event.body)
        now = _now()
        function_ids: dict[str, None] = {}
        for topic in topics:
            for trigger in topic.triggers if topic is not None else ():
                if trigger.expression is None or compile_expression(trigger.expression).matches(fields, now=now):
                    function_ids[trigger.function_id] = None
        own = topics[0]
        waits = [] if own is None else [(path, value_at(path, fields)) for path in own.paths]
        return Routes(list(function_ids), waits)

    async def deliver(self, event: EventRecord, routes: Routes) -> None:
        """Repeating this changes nothing."""
        await asyncio.gather(*(self._start_run(function_id, event) for function_id in routes.function_ids))
        await asyncio.gather(*(self._signal_wait(event, path, value) for path, value in routes.waits))

    async def send_internal(self, sent: InternalEvents) -> None:
        for name, data in sent.events:
            event_id = make_event_id(sent.at, f"{sent.run_id}\n{name}")
            received = make_internal_event(
                InternalEvent(name), bytes(data), event_id, sent.at, sent.origin, sent.traceparent
            )
            await self.route(
                EventRecord(
                    id=event_id,
                    name=name,
                    body=msgspec.Raw(received.body),
                    origin=sent.origin,
                    traceparent=sent.traceparent,
                    sender=sent.run_id,
                )
            )

    async def _start_event(self, event: EventRecord) -> None:
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._client.start_workflow(
                EventWorkflow.run,
                event,
                id=event_workflow_id(event.id),
                task_queue=WORKFLOWS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )

    async def _start_run(self, function_id: str, event: EventRecord) -> str | None:
        function = await self.find_function(function_id)
        if function is None or not function.is_active or function.is_paused:
            return None
        return await self.start(self.run_input(function, function_id, (event,)))

    def run_input(self, record: FunctionRecord, function_id: str, events: tuple[EventRecord, ...]) -> RunInput:
        function = Function.from_config(record.config, record.app_id, record.app_version)
        milliseconds = msgspec.json.decode(events[0].body)["ts"]
        return RunInput(
            run_id=make_run_id(milliseconds, events[0].id, function_id),
            function_id=function_id,
            app_id=record.app_id,
            max_attempts=function.max_attempts,
            calls_queue=app_queue(record.app_id) if record.in_process else HTTP_QUEUE,
            events=events,
            app_version=record.app_version,
            parent=events[0].sender,
        )

    async def start(self, run: RunInput) -> str:
        """Start a run, unless it was started before."""
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._client.start_workflow(
                "durably.Run",
                run,
                id=run_workflow_id(run.run_id),
                task_queue=WORKFLOWS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                memo={RUN_MEMO: RunMemo.of(run)},
                search_attributes=search_attributes_of(run),
                static_summary=run.function_id,
            )
        return run.run_id

    async def _signal_wait(self, event: EventRecord, path: str | None, value: str | None) -> None:
        handle = self._client.get_workflow_handle(wait_workflow_id(event.name, path, value))
        try:
            await handle.signal("event", event)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    # waits

    async def register_wait(self, wait: WaitRecord) -> None:
        await self._add_path(wait.event, wait.path)
        await self._client.start_workflow(
            WaitWorkflow.run,
            WaitState(),
            id=wait_workflow_id(wait.event, wait.path, wait.value),
            task_queue=WORKFLOWS_QUEUE,
            start_signal="wait",
            start_signal_args=[wait],
            static_summary=f"waits for {wait.event}",
        )

    async def _add_path(self, event_name: str, path: str | None) -> None:
        topic = await self._read(topic_workflow_id(event_name), TOPIC, TopicRecord)
        if topic is None or path not in topic.paths:
            await self._update_topic(event_name, "add_path", path)

    async def register_signal_wait(self, wait: SignalRecord) -> bool:
        """False if another run waits for the signal."""
        start = WithStartWorkflowOperation(
            SignalWorkflow.run,
            id=signal_workflow_id(wait.signal),
            task_queue=WORKFLOWS_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"waits for the signal {wait.signal}",
        )
        taken: bool = await self._client.execute_update_with_start_workflow(
            "wait", wait, start_workflow_operation=start, result_type=bool
        )
        return taken

    # functions

    async def find_function(self, function_id: str) -> FunctionRecord | None:
        return await self._read(function_workflow_id(function_id), FUNCTION, FunctionRecord)

    async def resolve_invocation(self, invocation: InvokeInput) -> ResolvedInvocation:
        function = await self.find_function(invocation.function_id)
        if function is None or not function.is_active:
            message = (
                f"step {invocation.name!r} invokes the function {invocation.function_id!r}, which no app has synced: "
                "its id is its app's id, a hyphen, and its own"
            )
            return ResolvedInvocation(error=ErrorData(name="FunctionNotFoundError", message=message))
        metadata = {
            "correlation_id": f"{invocation.run_id}.{invocation.step_id}",
            "expire": invocation.until,
            "fn_id": invocation.function_id,
            "name": invocation.name,
            "source_app_id": invocation.source_app_id,
            "source_fn_id": invocation.source_function_id,
        }
        data = {**(invocation.payload.get("data") or {}), "_inngest": metadata}
        event = Event(name=InternalEvent.FUNCTION_INVOKED, data=data, user=invocation.payload.get("user"))
        event_id = make_event_id(invocation.at, f"{invocation.run_id}\n{invocation.step_id}")
        received = make_received_event(event, event_id, invocation.at, invocation.origin)
        record = EventRecord(
            id=event_id,
            name=event.name,
            body=msgspec.Raw(received.body),
            origin=invocation.origin,
            traceparent=invocation.traceparent,
            sender=invocation.run_id,
        )
        run = self.run_input(function, invocation.function_id, (record,))
        return ResolvedInvocation(run=msgspec.structs.replace(run, parent_step=invocation.name))

    async def configure(self, functions: Iterable[tuple[str, FunctionRecord]]) -> None:
        """Store functions, and their triggers in the topics.

        Repeating this changes nothing.
        """
        await asyncio.gather(*(self._configure(function_id, record) for function_id, record in functions))

    async def _configure(self, function_id: str, record: FunctionRecord) -> None:
        before = await self.find_function(function_id)
        start = WithStartWorkflowOperation(
            FunctionWorkflow.run,
            record,
            id=function_workflow_id(function_id),
            task_queue=WORKFLOWS_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            memo={FUNCTION: record},
            static_summary=function_id,
        )
        await self._client.execute_update_with_start_workflow("configure", record, start_workflow_operation=start)
        wanted = _by_event(function_id, record)
        dropped = set() if before is None else _by_event(function_id, before).keys() - wanted.keys()
        for name in (*wanted, *dropped):
            change = AppTriggers((function_id,), tuple(wanted.get(name, ())))
            await self._update_topic(name, "set_triggers", change)

    async def _update_topic(self, event_name: str, update: str, argument: Any) -> None:
        start = WithStartWorkflowOperation(
            TopicWorkflow.run,
            TopicRecord(),
            id=topic_workflow_id(event_name),
            task_queue=WORKFLOWS_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=event_name,
        )
        await self._client.execute_update_with_start_workflow(update, argument, start_workflow_operation=start)

    async def _read(self, workflow_id: str, memo: str, as_type: type[T]) -> T | None:
        """The record of a workflow, by Describe: it is consistent and costs no action."""
        try:
            described = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        return await described.memo_value(memo, None, type_hint=as_type)


def _by_event(function_id: str, record: FunctionRecord) -> dict[str, list[TriggerRecord]]:
    found: dict[str, list[TriggerRecord]] = {}
    for trigger in record.config.triggers if record.is_active else ():
        if trigger.event:
            found.setdefault(trigger.event, []).append(TriggerRecord(function_id, trigger.expression))
    return found


def _now() -> int:
    return time.time_ns() // 1_000_000
