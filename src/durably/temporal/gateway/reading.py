"""Looking at workflows: lists and descriptions."""

import base64
import binascii
import datetime as dt
import hashlib
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.converter import DataConverter

from durably.temporal.compat import PAUSED

from .call import Call
from .failures import causes
from .messages import GatewayResponse, answer
from .models import Description, Page, PendingActivity, Summary, WorkflowStatus
from .problems import bad_request
from .starting import MARK

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
_CHECKSUM_BYTES = 6
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
    """Workflows of this exposure alone, whatever the visibility query says."""
    workflow = call.exposure.definition.name
    clauses = [f"WorkflowType = '{workflow.replace(chr(39), chr(39) * 2)}'"]
    if status := call.request.query("status"):
        if status not in FILTERS:
            raise bad_request(f"status is one of {', '.join(FILTERS)}")
        clauses.append(f"ExecutionStatus = '{FILTERS[status]}'")
    if query := (call.request.query("query") or "").strip():
        clauses.append(f"({check_query(query)})")
    pages = call.client.list_workflows(
        " AND ".join(clauses),
        page_size=call.integer("page_size", 50, 1, 500),
        next_page_token=page_token(call.request.query("page")),
        rpc_timeout=call.rpc_timeout,
    )
    await pages.fetch_next_page()
    found = [item for item in pages.current_page or () if item.workflow_type == workflow]
    page = Page(
        workflows=[Summary(**_summary(call, item)) for item in found],
        next_page=page_after(pages.next_page_token),
    )
    return answer(page)


def check_query(query: str) -> str:
    """A query that stays within its parentheses: none that it closes, no quote that it leaves open."""
    depth, quote = 0, ""
    for character in query:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth < 0:
                break
    if depth != 0 or quote or not query.isprintable() or len(query) > 2000:
        raise bad_request("the visibility query has parentheses or quotes that do not match, or is too long")
    return query


def page_after(token: bytes | None) -> str | None:
    """The server's token in a form for URLs, with a checksum: servers fail at tokens that they did not make."""
    return base64.urlsafe_b64encode(_checksum(token) + token).decode() if token else None


def page_token(text: str | None) -> bytes | None:
    """What ``page_after`` was made from. Raises a problem."""
    if not text:
        return None
    try:
        decoded = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    checksum, token = decoded[:_CHECKSUM_BYTES], decoded[_CHECKSUM_BYTES:]
    if not token or checksum != _checksum(token):
        raise bad_request("page is not one that was given as next_page")
    return token


def _checksum(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()[:_CHECKSUM_BYTES]


async def describe(call: Call) -> GatewayResponse:
    description = await call.describe()
    memo = {name: value for name, value in (await description.memo()).items() if name != MARK}
    return answer(
        Description(
            **_summary(call, description),
            execution_time=description.execution_time,
            history_length=description.history_length,
            parent_id=description.parent_id,
            memo=memo,
            search_attributes={pair.key.name: pair.value for pair in description.typed_search_attributes},
            pending_activities=await pending_activities(description),
            notices=await call.pollers.notices(call.client, description, call.rpc_timeout),
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
        "links": call.links(execution.id),
    }


def status_of(execution: WorkflowExecution) -> WorkflowStatus:
    return "unknown" if execution.status is None else _STATUSES.get(execution.status, "unknown")


async def pending_activities(description: WorkflowExecutionDescription) -> list[PendingActivity]:
    converter = description.data_converter
    return [await pending_activity(each, converter) for each in description.raw_description.pending_activities]


async def pending_activity(activity: PendingActivityInfo, converter: DataConverter) -> PendingActivity:
    """An activity that is under way, with why its last attempt failed."""
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
