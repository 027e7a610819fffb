"""The runs of a workflow, one after another: continue-as-new, retries, cron and resets.

A reader's position is a run and an event of it, since each run numbers its events from 1.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from temporalio.api.enums.v1 import ContinueAsNewInitiator, EventType, RetryState, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHistoryEventFilterType,
)
from temporalio.service import RPCError, RPCStatusCode

from .call import Call
from .problems import to_problem

Cause = Literal["continue_as_new", "retry", "cron", "reset"]

_POSITION = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(end|[0-9]{1,9})")
_INITIATORS: dict[int, Cause] = {
    ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY: "retry",
    ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE: "cron",
}


@dataclass(frozen=True)
class Position:
    """The last event of a run that a reader has; ``is_end`` after the workflow's result."""

    run_id: str
    event_id: int = 0
    is_end: bool = False

    def __str__(self) -> str:
        return f"{self.run_id}:{'end' if self.is_end else self.event_id}"


def parse_position(text: str) -> Position | None:
    found = _POSITION.fullmatch(text)
    if found is None:
        return None
    return Position(found[1], is_end=True) if found[2] == "end" else Position(found[1], int(found[2]))


@dataclass(frozen=True)
class NextRun:
    """``position`` is behind the events that a reset has copied from the run before."""

    position: Position
    cause: Cause


async def find_run(call: Call, position: Position) -> WorkflowExecutionDescription | None:
    """The run of a reader's position, or ``None`` if the workflow does not have it, or it is not to be seen."""
    try:
        found = await call.describe_run(position.run_id)
    except Exception as error:
        problem = to_problem(error)
        if problem.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            return None
        raise problem from error
    return found if _first_run(found) == _first_run(await call.describe()) else None


async def wait_for_last_run(call: Call, run_id: str) -> str:
    """Wait until the workflow is over; the id of its last run, which has the result.

    ``run_id`` has been checked. Each run that follows is checked before it is waited for, and the last one again, since
    it may have been handed over meanwhile. Raises the problem 404 for a run that is not to be seen.
    """
    while (following := _successor(await _closing_event(call, run_id))) is not None:
        run_id = following.position.run_id
        await call.describe_run(run_id)
    if call.exposure.ownership is not None:
        await call.describe_run(run_id)
    return run_id


async def _closing_event(call: Call, run_id: str) -> RawEvent:
    """Waits for it."""
    kind = WorkflowHistoryEventFilterType.CLOSE_EVENT
    while True:
        handle = call.handle(run_id)
        async for event in handle.fetch_history_events(wait_new_event=True, event_filter_type=kind, skip_archival=True):
            return event


async def next_run(call: Call, run_id: str, last: RawEvent | None) -> NextRun | None:
    """The run that follows one that is closed; ``None`` at the end of the workflow.

    ``last`` is the closing event; ``None`` if the run is known to have no successor but by a reset.
    """
    following = None if last is None else _successor(last)
    if following is None:
        following = await _reset_of(call, run_id)
    if following is not None:
        # It may be of another type, or of another owner.
        await call.describe_run(following.position.run_id)
    return following


def _successor(last: RawEvent) -> NextRun | None:
    """What the closing event itself names."""
    attributes = getattr(last, last.WhichOneof("attributes") or "", None)
    run_id = getattr(attributes, "new_execution_run_id", "")
    if not run_id:
        return None
    if last.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
        return NextRun(Position(run_id), _INITIATORS.get(getattr(attributes, "initiator", 0), "continue_as_new"))
    is_retry = getattr(attributes, "retry_state", None) == RetryState.RETRY_STATE_IN_PROGRESS
    return NextRun(Position(run_id), "retry" if is_retry else "cron")


async def _reset_of(call: Call, run_id: str) -> NextRun | None:
    description = await call.describe_run(run_id)
    reset = description.raw_description.workflow_extended_info.reset_run_id
    if not reset and description.status is WorkflowExecutionStatus.TERMINATED:
        # The reset of an earlier run ends the latest one, which does not name its successor.
        latest = await call.describe_run(None)
        if latest.run_id != run_id and _first_run(latest) == _first_run(description):
            reset = await _reset_that_ended(call, run_id, latest.run_id)
    if not reset:
        return None
    marker = await _reset_marker(call, reset)
    return NextRun(Position(reset, marker.copied if marker else 0), "reset")


async def _reset_that_ended(call: Call, run_id: str, latest: str) -> str:
    """The run that a reset made when it ended the run ``run_id``; ``latest`` if the workflow has too many runs.

    Both have runs before them. The last reset before these meet is the one.
    """
    before = {each async for each, _ in _backwards(call, run_id)}
    found = latest
    async for each, is_reset in _backwards(call, latest):
        if each in before:
            return found
        if is_reset:
            found = each
    return latest


_MAXIMUM_RUNS = 100


async def _backwards(call: Call, run_id: str) -> AsyncIterator[tuple[str, bool]]:
    """A run and those before it, which were continued or reset, and whether each was made by a reset."""
    for _ in range(_MAXIMUM_RUNS):
        started = await _started(call, run_id)
        if started is None:
            return
        is_reset = started.original_execution_run_id not in ("", run_id)
        yield run_id, is_reset
        marker = await _reset_marker(call, run_id) if is_reset else None
        run_id = marker.base_run_id if marker else started.continued_execution_run_id
        if not run_id:
            return


async def _started(call: Call, run_id: str) -> WorkflowExecutionStartedEventAttributes | None:
    """``None`` if the server keeps the run no longer."""
    try:
        async for event in call.handle(run_id).fetch_history_events(page_size=1, rpc_timeout=call.rpc_timeout):
            return event.workflow_execution_started_event_attributes
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
    return None


@dataclass(frozen=True)
class _ResetMarker:
    """What a reset writes into the new run: after how many copied events, and of which run they are."""

    copied: int
    base_run_id: str


async def _reset_marker(call: Call, run_id: str) -> _ResetMarker | None:
    async for event in call.handle(run_id).fetch_history_events(rpc_timeout=call.rpc_timeout):
        failed = event.workflow_task_failed_event_attributes
        if (
            failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
            and failed.new_run_id == run_id
        ):
            return _ResetMarker(event.event_id - 1, failed.base_run_id)
    return None


def _first_run(description: WorkflowExecutionDescription) -> str:
    return description.raw_info.first_run_id
