"""The runs of a workflow, one after another, and its result.

Runs follow each other by continue-as-new, retries, cron and resets. A client's position is a run and an event, because
each run numbers its events from 1.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.api.enums.v1 import ContinueAsNewInitiator, EventType, RetryState
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowFailureError,
    WorkflowHistoryEventFilterType,
)

from durably.temporal.compat import PAUSED
from durably.temporal.errors import scrub
from durably.temporal.namespace import is_open

from .call import Call
from .messages import Completed, GatewayResponse, Links, Started, answer
from .problems import EXCEPTIONS, Problem, logger, to_problem, workflow_failed


async def result(call: Call) -> GatewayResponse:
    """The result, after at most ``?wait=`` seconds (0 by default), or 202."""
    wait = float(call.params["wait"])
    run_id = call.run_id
    if wait == 0:
        status = (await call.describe()).status
        done = None if is_open(status) else await wait_for_result(call, run_id, call.limits.max_wait)
    else:
        with call.waiting():
            done = await wait_for_result(call, run_id, min(wait, call.limits.max_wait))
        # It may have been paused or resumed during the wait.
        status = None if done is not None else (await call.describe_run(run_id)).status
    if done is not None:
        return answer(done)
    shown: Literal["running", "paused"] = "paused" if status is PAUSED else "running"
    pending = Started(workflow_id=call.workflow_id, run_id=run_id, status=shown, links=Links.of(call.location))
    return answer(pending, HTTPStatus.ACCEPTED, location=pending.links.result, retry_after="1")


async def wait_for_result(call: Call, run_id: str, seconds: float) -> Completed[Any] | None:
    """The result of the last run that follows a run; ``None`` after ``seconds``.

    Raises a problem for a workflow that did not complete, and 404 if its owner or type changed during the wait.
    """
    try:
        with must_fit(call, "the result"):
            async with asyncio.timeout(seconds):
                run_id = await wait_for_last_run(call, run_id)
                value = await call.handle(run_id).result(follow_runs=False)
    except TimeoutError:
        return None
    except WorkflowFailureError as error:
        raise workflow_failed(error, workflow_id=call.workflow_id, run_id=run_id) from error
    return Completed[Any](workflow_id=call.workflow_id, run_id=run_id, result=value, links=Links.of(call.location))


@contextmanager
def must_fit(call: Call, what: str) -> Iterator[None]:
    """A context in which ``what`` is fetched and decoded.

    Raises the problem 500 if the value does not have its declared type, which is an error of the app. Other exceptions
    of ``temporalio`` are not caught.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (Problem, TimeoutError, *EXCEPTIONS)):
            raise
        place = f"{what} of {call.endpoint.label}"
        logger.error(
            "%s does not fit its declared type, workflow %s: %s", place, call.workflow_id, "; ".join(_misfits(error))
        )
        raise Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "unfit-answer",
            f"{what} does not fit its declared type; the app's log has the details",
        ) from error


def _misfits(error: BaseException) -> list[str]:
    """The errors, without the values."""
    while not isinstance(error, ValidationError) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, ValidationError):
        return [f"{type(error).__name__}: {scrub(str(error))}"]
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, each['loc'])) or 'the value'}: {scrub(each['msg'])}" for each in found]


Cause = Literal["continue_as_new", "retry", "cron", "reset"]

_POSITION = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(end|[0-9]{1,9})")

_INITIATORS: dict[int, Cause] = {
    ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY: "retry",
    ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE: "cron",
}


@dataclass(frozen=True)
class Position:
    """The last event that a client has received. ``is_end`` is after the result."""

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
    run_id: str
    cause: Cause


async def find_run(call: Call, position: Position) -> WorkflowExecutionDescription | None:
    """The run of a position; ``None`` if it is not a run of this workflow."""
    try:
        found = await call.describe_run(position.run_id)
    except Exception as error:
        problem = to_problem(error)
        if problem.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            return None
        raise problem from error
    return found if found.raw_info.first_run_id == (await call.describe()).raw_info.first_run_id else None


async def wait_for_last_run(call: Call, run_id: str) -> str:
    """Wait for the end of the workflow. Returns its last run, with the result.

    The caller has checked ``run_id``. Each following run is checked before the wait for it. The last one is checked
    again after it: the owner may have changed. Raises the problem 404 for a run that the principal cannot reach.
    """
    while (following := _successor(await _closing_event(call, run_id))) is not None:
        run_id = following.run_id
        await call.describe_run(run_id)
    if call.exposure.owner is not None:
        await call.describe_run(run_id)
    return run_id


async def _closing_event(call: Call, run_id: str) -> RawEvent:
    """Waits for the event."""
    kind = WorkflowHistoryEventFilterType.CLOSE_EVENT
    while True:
        handle = call.handle(run_id)
        async for event in handle.fetch_history_events(wait_new_event=True, event_filter_type=kind, skip_archival=True):
            return event


async def next_run(call: Call, run_id: str, last: RawEvent | None) -> NextRun | None:
    """The run that follows a closed run; ``None`` at the end of the workflow.

    ``last`` is the closing event; ``None`` if only a reset can have made a successor.
    """
    following = None if last is None else _successor(last)
    if following is None:
        extended = (await call.describe_run(run_id)).raw_description.workflow_extended_info
        following = NextRun(extended.reset_run_id, "reset") if extended.reset_run_id else None
    if following is not None:
        # It may have another type or owner.
        await call.describe_run(following.run_id)
    return following


def _successor(last: RawEvent) -> NextRun | None:
    """The run that the closing event names."""
    attributes = getattr(last, last.WhichOneof("attributes") or "", None)
    run_id = getattr(attributes, "new_execution_run_id", "")
    if not run_id:
        return None
    if last.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
        return NextRun(run_id, _INITIATORS.get(getattr(attributes, "initiator", 0), "continue_as_new"))
    is_retry = getattr(attributes, "retry_state", None) == RetryState.RETRY_STATE_IN_PROGRESS
    return NextRun(run_id, "retry" if is_retry else "cron")
