"""Acting on workflows that run: signals, queries, updates, cancel, terminate, reset."""

import asyncio
import re
import uuid
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import RPCTimeoutOrCancelledError, WorkflowUpdateHandle, WorkflowUpdateStage
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.statuses import is_open

from .call import Call
from .idempotency import fingerprint, idempotency_key, one_request
from .messages import GatewayResponse, answer
from .models import Accepted, QueryAnswer, UpdateAccepted, UpdateDone
from .problems import Problem, bad_request, no_worker, to_problem
from .results import must_fit

T = TypeVar("T")


async def signal(call: Call) -> GatewayResponse:
    name, arguments = call.handler.name, call.handler.arguments.spread(call.value)
    with one_request(call.client, idempotency_key(call.request), name, fingerprint(call.value)):
        await _while_it_runs(call.handle().signal(name, args=arguments, rpc_timeout=call.rpc_timeout))
    return _accepted(call)


async def query(call: Call) -> GatewayResponse:
    handler = call.handler
    asking = call.handle().query(
        handler.name,
        args=handler.arguments.spread(call.value),
        result_type=handler.handler.result,
        rpc_timeout=call.rpc_timeout,
    )
    with must_fit(call, "the answer"):
        return answer(QueryAnswer[Any](result=await _answered(call, asking)))


async def update(call: Call) -> GatewayResponse:
    """POST asks for one and waits for its result, GET asks for the result of an earlier one."""
    wait = call.preferred_wait()
    seconds = call.rpc_timeout.total_seconds() if wait is None else wait
    if call.match.update_id is not None:
        handle: WorkflowUpdateHandle[Any] = call.handle().get_update_handle(
            call.match.update_id, result_type=call.handler.handler.result
        )
        seconds = float(call.integer("wait", 0, 0, 10**9 - 1))
    else:
        handle = await _start_update(call)
    try:
        # At least a moment: the outcome of an update that is over takes a round trip.
        with call.waiting(), must_fit(call, "the result"):
            async with asyncio.timeout(min(max(seconds, 1.0), call.limits.max_wait)):
                value = await handle.result()
    except (TimeoutError, RPCTimeoutOrCancelledError):
        return _update_accepted(call, handle)
    except RPCError as error:
        problem = to_problem(error)
        if call.match.update_id is None and problem.passes:
            # A server that goes away now does not undo what it has accepted.
            return _update_accepted(call, handle)
        raise problem from error
    return answer(UpdateDone[Any](update_id=handle.id, result=value))


def _update_accepted(call: Call, handle: WorkflowUpdateHandle[Any]) -> GatewayResponse:
    location = f"{call.location()}/updates/{call.handler.name}/{quote(handle.id, safe='')}"
    links = call.links().model_copy(update={"result": location})
    return answer(UpdateAccepted(update_id=handle.id, links=links), HTTPStatus.ACCEPTED, location=location)


async def _start_update(call: Call) -> WorkflowUpdateHandle[Any]:
    key = call.request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{1,255}", key):
        raise bad_request("the Idempotency-Key of an update is 1 to 255 letters, digits, or . _ ~ -")
    starting = call.handle().start_update(
        call.handler.name,
        args=call.handler.arguments.spread(call.value),
        id=key or str(uuid.uuid4()),
        wait_for_stage=WorkflowUpdateStage.ACCEPTED,
        result_type=call.handler.handler.result,
        rpc_timeout=call.rpc_timeout,
    )
    return await _while_it_runs(_answered(call, starting))


async def cancel(call: Call) -> GatewayResponse:
    """The server takes the cancellation of a closed workflow silently, so the workflow is looked at first."""
    status = (await call.describe()).status
    if status is not None and not is_open(status):
        raise _closed()
    await _while_it_runs(call.handle().cancel(reason=call.value.reason, rpc_timeout=call.rpc_timeout))
    return _accepted(call)


async def terminate(call: Call) -> GatewayResponse:
    reason = call.value.reason or None
    await _while_it_runs(call.handle().terminate(reason=reason, rpc_timeout=call.rpc_timeout))
    return _accepted(call)


async def reset(call: Call) -> GatewayResponse:
    """Go on from an earlier point, in a new run."""
    run_id = call.request.query("run_id") or (await call.describe()).run_id
    request = ResetWorkflowExecutionRequest(
        namespace=call.client.namespace,
        workflow_execution=WorkflowExecution(workflow_id=call.workflow_id, run_id=run_id),
        reason=call.value.reason,
        workflow_task_finish_event_id=call.value.event_id or await _workflow_task(call, run_id, call.value.to),
        request_id=str(uuid.uuid4()),
        identity=call.client.identity,
    )
    response = await call.client.workflow_service.reset_workflow_execution(request, timeout=call.rpc_timeout)
    accepted = Accepted(workflow_id=call.workflow_id, run_id=response.run_id, links=call.links())
    return answer(accepted, HTTPStatus.ACCEPTED, location=call.location())


async def _workflow_task(call: Call, run_id: str, which: str | None) -> int:
    found = None
    async for event in call.handle(run_id).fetch_history_events(rpc_timeout=call.rpc_timeout):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            found = event.event_id
            if which == "first_workflow_task":
                break
    if found is None:
        raise Problem(HTTPStatus.CONFLICT, "nothing-to-reset", "no worker has begun the workflow yet")
    return found


def _accepted(call: Call) -> GatewayResponse:
    return answer(Accepted(workflow_id=call.workflow_id, links=call.links()), HTTPStatus.ACCEPTED)


async def _while_it_runs(asking: Awaitable[T]) -> T:
    """The server says of a workflow that is over that it is not found, though it can be looked at."""
    try:
        return await asking
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and "completed" in error.message:
            raise _closed() from error
        raise


def _closed() -> Problem:
    return Problem(HTTPStatus.CONFLICT, "workflow-closed", "the workflow is over")


async def _answered(call: Call, asking: Awaitable[T]) -> T:
    """When no worker answers in time, say so if none is there."""
    try:
        return await asking
    except (RPCTimeoutOrCancelledError, RPCError) as error:
        if isinstance(error, RPCError) and error.status not in (
            RPCStatusCode.CANCELLED,
            RPCStatusCode.DEADLINE_EXCEEDED,
        ):
            raise
        notice = await call.inspector.poller_notice(call.client, call.task_queue, call.rpc_timeout)
        if notice is None:
            raise
        raise no_worker(notice.text) from error
