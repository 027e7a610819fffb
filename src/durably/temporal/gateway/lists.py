"""Lists and descriptions of workflows, and the conditions of visibility queries.

Lists take typed filters. A condition is written from a value, which is quoted: it cannot end the condition.
"""

import datetime as dt
import math
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.converter import DataConverter

from durably.temporal.compat import PAUSED

from .authorization import owner_of
from .call import Call
from .endpoints import ATTRIBUTE, filter_keys
from .idempotency import shown_memo
from .messages import (
    Description,
    GatewayResponse,
    Links,
    Page,
    PendingActivity,
    Summary,
    WorkflowStatus,
    answer,
)
from .problems import bad_request, causes

STATUSES: Mapping[WorkflowExecutionStatus, WorkflowStatus] = {
    WorkflowExecutionStatus.RUNNING: "running",
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.CONTINUED_AS_NEW: "continued_as_new",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
    PAUSED: "paused",
}
SERVER_STATUSES: Mapping[str, str] = {name: status.name.title().replace("_", "") for status, name in STATUSES.items()}
"""The names of statuses in visibility queries."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def condition(attribute: str, operator: str, value: str | bool | float | dt.datetime, *, is_text: bool = False) -> str:
    """A condition of a visibility query (https://docs.temporal.io/list-filter).

    ``is_text`` is for attributes of the type Text, whose words are found. Raises a problem for a value that the server
    cannot search.
    """
    if isinstance(value, bool):
        written = "true" if value else "false"
    elif isinstance(value, int | float):
        if not math.isfinite(value):
            raise bad_request(f"{attribute} cannot be compared with {value}")
        written = repr(value)
    elif isinstance(value, dt.datetime):
        try:
            written = f"'{value.astimezone(dt.UTC).isoformat().replace('+00:00', 'Z')}'"
        except OverflowError:
            raise bad_request(f"{attribute} cannot be compared with {value}: it is out of range in UTC") from None
    else:
        if _CONTROL.search(value):
            raise bad_request(f"the server cannot search for a string with control characters: {value!r}")
        if "'" in (value[:1], value[-1:]):
            raise bad_request(f"the server cannot search for a string that starts or ends with a quote ': {value!r}")
        if is_text:  # SQLite cannot search for double quotes, which only separate words.
            value = value.replace('"', " ")
        written = "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return f"`{attribute}` {operator} {written}"


async def list_workflows(call: Call) -> GatewayResponse:
    """A page of workflows of the exposure that the principal can reach, whatever the filters are."""
    params, access, exposure = call.params, call.access, call.exposure
    conditions = [condition("WorkflowType", "=", exposure.workflow_type)]
    if not access.sees_all:
        assert access.owner is not None, "a principal that sees not all is an owner"
        conditions.append(condition(call.services.owner_attribute, "=", access.owner))
    if owner := params.get("owner"):
        conditions.append(condition(call.services.owner_attribute, "=", owner))
    if status := params["status"]:
        conditions.append(condition("ExecutionStatus", "=", SERVER_STATUSES[status]))
    if after := params["started_after"]:
        conditions.append(condition("StartTime", ">", after))
    if before := params["started_before"]:
        conditions.append(condition("StartTime", "<", before))
    for key in filter_keys(exposure):
        if (value := params[ATTRIBUTE + key.name]) is not None:
            conditions.append(condition(key.name, "=", value, is_text=key.indexed_value_type.name == "TEXT"))
    query = " AND ".join(conditions)
    pages = call.pages(query)
    listed = call.client.list_workflows(
        query,
        page_size=params["page_size"],
        next_page_token=pages.take(params["page"]),
        rpc_timeout=call.rpc_timeout,
    )
    await listed.fetch_next_page()
    # The server's index follows the workflows with a delay.
    found = [
        each
        for each in listed.current_page or ()
        if each.workflow_type == exposure.workflow_type and call.reaches(each)
    ]
    summaries = [Summary(**_summary(call, each)) for each in found]
    return answer(Page(workflows=summaries, next_page=pages.give(listed.next_page_token)))


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
    is_owner_shown = call.exposure.owner is not None and call.access.sees_all
    return {
        "workflow_id": execution.id,
        "run_id": execution.run_id,
        "workflow": execution.workflow_type,
        "status": status_of(execution),
        "task_queue": execution.task_queue,
        "start_time": execution.start_time,
        "close_time": execution.close_time,
        "links": Links.of(call.request.location(call.exposure.name, execution.id)),
        "owner": owner_of(execution, call.services.owner_attribute) if is_owner_shown else None,
    }


def status_of(execution: WorkflowExecution) -> WorkflowStatus:
    return "unknown" if execution.status is None else STATUSES.get(execution.status, "unknown")


async def pending_activities(description: WorkflowExecutionDescription) -> list[PendingActivity]:
    converter = description.data_converter
    return [await _pending(each, converter) for each in description.raw_description.pending_activities]


async def _pending(activity: PendingActivityInfo, converter: DataConverter) -> PendingActivity:
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
        scheduled_time=_time(activity, "scheduled_time"),
        last_started_time=_time(activity, "last_started_time"),
        last_heartbeat_time=_time(activity, "last_heartbeat_time"),
        next_attempt_time=_time(activity, "next_attempt_schedule_time"),
        last_failure=failure,
    )


def _time(message: Message, field: str) -> dt.datetime | None:
    value: Timestamp = getattr(message, field)
    return value.ToDatetime(dt.UTC) if message.HasField(field) else None
