"""An end to calls of a server that does not answer: a web app's thread must not wait the SDK's half minute for each.

Waits that are meant to be long have no such end: for a result, and for an update. It knows nothing of who calls.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio.client import FetchWorkflowHistoryEventsInput, Interceptor, OutboundInterceptor

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


class DeadlineInterceptor(Interceptor):
    """Gives ``rpc_timeout`` to the calls of a client that were given none."""

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
