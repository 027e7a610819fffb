"""Results: at once, or as soon as there is one."""

import asyncio
from http import HTTPStatus
from typing import Any

from temporalio.client import WorkflowFailureError, WorkflowHandle

from durably.temporal.statuses import is_open

from .call import Call
from .messages import GatewayResponse, answer
from .models import Completed, Started
from .problems import workflow_failed


async def result(call: Call) -> GatewayResponse:
    """``?wait=`` seconds, 0 unless given; 202 while there is none."""
    wait = float(call.integer("wait", 0, 0, 10**9 - 1))
    handle = call.handle()
    if wait == 0:
        is_over = not is_open((await call.describe()).status)
        done = await wait_for_result(call, handle, call.limits.max_wait) if is_over else None
    else:
        with call.waiting():
            done = await wait_for_result(call, handle, min(wait, call.limits.max_wait))
    if done is not None:
        return answer(done)
    pending = Started(workflow_id=call.workflow_id, run_id=handle.run_id, links=call.links())
    return answer(pending, HTTPStatus.ACCEPTED, location=call.links().result, retry_after="1")


async def wait_for_result(call: Call, handle: WorkflowHandle[Any, Any], seconds: float) -> Completed[Any] | None:
    """``None`` if it does not come in time. Raises a problem for a workflow that did not complete."""
    try:
        async with asyncio.timeout(seconds):
            value = await handle.result()
    except TimeoutError:
        return None
    except WorkflowFailureError as error:
        which = {"workflow_id": call.workflow_id, "run_id": handle.result_run_id or handle.run_id}
        named = {name: value for name, value in which.items() if value is not None}
        raise workflow_failed(error, **named) from error
    run_id = handle.result_run_id or handle.run_id
    return Completed[Any](workflow_id=call.workflow_id, run_id=run_id, result=value, links=call.links())
