"""Lists and descriptions of workflows."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import CountWorkflowExecutionsRequest
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionAsyncIterator,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
)
from temporalio.converter import DataConverter
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import PAUSED
from durably.temporal.gateway.call import Call
from durably.temporal.gateway.idempotency import shown_memo
from durably.temporal.gateway.messages import GatewayResponse, answer, links_to
from durably.temporal.gateway.models import Description, Page, PendingActivity, Summary, WorkflowStatus
from durably.temporal.gateway.problems import Problem, bad_request, causes

from .visibility import Filter, all_of, compare, parse, write

_STATUSES: dict[WorkflowExecutionStatus, WorkflowStatus] = {
    WorkflowExecutionStatus.RUNNING: "running",
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.CONTINUED_AS_NEW: "continued_as_new",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
    PAUSED: "paused",
}
PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
FILTERS = {
    "running": "Running",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Canceled",
    "terminated": "Terminated",
    "continued_as_new": "ContinuedAsNew",
    "timed_out": "TimedOut",
    "paused": "Paused",
}


async def list_workflows(call: Call) -> GatewayResponse:
    """A page of workflows. A query never finds those of other exposures."""
    query = write(all_of(*reachable(call), *_requested(call)))
    pages = call.pages(query)
    listed = call.client.list_workflows(
        query,
        page_size=call.integer("page_size", PAGE_SIZE, 1, MAX_PAGE_SIZE),
        next_page_token=pages.take(call.request.query("page")),
        rpc_timeout=call.rpc_timeout,
    )
    await check_searchable(call.client, query, call.rpc_timeout)
    await fetch_page(listed)
    found = [item for item in listed.current_page or () if is_reachable(call, item)]
    page = Page(
        workflows=[Summary(**_summary(call, item)) for item in found],
        next_page=pages.give(listed.next_page_token),
    )
    return answer(page)


def reachable(call: Call) -> tuple[Filter, ...]:
    """The workflows of the exposure that the principal can reach."""
    is_of_type = compare("WorkflowType", "=", call.exposure.definition.name)
    if call.access.sees_all:
        return (is_of_type,)
    return is_of_type, compare(call.owner_attribute, "=", call.access.owner or "")


def is_reachable(call: Call, execution: WorkflowExecution) -> bool:
    """``reachable`` for a row of a list."""
    return execution.workflow_type == call.exposure.definition.name and call.reaches(execution)


def _requested(call: Call) -> Iterator[Filter]:
    if status := call.request.query("status"):
        if status not in FILTERS:
            raise bad_request(f"status is one of {', '.join(FILTERS)}")
        yield compare("ExecutionStatus", "=", FILTERS[status])
    if query := (call.request.query("query") or "").strip():
        yield parse(query)


async def fetch_page(listed: WorkflowExecutionAsyncIterator) -> None:
    """Fetch the next page. Raises ``RPCError``, and a problem for a bad query."""
    try:
        await listed.fetch_next_page()
    except RPCError as error:
        if _is_unsearchable(error):
            raise _unsearchable() from error
        raise


async def check_searchable(client: Client, query: str, rpc_timeout: dt.timedelta) -> None:
    """Raises a problem for a ``"`` in the value of a Text attribute on SQLite.

    The server escapes it with a backslash, which the full-text search of SQLite cannot read, and reports UNAVAILABLE.
    The client repeats such requests for seconds; this one is not repeated. Other errors are ignored here: the next
    request has them too.
    """
    if '"' not in query:
        return
    request = CountWorkflowExecutionsRequest(namespace=client.namespace, query=query)
    try:
        await client.workflow_service.count_workflow_executions(request, retry=False, timeout=rpc_timeout)
    except RPCError as error:
        if _is_unsearchable(error):
            raise _unsearchable() from error


def _is_unsearchable(error: RPCError) -> bool:
    return error.status is RPCStatusCode.UNAVAILABLE and "SQL logic error" in error.message


def _unsearchable() -> Problem:
    return bad_request(
        "the server's store cannot search a Text attribute for a string with a double quote: omit the quote, which "
        "only separates words there"
    )


async def describe(call: Call) -> GatewayResponse:
    description = await call.describe()
    return answer(
        Description(
            **_summary(call, description),
            execution_time=description.execution_time,
            history_length=description.history_length,
            parent_id=description.parent_id,
            memo=await shown_memo(description),
            search_attributes={pair.key.name: pair.value for pair in description.typed_search_attributes},
            pending_activities=await pending_activities(description),
        )
    )


def _summary(call: Call, execution: WorkflowExecution) -> dict[str, Any]:
    return {
        "workflow_id": execution.id,
        "run_id": execution.run_id,
        "workflow": execution.workflow_type,
        "status": status_of(execution),
        "task_queue": execution.task_queue,
        "start_time": execution.start_time,
        "close_time": execution.close_time,
        "links": links_to(call.request.location(call.exposure.name, execution.id)),
        "owner": call.owner_for_staff(execution),
    }


def status_of(execution: WorkflowExecution) -> WorkflowStatus:
    return "unknown" if execution.status is None else _STATUSES.get(execution.status, "unknown")


async def pending_activities(description: WorkflowExecutionDescription) -> list[PendingActivity]:
    converter = description.data_converter
    return [await pending_activity(each, converter) for each in description.raw_description.pending_activities]


async def pending_activity(activity: PendingActivityInfo, converter: DataConverter) -> PendingActivity:
    """A pending activity, with the failure of its last attempt."""
    failure = None
    if activity.HasField("last_failure"):
        failure = causes(await converter.decode_failure(activity.last_failure))
    return PendingActivity(
        id=activity.activity_id,
        type=activity.activity_type.name,
        state=PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_").lower(),
        attempt=activity.attempt,
        maximum_attempts=activity.maximum_attempts or None,
        scheduled_time=time_of(activity, "scheduled_time"),
        last_started_time=time_of(activity, "last_started_time"),
        last_heartbeat_time=time_of(activity, "last_heartbeat_time"),
        next_attempt_time=time_of(activity, "next_attempt_schedule_time"),
        last_failure=failure,
    )


def time_of(message: Message, field: str) -> dt.datetime | None:
    value: Timestamp = getattr(message, field)
    return value.ToDatetime(dt.UTC) if message.HasField(field) else None
