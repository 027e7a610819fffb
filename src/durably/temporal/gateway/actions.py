"""Signals, queries, updates, cancel, terminate, reset, pause, resume."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
)
from temporalio.client import (
    RPCTimeoutOrCancelledError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import PAUSED
from durably.temporal.namespace import missing_worker

from .authorization import owner_of
from .call import CLOSED, Call, RunClosedError, is_closed
from .idempotency import find_repetition, find_update_name, is_repetition, one_request
from .messages import Accepted, GatewayResponse, Links, QueryAnswer, UpdateAccepted, UpdateDone, answer
from .problems import Problem, no_worker, not_found, to_problem
from .runs import must_fit

T = TypeVar("T")


async def signal(call: Call) -> GatewayResponse:
    name, arguments = call.handler.name, call.handler.spread(call.value)

    async def send(run: WorkflowHandle[Any, Any]) -> None:
        with one_request(call.client, call.keyed):
            await run.signal(name, args=arguments, rpc_timeout=call.rpc_timeout)

    _, is_replay = await _ask_once(call, send)
    return _accepted(call, is_replay)


async def _ask_once(call: Call, ask: Callable[[WorkflowHandle[Any, Any]], Awaitable[T]]) -> tuple[T | None, bool]:
    """The result of ``ask``, and whether the key is repeated. Raises problems.

    The result is ``None`` if the workflow has closed since that request: then the server no longer compares ids.
    """
    try:
        asked = await call.ask_open_run(ask)
    except Problem as problem:
        if call.keyed is None or problem.kind != CLOSED:
            raise
        if not await find_repetition(call.history(), call.keyed):
            raise
        return None, True
    return asked, call.keyed is not None and await is_repetition(call.history(), call.keyed)


async def query(call: Call) -> GatewayResponse:
    handler = call.handler
    asking = call.handle().query(
        handler.name,
        args=handler.spread(call.value),
        result_type=handler.result,
        rpc_timeout=call.rpc_timeout,
    )
    with must_fit(call, "the answer"):
        return answer(QueryAnswer[Any](result=await _answered(call, asking)))


async def update(call: Call) -> GatewayResponse:
    """Wait for the result of a new update (POST) or of an earlier one (GET)."""
    wait = call.preferred_wait()
    seconds = call.rpc_timeout.total_seconds() if wait is None else wait
    update_id = call.ids.get("update_id")
    if update_id is not None:
        handle, is_replay = _earlier_update(call, update_id), False
        seconds = float(call.params["wait"])
    else:
        handle, is_replay = await _start_update(call)
    try:
        # At least a second: the outcome of a completed update takes a round trip.
        with call.waiting(), must_fit(call, "the result"):
            async with asyncio.timeout(min(max(seconds, 1.0), call.limits.max_wait)):
                value = await _outcome(call, handle)
    except (TimeoutError, RPCTimeoutOrCancelledError):
        return _update_accepted(call, handle, is_replay)
    except RPCError as error:
        problem = to_problem(error)
        if update_id is None and problem.passes:
            # The server has accepted the update before it went down.
            return _update_accepted(call, handle, is_replay)
        raise problem from error
    return answer(UpdateDone[Any](update_id=handle.id, result=value), is_replay=is_replay)


async def _outcome(call: Call, handle: WorkflowUpdateHandle[Any]) -> Any:
    """The result. Raises the problem 404 for an update with another name.

    The name is compared last: the history contains an update once a worker has accepted it.
    """
    value, failure = None, None
    try:
        value = await handle.result()
    except WorkflowUpdateFailedError as error:
        failure = error
    if update_id := call.ids.get("update_id"):
        name = await find_update_name(call.history(), update_id)
        if name not in (None, call.handler.name):
            raise not_found("there is no such update here")
    if failure is not None:
        raise failure
    return value


def _earlier_update(call: Call, update_id: str) -> WorkflowUpdateHandle[Any]:
    return call.handle().get_update_handle(update_id, result_type=call.handler.result)


def _update_accepted(call: Call, handle: WorkflowUpdateHandle[Any], is_replay: bool) -> GatewayResponse:
    location = f"{call.location}/updates/{call.handler.name}/{quote(handle.id, safe='')}"
    links = Links.of(call.location).model_copy(update={"result": location})
    accepted = UpdateAccepted(update_id=handle.id, links=links)
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay, location=location)


async def _start_update(call: Call) -> tuple[WorkflowUpdateHandle[Any], bool]:
    update_id = str(uuid.uuid4()) if call.keyed is None else call.keyed.id

    async def start(run: WorkflowHandle[Any, Any]) -> WorkflowUpdateHandle[Any]:
        with one_request(call.client, call.keyed):
            return await run.start_update(
                call.handler.name,
                args=call.handler.spread(call.value),
                id=update_id,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                result_type=call.handler.result,
                rpc_timeout=call.rpc_timeout,
            )

    handle, is_replay = await _answered(call, _ask_once(call, start))
    return handle or _earlier_update(call, update_id), is_replay


async def _answered(call: Call, asking: Awaitable[T]) -> T:
    """The result of ``asking``. Raises a problem if no worker is running."""
    try:
        return await asking
    except (RPCTimeoutOrCancelledError, RPCError) as error:
        if isinstance(error, RPCError) and error.status not in (
            RPCStatusCode.CANCELLED,
            RPCStatusCode.DEADLINE_EXCEEDED,
        ):
            raise
        missing = await missing_worker(call.client, call.task_queue, call.rpc_timeout)
        if missing is None:
            raise
        raise no_worker(missing) from error


async def cancel(call: Call) -> GatewayResponse:
    """Cancel, and describe the run before and after: closed runs accept it too."""

    async def send(run: WorkflowHandle[Any, Any]) -> None:
        if is_closed(await call.describe()):
            raise RunClosedError
        await run.cancel(reason=call.value.reason, rpc_timeout=call.rpc_timeout)
        after = await run.describe(rpc_timeout=call.rpc_timeout)
        if is_closed(after) and not after.raw_description.workflow_extended_info.cancel_requested:
            raise RunClosedError

    await call.ask_open_run(send)
    return _accepted(call)


async def terminate(call: Call) -> GatewayResponse:
    reason = call.value.reason or None
    await call.ask_open_run(lambda run: run.terminate(reason=reason, rpc_timeout=call.rpc_timeout))
    return _accepted(call)


def _accepted(call: Call, is_replay: bool = False) -> GatewayResponse:
    accepted = Accepted(workflow_id=call.workflow_id, links=Links.of(call.location))
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay)


async def reset(call: Call) -> GatewayResponse:
    """Continue from an earlier point, in a new run.

    A reset of any run ends the latest run. The latest run must have the same owner, for staff too.
    """
    run_id = call.run_id
    if call.params["run_id"]:
        await _check_latest_owner(call)
    event_id = call.value.event_id or await _workflow_task(call, run_id, call.value.to)
    if call.exposure.owner is not None:
        await _check_owner_before(call, run_id, event_id)
    request = ResetWorkflowExecutionRequest(
        namespace=call.client.namespace,
        workflow_execution=WorkflowExecution(workflow_id=call.workflow_id, run_id=run_id),
        reason=call.value.reason,
        workflow_task_finish_event_id=event_id,
        request_id=str(uuid.uuid4()),
        identity=call.client.identity,
    )
    response = await call.client.workflow_service.reset_workflow_execution(request, timeout=call.rpc_timeout)
    accepted = Accepted(workflow_id=call.workflow_id, run_id=response.run_id, links=Links.of(call.location))
    return answer(accepted, HTTPStatus.ACCEPTED, location=call.location)


async def _check_latest_owner(call: Call) -> None:
    """Raises a problem if the latest run has another owner than this run."""
    latest = await call.describe_run(None)
    if call.exposure.owner is None:
        return
    attribute = call.services.owner_attribute
    if owner_of(latest, attribute) != owner_of(await call.describe(), attribute):
        raise Problem(
            HTTPStatus.CONFLICT,
            "handed-over",
            "the latest run of the workflow has another owner than this run: reset the latest run. A reset of this "
            "run would end it, and the former owner would get the workflow back",
        )


async def _check_owner_before(call: Call, run_id: str, event_id: int) -> None:
    """Raises a problem if the owner has changed after the event.

    A reset would give the run back to its former owner, with the current owner's signals.
    """
    async for events in call.history(run_id).pages():
        for event in events:
            if event.event_id <= event_id:
                return
            upserted = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            if call.services.owner_attribute in upserted:
                raise Problem(
                    HTTPStatus.CONFLICT,
                    "handed-over",
                    f"event {event.event_id} changed the owner: reset to a later event, or the former owner would get "
                    "the workflow back",
                )


async def _workflow_task(call: Call, run_id: str, which: str | None) -> int:
    """The id of the event to reset to. Raises a problem."""
    found = None
    async for event in call.handle(run_id).fetch_history_events(rpc_timeout=call.rpc_timeout):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            found = event.event_id
            if which == "first_workflow_task":
                break
    if found is None:
        raise Problem(HTTPStatus.CONFLICT, "nothing-to-reset", "no worker has started the workflow yet")
    return found


async def set_paused(call: Call, is_paused: bool) -> GatewayResponse:
    """Pause or resume. Raises the problem 409 for a workflow that is closed or already so, or 501 for an old server."""
    request_id, service = str(uuid.uuid4()), call.client.workflow_service
    make: Any = PauseWorkflowExecutionRequest if is_paused else UnpauseWorkflowExecutionRequest
    ask: Any = service.pause_workflow_execution if is_paused else service.unpause_workflow_execution

    async def send(run: WorkflowHandle[Any, Any]) -> None:
        description = await call.describe()
        if is_closed(description):
            raise RunClosedError
        if (description.status is PAUSED) is is_paused:
            kind, detail = ("workflow-paused", "already") if is_paused else ("workflow-not-paused", "not")
            raise Problem(HTTPStatus.CONFLICT, kind, f"the workflow is {detail} paused")
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
        await call.ask_open_run(send)
    except RPCError as error:
        if error.status is not RPCStatusCode.UNIMPLEMENTED:
            raise
        raise Problem(
            HTTPStatus.NOT_IMPLEMENTED,
            "pause-not-supported",
            "the Temporal server cannot pause workflows: it is too old, or frontend.WorkflowPauseEnabled is off in its "
            "dynamic configuration",
        ) from error
    return _accepted(call)
