"""Starting workflows: once for each idempotency key, and with the result if it comes soon enough."""

import re
import uuid
from http import HTTPStatus
from typing import Any

from temporalio.client import WorkflowExecutionDescription, WorkflowHandle
from temporalio.common import TypedSearchAttributes, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.statuses import is_open

from .call import Call
from .exposure import Exposure
from .idempotency import fingerprint, idempotency_key, one_request
from .inputs import check_id
from .messages import GatewayRequest, GatewayResponse, answer
from .models import Accepted, Completed, Started
from .problems import Problem, internal_error, logger, to_problem
from .results import wait_for_result

MARK = "durably-idempotency"
"""The memo's field that tells by which request a workflow was started."""


def choose_id(exposure: Exposure, request: GatewayRequest, value: Any) -> str:
    """From the template; else from the idempotency key, so that a repeated request meets the same workflow."""
    if exposure.id_template is not None:
        return check_id(exposure.id_template.fill(value))
    key = idempotency_key(request)
    made_up = uuid.uuid4() if key is None else uuid.uuid5(uuid.NAMESPACE_OID, f"{exposure.name}\n{key}")
    return f"{exposure.name}-{made_up}"


async def start(call: Call) -> GatewayResponse:
    key = idempotency_key(call.request)
    if key is None:
        handle, is_replay = await _start(call), False
    else:
        handle, is_replay = await _start_once(call, key)
    wait = call.preferred_wait()
    headers = {"location": call.location(), **({"idempotent_replayed": "true"} if is_replay else {})}
    if wait is not None:
        headers["preference_applied"] = f"wait={wait:g}"
        done = await _result_of_started(call, handle, wait)
        if done is not None:
            return answer(done, HTTPStatus.OK, **headers)
    started = Started(workflow_id=call.workflow_id, run_id=handle.result_run_id, links=call.links())
    return answer(started, HTTPStatus.ACCEPTED, **headers)


async def _result_of_started(call: Call, handle: WorkflowHandle[Any, Any], seconds: float) -> Completed[Any] | None:
    """A server that goes away meanwhile takes nothing back: the workflow has been started, and that is the answer."""
    try:
        with call.waiting():
            return await wait_for_result(call, handle, seconds)
    except RPCError as error:
        problem = to_problem(error)
        if not problem.passes:
            raise problem from error
        return None


async def signal_with_start(call: Call) -> GatewayResponse:
    signal = call.handler
    with one_request(call.client, idempotency_key(call.request), signal.name, fingerprint(call.value)):
        await _start(
            call,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal=signal.name,
            start_signal_args=signal.arguments.spread(call.value.signal),
        )
    accepted = Accepted(workflow_id=call.workflow_id, links=call.links())
    return answer(accepted, HTTPStatus.ACCEPTED, location=call.location())


async def _start(call: Call, mark: dict[str, str] | None = None, **changes: Any) -> WorkflowHandle[Any, Any]:
    exposure = call.exposure
    value = call.value if "start_signal" not in changes else call.value.input
    memo = {**(exposure.memo(value) if exposure.memo else {}), **({MARK: mark} if mark else {})}
    options = {**exposure.start_options, **changes}
    if exposure.search_attributes is not None:
        options["search_attributes"] = exposure.search_attributes(value)
    starting = call.client.start_workflow(
        exposure.definition.name,
        args=exposure.arguments.spread(value),
        id=call.workflow_id,
        task_queue=call.task_queue,
        result_type=exposure.result,
        memo=memo or None,
        rpc_timeout=call.rpc_timeout,
        **options,
    )
    try:
        return await starting
    except RPCError as error:
        _check_attributes(call, error, options.get("search_attributes"))
        raise


_UNREGISTERED = re.compile(r"no mapping defined for search attribute (\S+)")


def _check_attributes(call: Call, error: RPCError, attributes: TypedSearchAttributes | None) -> None:
    """Raise a problem if the server refuses the search attributes: the app chose them, not the caller."""
    said = error.message
    if attributes is None or error.status is not RPCStatusCode.INVALID_ARGUMENT or "attribute" not in said.lower():
        return
    namespace, found = call.client.namespace, _UNREGISTERED.search(said)
    kind = next((pair.key for pair in attributes if found and pair.key.name == found[1]), None)
    if found is None or kind is None:
        remedy = f"Correct the search_attributes of expose({call.exposure.definition.name})"
    else:
        of = kind.indexed_value_type.name.title().replace("_", "")
        options = f"--namespace {namespace} --name {found[1]} --type {of}"
        remedy = f"Register it: temporal operator search-attribute create {options}"
    logger.error("%s was not started: %s. %s", call.exposure.definition.name, said, remedy)
    raise internal_error() from error


async def _start_once(call: Call, key: str) -> tuple[WorkflowHandle[Any, Any], bool]:
    """Start, unless a request with the same key did so already: then that one's workflow, and ``True``.

    The workflow carries the key in its memo, so that a later request can tell. The id is first asked for as if it could
    be used only once; what the exposure allows counts after it is clear that the key is another one.
    """
    mark = {"key": key, "input": fingerprint(call.value)}
    try:
        handle = await _start(
            call,
            mark,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        )
        return handle, False
    except WorkflowAlreadyStartedError as error:
        latest = await _describe(call, None)
        if await _was_started_with(call, latest, mark):
            return call.handle(latest.run_id), True
        if _refuses_another(call, latest):
            raise error
    # Requests with this key that come this far at the same time are one to the server, whatever the policies are.
    with one_request(call.client, key):
        handle = await _start(call, mark)
    await _was_started_with(call, await _describe(call, handle.result_run_id), mark)
    return handle, False


async def _describe(call: Call, run_id: str | None) -> WorkflowExecutionDescription:
    handle = call.client.get_workflow_handle(call.workflow_id, run_id=run_id)
    return await handle.describe(rpc_timeout=call.rpc_timeout)


async def _was_started_with(call: Call, execution: WorkflowExecutionDescription, mark: dict[str, str]) -> bool:
    """Whether a request with the same key started it. Raises a problem if that had another input."""
    if execution.workflow_type != call.exposure.definition.name:
        return False
    theirs = await execution.memo_value(MARK, {})
    if theirs.get("key") != mark["key"]:
        return False
    if theirs.get("input") != mark["input"]:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "this Idempotency-Key came with another input before",
        )
    return True


def _refuses_another(call: Call, latest: WorkflowExecutionDescription) -> bool:
    options = call.exposure.start_options
    if is_open(latest.status):
        return options["id_conflict_policy"] is WorkflowIDConflictPolicy.FAIL
    return options["id_reuse_policy"] is WorkflowIDReusePolicy.REJECT_DUPLICATE
