"""Interceptors of calls and activities.

One prepares each call of a client, one runs each activity in a context, one makes spans of OpenTelemetry.
"""

import functools
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from temporalio import client, worker
from temporalio.client import (
    Client,
    FetchWorkflowHistoryEventsInput,
    OutboundInterceptor,
    StartWorkflowInput,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowHandle,
    WorkflowHistoryEventAsyncIterator,
    WorkflowUpdateHandle,
)
from temporalio.common import TypedSearchAttributes
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from durably.execution.step import is_async
from durably.temporal.namespace import DURABLY_OWNER, OWNER_ATTRIBUTE, ensure_keyword
from durably.temporal.request_log import note_workflow, noted_workflows, request_id, with_request_id

_NOTED = ("cancel_workflow", "describe_workflow", "query_workflow", "signal_workflow", "terminate_workflow")
"""Calls about one workflow. Others have a method below."""
_BOUNDED = (
    "list_workflows",
    "count_workflows",
    "create_schedule",
    "describe_schedule",
    "list_schedules",
    "update_schedule",
    "pause_schedule",
    "unpause_schedule",
    "trigger_schedule",
    "backfill_schedule",
    "delete_schedule",
)
"""Other calls with a deadline. Waits for a result or an update have none, because they may be long."""


class CallInterceptor(client.Interceptor):
    """Prepares each call of a ``Temporal``'s client.

    A single interceptor costs the least.

    - The current web request records the workflow's id for its log.
    - A started workflow carries the id of that request.
    - A call without ``rpc_timeout`` gets this one. The SDK would let a thread wait half a minute for a server that does
      not answer.
    - The owner's search attribute is registered before the first workflow that is started with it. A new server would
      refuse the workflow.
    """

    def __init__(self, connect: Callable[[], Awaitable[Client]], rpc_timeout: timedelta | None) -> None:
        self._connect, self._rpc_timeout = connect, rpc_timeout

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Prepared(next, self._connect, self._rpc_timeout)


class _Prepared(OutboundInterceptor):
    def __init__(
        self, next: OutboundInterceptor, connect: Callable[[], Awaitable[Client]], rpc_timeout: timedelta | None
    ) -> None:
        super().__init__(next)
        self._connect, self.rpc_timeout = connect, rpc_timeout

    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
        # Inline, without a function for each part, because every start runs this code.
        if (noted := noted_workflows.get()) is not None and input.id not in noted:
            noted.append(input.id)
        if (id := request_id.get()) is not None:
            input.headers = with_request_id(input.headers, id)
        attributes = input.search_attributes
        if isinstance(attributes, TypedSearchAttributes) and any(pair.key == DURABLY_OWNER for pair in attributes):
            await ensure_keyword(await self._connect(), OWNER_ATTRIBUTE, self.rpc_timeout or _REGISTER_TIMEOUT)
        input.rpc_timeout = input.rpc_timeout or self.rpc_timeout
        return await self.next.start_workflow(input)

    def fetch_workflow_history_events(
        self, input: FetchWorkflowHistoryEventsInput
    ) -> WorkflowHistoryEventAsyncIterator:
        note_workflow(input.id)
        if not input.wait_new_event:
            input.rpc_timeout = input.rpc_timeout or self.rpc_timeout
        return self.next.fetch_workflow_history_events(input)

    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:
        note_workflow(input.id)
        return await self.next.start_workflow_update(input)

    async def start_update_with_start_workflow(
        self, input: StartWorkflowUpdateWithStartInput
    ) -> WorkflowUpdateHandle[Any]:
        start = input.start_workflow_input
        note_workflow(start.id)
        start.headers = with_request_id(start.headers, request_id.get())
        return await self.next.start_update_with_start_workflow(input)


_REGISTER_TIMEOUT = timedelta(seconds=10)


def _prepared(name: str, *, is_noted: bool) -> Callable[[_Prepared, Any], Any]:
    def call(self: _Prepared, input: Any) -> Any:
        if is_noted:
            note_workflow(input.id)
        input.rpc_timeout = input.rpc_timeout or self.rpc_timeout
        return getattr(self.next, name)(input)

    return call


for _name in (*_NOTED, *_BOUNDED):
    setattr(_Prepared, _name, _prepared(_name, is_noted=_name in _NOTED))


class ActivityContext(worker.Interceptor):
    """Runs each activity in a context.

    An example: ``temporal.add_worker(…, interceptors=[ActivityContext(app.app_context)])``. ``enter`` returns a context
    manager for each attempt of an activity. A sync activity enters it in its own thread.
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        self._enter = enter

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _InContext(next, self._enter)


class _InContext(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(next)
        self._enter = enter

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if is_async(input.fn):
            with self._enter():
                return await super().execute_activity(input)
        function = input.fn

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with self._enter():
                return function(*args)

        input.fn = run
        return await super().execute_activity(input)


def tracing_interceptor() -> client.Interceptor:
    """The interceptor that makes spans of OpenTelemetry.

    A web request, the workflow that it starts, and its activities are one trace. Clients and workers use the
    interceptor, with the global tracer provider. It needs the extra ``temporal-otel``.
    """
    try:
        from temporalio.contrib.opentelemetry import TracingInterceptor
    except ImportError as error:
        raise ImportError('Temporal(tracing=True) needs OpenTelemetry: pip install "durably[temporal-otel]"') from error
    return TracingInterceptor()
