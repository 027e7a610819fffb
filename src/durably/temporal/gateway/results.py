"""Results: at once, or as soon as there is one."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.client import WorkflowFailureError

from durably.temporal.compat import PAUSED
from durably.temporal.scrubbing import scrub
from durably.temporal.statuses import is_open

from .call import Call
from .messages import GatewayResponse, answer
from .models import Completed, Started
from .problems import EXCEPTIONS, Problem, workflow_failed
from .runs import wait_for_last_run

logger = logging.getLogger("durably.temporal")


async def result(call: Call) -> GatewayResponse:
    """``?wait=`` seconds, 0 unless given; 202 while there is none."""
    wait = float(call.integer("wait", 0, 0, 10**9 - 1))
    run_id = call.existing.run_id
    if wait == 0:
        status = (await call.describe()).status
        done = None if is_open(status) else await wait_for_result(call, run_id, call.limits.max_wait)
    else:
        with call.waiting():
            done = await wait_for_result(call, run_id, min(wait, call.limits.max_wait))
        # It may have been paused or resumed while the request waited.
        status = None if done is not None else (await call.describe_run(run_id)).status
    if done is not None:
        return answer(done)
    shown: Literal["running", "paused"] = "paused" if status is PAUSED else "running"
    pending = Started(workflow_id=call.workflow_id, run_id=run_id, status=shown, links=call.links())
    return answer(pending, HTTPStatus.ACCEPTED, location=call.links().result, retry_after="1")


async def wait_for_result(call: Call, run_id: str, seconds: float) -> Completed[Any] | None:
    """The result of a run, or of the last one that follows it; ``None`` if it does not come in time.

    Raises a problem for a workflow that did not complete, and 404 for one that has been handed over or has become
    another type meanwhile.
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
    return Completed[Any](workflow_id=call.workflow_id, run_id=run_id, result=value, links=call.links())


_NO_MISFITS: tuple[type[Exception], ...] = (Problem, TimeoutError, *EXCEPTIONS)


@contextmanager
def must_fit(call: Call, what: str) -> Iterator[None]:
    """While ``what`` is fetched and decoded. If it does not fit its declared type, that is the app's error.

    Lets through what ``temporalio`` raises for other reasons. Raises a problem.
    """
    try:
        yield
    except _NO_MISFITS:
        raise
    except Exception as error:
        place = f"{what} of {call.match.place}"
        logger.error(
            "%s does not fit its declared type, workflow %s: %s", place, call.workflow_id, "; ".join(_misfits(error))
        )
        raise Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "unfit-answer",
            f"{what} does not fit its declared type; the app's log has the details",
        ) from error


def _misfits(error: BaseException) -> list[str]:
    """What does not fit, without the values."""
    while not isinstance(error, ValidationError) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, ValidationError):
        return [f"{type(error).__name__}: {scrub(str(error))}"]
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, each['loc'])) or 'the value'}: {scrub(each['msg'])}" for each in found]
