"""Whether a signal or update repeats an earlier one. The server does not report it, so the history is searched.

The history is read newest first, so that a new request is found at once and costs one request to the server more.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from temporalio.api.common.v1 import Header, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import Request
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.service import RPCError

from .call import Call
from .idempotency import KeyedRequest
from .problems import to_problem

_FIRST_PAGE, _PAGE = 20, 500

_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between looks at the history. A server holds signals back while a worker processes a task of the workflow."""


async def is_repetition(call: Call, run_id: str, keyed: KeyedRequest) -> bool:
    """Whether the stored request with this key was made by an earlier request. Raises a problem for another input.

    ``False`` too if the server still keeps it back after a second, or goes away: it has accepted the request.
    """
    try:
        return await _look(call, run_id, keyed)
    except RPCError as error:
        if to_problem(error).passes:
            return False
        raise


async def _look(call: Call, run_id: str, keyed: KeyedRequest) -> bool:
    seen = 0
    for pause in (*_PAUSES, None):
        newest: HistoryEvent | None = None
        async for events in pages_backwards(call, run_id):
            newest = newest or events[0]
            if (found := _find(events, keyed)) is not None:
                return found
            if events[-1].event_id <= seen:
                break
            if pause is not None and newest.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
                break  # It is kept back rather than older, so that the rest of the history is read as a last resort.
        else:
            seen = newest.event_id if newest is not None else 0
        if pause is not None:
            await asyncio.sleep(pause)
    return False


async def find_repetition(call: Call, run_id: str, keyed: KeyedRequest) -> bool:
    """Whether a run that is closed has had a request with this key. Raises a problem for another input."""
    async for events in pages_backwards(call, run_id):
        if _find(events, keyed) is not None:
            return True
    return False


async def find_update_name(call: Call, run_id: str, update_id: str) -> str | None:
    """The name of an update that a run has accepted; ``None`` if the history does not have it, or not yet."""
    async for events in pages_backwards(call, run_id):
        for event in events:
            request = _update_request(event)
            if request is not None and request.meta.update_id == update_id:
                return request.input.name
    return None


def _update_request(event: HistoryEvent) -> Request | None:
    if event.HasField("workflow_execution_update_accepted_event_attributes"):
        return event.workflow_execution_update_accepted_event_attributes.accepted_request
    if event.HasField("workflow_execution_update_admitted_event_attributes"):  # A reset has copied it.
        return event.workflow_execution_update_admitted_event_attributes.request
    return None


def _find(events: Sequence[HistoryEvent], keyed: KeyedRequest) -> bool | None:
    for event in events:
        header = _header(event)
        if header is not None and (repeated := keyed.is_repeated_by(header)) is not None:
            return repeated
    return None


def _header(event: HistoryEvent) -> Header | None:
    if event.HasField("workflow_execution_signaled_event_attributes"):
        return event.workflow_execution_signaled_event_attributes.header
    if event.HasField("workflow_execution_update_accepted_event_attributes"):
        return event.workflow_execution_update_accepted_event_attributes.accepted_request.input.header
    return None


async def pages_backwards(call: Call, run_id: str) -> AsyncIterator[Sequence[HistoryEvent]]:
    """The events of a run, the newest first."""
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=call.client.namespace,
        execution=WorkflowExecution(workflow_id=call.workflow_id, run_id=run_id),
        maximum_page_size=_FIRST_PAGE,
    )
    while True:
        page = await call.client.workflow_service.get_workflow_execution_history_reverse(
            request, timeout=call.rpc_timeout
        )
        if page.history.events:
            yield page.history.events
        if not page.next_page_token:
            return
        request.next_page_token, request.maximum_page_size = page.next_page_token, _PAGE
