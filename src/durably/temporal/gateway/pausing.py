"""Pausing workflows and letting them go on: not every server can."""

import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from temporalio.api.workflowservice.v1 import PauseWorkflowExecutionRequest, UnpauseWorkflowExecutionRequest
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import PAUSED

from .call import Call
from .messages import GatewayResponse, answer
from .models import Accepted
from .problems import Problem
from .target import RunClosedError, is_closed


async def pause(call: Call) -> GatewayResponse:
    service = call.client.workflow_service
    if (await call.describe()).status is PAUSED:
        raise Problem(HTTPStatus.CONFLICT, "workflow-paused", "the workflow is paused already")
    return await _send(call, PauseWorkflowExecutionRequest, service.pause_workflow_execution)


async def resume(call: Call) -> GatewayResponse:
    service = call.client.workflow_service
    description = await call.describe()
    if not is_closed(description) and description.status is not PAUSED:
        raise Problem(HTTPStatus.CONFLICT, "workflow-not-paused", "the workflow is not paused")
    return await _send(call, UnpauseWorkflowExecutionRequest, service.unpause_workflow_execution)


async def _send(call: Call, make: Callable[..., Any], ask: Callable[..., Awaitable[Any]]) -> GatewayResponse:
    """Raises the problem 409 for a workflow that is closed, and 501 if the server cannot pause workflows."""
    request_id = str(uuid.uuid4())

    async def send(run: WorkflowHandle[Any, Any]) -> None:
        if is_closed(await call.describe()):
            raise RunClosedError
        request = make(
            namespace=call.client.namespace,
            workflow_id=run.id,
            run_id=run.run_id,
            identity=call.client.identity,
            reason=call.value.reason,
            request_id=request_id,
        )
        await ask(request, timeout=call.rpc_timeout)

    try:
        await call.existing.ask_open_run(send)
    except RPCError as error:
        if error.status is RPCStatusCode.UNIMPLEMENTED:
            raise _unsupported() from error
        raise
    accepted = Accepted(workflow_id=call.workflow_id, links=call.links())
    return answer(accepted, HTTPStatus.ACCEPTED)


def _unsupported() -> Problem:
    return Problem(
        HTTPStatus.NOT_IMPLEMENTED,
        "pause-not-supported",
        "the Temporal server cannot pause workflows: it is too old, or frontend.WorkflowPauseEnabled is off in its "
        "dynamic configuration",
    )
