"""Interceptors of clients and workers: a deadline for each call, a context around each activity, OpenTelemetry."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from temporalio import client, worker
from temporalio.client import FetchWorkflowHistoryEventsInput, OutboundInterceptor
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from durably.execution.step import is_async

BOUNDED = (
    "start_workflow",
    "describe_workflow",
    "query_workflow",
    "signal_workflow",
    "cancel_workflow",
    "terminate_workflow",
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
"""Calls that get a deadline. Waits for a result or an update have none: they are long on purpose."""


class DeadlineInterceptor(client.Interceptor):
    """Sets ``rpc_timeout`` for calls that have none.

    The SDK would let a web app's thread wait half a minute for a server that does not answer.
    """

    def __init__(self, rpc_timeout: timedelta) -> None:
        self.rpc_timeout = rpc_timeout

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Bounding(next, self.rpc_timeout)


class _Bounding(OutboundInterceptor):
    def __init__(self, next: OutboundInterceptor, rpc_timeout: timedelta) -> None:
        super().__init__(next)
        self.rpc_timeout = rpc_timeout

    def fetch_workflow_history_events(self, input: FetchWorkflowHistoryEventsInput) -> Any:
        if not input.wait_new_event:
            input.rpc_timeout = input.rpc_timeout or self.rpc_timeout
        return super().fetch_workflow_history_events(input)


def _bounded(name: str) -> Callable[[_Bounding, Any], Any]:
    def call(self: _Bounding, input: Any) -> Any:
        input.rpc_timeout = input.rpc_timeout or self.rpc_timeout
        return getattr(self.next, name)(input)

    return call


for _name in BOUNDED:
    setattr(_Bounding, _name, _bounded(_name))


class ActivityContext(worker.Interceptor):
    """Runs each activity in a context: ``temporal.add_worker(…, interceptors=[ActivityContext(app.app_context)])``.

    ``enter`` returns a context manager for each attempt of an activity. A sync activity enters it in its own thread.
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
        input.fn = self._with_context(input.fn)
        return await super().execute_activity(input)

    def _with_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with self._enter():
                return function(*args)

        return run


def tracing_interceptor() -> client.Interceptor:
    """Spans of OpenTelemetry: a web request, the workflow that it starts, and its activities are one trace.

    For clients and workers, with the global tracer provider. Needs the extra ``temporal-otel``.
    """
    try:
        from temporalio.contrib.opentelemetry import TracingInterceptor
    except ImportError as error:
        raise ImportError('Temporal(tracing=True) needs OpenTelemetry: pip install "durably[temporal-otel]"') from error
    return TracingInterceptor()
