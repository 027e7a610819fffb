"""Starts of workflows: once for a key, with the result if the client waits."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import TypedSearchAttributes, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import PAUSED
from durably.temporal.gateway.authorization import Access, stamp
from durably.temporal.gateway.call import Call
from durably.temporal.gateway.exposure import Exposure
from durably.temporal.gateway.idempotency import MARK, KeyedRequest, find_repetition, is_repetition, one_request
from durably.temporal.gateway.messages import GatewayResponse, answer, links_to
from durably.temporal.gateway.models import Accepted, Completed, Started
from durably.temporal.gateway.problems import Problem, already_started, internal_error, logger, to_problem
from durably.temporal.gateway.start_options import StartOptions, check_id
from durably.temporal.namespace.inspection import is_open
from durably.temporal.namespace.search_attributes import REGISTER_COMMANDS, commands, indexed_type

from .runs import wait_for_result


@dataclass(frozen=True)
class _Outcome:
    """A new workflow, that of an earlier request, or a running one with the id."""

    handle: WorkflowHandle[Any, Any]
    is_replay: bool = False
    attached_to: WorkflowExecutionStatus | None = None


def choose_id(exposure: Exposure, keyed: KeyedRequest | None, value: Any, principal: Any, access: Access) -> str:
    """The id of a workflow to be started. Raises a problem.

    Without ``id=`` it is random, or derived from the idempotency key: a repeated request finds the same workflow.
    """
    if exposure.id is not None:
        return check_id(exposure.id(value, principal, access.owner))
    return f"{exposure.name}-{uuid.uuid4() if keyed is None else keyed.id}"


def start_options(exposure: Exposure, value: Any, principal: Any) -> StartOptions:
    """The results of the exposure's functions. Raises their exceptions."""
    return StartOptions(
        memo={} if exposure.memo is None else exposure.memo(value, principal),
        search_attributes=exposure.search_attributes and exposure.search_attributes(value, principal),
        start_delay=exposure.start_delay and exposure.start_delay(value, principal),
    )


async def start(call: Call) -> GatewayResponse:
    keyed = call.keyed
    terminates = call.exposure.start_options["id_conflict_policy"] is WorkflowIDConflictPolicy.TERMINATE_EXISTING
    is_checked = call.exposure.attaches or terminates or not call.access.sees_all
    # A random id is new.
    may_exist = keyed is not None or (call.exposure.id is not None and is_checked)
    found = await _start_once(call, keyed) if may_exist else _Outcome(await _start(call))
    run_id = found.handle.result_run_id
    attached = True if found.attached_to is not None else None
    headers = {"location": call.location}
    wait = call.preferred_wait() if "prefer" in call.request.headers else None
    if wait is not None:
        headers["preference_applied"] = f"wait={wait:g}"
        done = await _result_of_started(call, run_id or "", wait)
        if done is not None:
            done = done.model_copy(update={"attached": attached})
            return answer(done, HTTPStatus.OK, is_replay=found.is_replay, **headers)
    status: Literal["running", "paused"] = "paused" if found.attached_to is PAUSED else "running"
    links = links_to(call.location)
    started = Started(workflow_id=call.workflow_id, run_id=run_id, status=status, attached=attached, links=links)
    return answer(started, HTTPStatus.ACCEPTED, is_replay=found.is_replay, **headers)


async def _result_of_started(call: Call, run_id: str, seconds: float) -> Completed[Any] | None:
    """The result; ``None`` also if the server goes down or the owner changes.

    Raises a problem.
    """
    try:
        with call.waiting():
            return await wait_for_result(call, run_id, seconds)
    except (RPCError, Problem) as error:
        problem = to_problem(error)
        if problem.passes or problem.status is HTTPStatus.NOT_FOUND:
            return None
        raise problem from error.__cause__


async def signal_with_start(call: Call) -> GatewayResponse:
    keyed, signal = call.keyed, call.handler
    latest = await _latest(call)
    _check_signal(call, latest)
    is_replay = False
    if keyed is not None and latest is not None and not is_open(latest.status):
        # The server does not store the signals of a closed run, so it would start another one.
        is_replay = await find_repetition(call.history(latest.run_id), keyed)
    if not is_replay:
        with one_request(call.client, keyed):
            handle = await _start(
                call,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal=signal.name,
                start_signal_args=signal.arguments.spread(call.value.signal),
            )
        run_id = handle.result_run_id or ""
        if latest is None or run_id != latest.run_id:
            _check_signal(call, await _describe(call, run_id))
        is_replay = keyed is not None and await is_repetition(call.history(run_id), keyed)
    accepted = Accepted(workflow_id=call.workflow_id, links=links_to(call.location))
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay, location=call.location)


def _check_signal(call: Call, latest: WorkflowExecutionDescription | None) -> None:
    """Raises a problem if the signal would reach a workflow of another type or owner."""
    if latest is None:
        return
    is_other_type = is_open(latest.status) and latest.workflow_type != call.exposure.definition.name
    if is_other_type or not call.reaches(latest):
        raise already_started(call.workflow_id)


async def _start(call: Call, keyed: KeyedRequest | None = None, **changes: Any) -> WorkflowHandle[Any, Any]:
    exposure, options = call.exposure, call.start_options
    value = call.value if "start_signal" not in changes else call.value.input
    memo = {**options.memo, **({} if keyed is None else {MARK: keyed.mark})}
    attributes = options.search_attributes
    if exposure.ownership is not None:
        attributes = stamp(call.access.owner, call.owner_attribute, attributes)
    starting = call.client.start_workflow(
        exposure.definition.name,
        args=exposure.arguments.spread(value),
        id=call.workflow_id,
        task_queue=call.task_queue,
        result_type=exposure.definition.run.result,
        memo=memo or None,
        search_attributes=attributes,
        start_delay=options.start_delay,
        rpc_timeout=call.rpc_timeout,
        **{**exposure.start_options, **changes},
    )
    try:
        return await starting
    except RPCError as error:
        _check_attributes(call, error, attributes)
        raise


_UNREGISTERED = re.compile(r"no mapping defined for search attribute (\S+)")


def _check_attributes(call: Call, error: RPCError, attributes: TypedSearchAttributes | None) -> None:
    """Raises the problem 500 if the server refuses the app's search attributes."""
    message = error.message
    if attributes is None or error.status is not RPCStatusCode.INVALID_ARGUMENT or "attribute" not in message.lower():
        return
    found = _UNREGISTERED.search(message)
    key = next((pair.key for pair in attributes if found and pair.key.name == found[1]), None)
    if found is None or key is None:
        remedy = f"Correct the search_attributes of expose({call.exposure.definition.name})"
    else:
        own = commands(call.client, found[1], indexed_type(key))
        remedy = f"To register it, declare it by key and {REGISTER_COMMANDS}, or {own}"
    logger.error("%s was not started: %s. %s", call.exposure.definition.name, message, remedy)
    raise internal_error() from error


async def _start_once(call: Call, keyed: KeyedRequest | None) -> _Outcome:
    """Start the workflow, or return one that exists.

    The key is stored in the workflow's memo. The first attempt reserves the id, whatever the exposure's policies are:
    they apply only to an id of the same owner that another request has used.
    """
    try:
        handle = await _start(
            call,
            keyed,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        )
        return _Outcome(handle)
    except WorkflowAlreadyStartedError as error:
        latest = await _describe(call, None)
        if (found := await _existing(call, latest, keyed)) is not None:
            return found
        if _refuses_another(call, latest):
            raise error
    return await _start_another(call, keyed)


async def _existing(call: Call, latest: WorkflowExecutionDescription, keyed: KeyedRequest | None) -> _Outcome | None:
    """The workflow with the id; ``None`` if the policies decide about a start.

    Raises a problem for a workflow of another owner, and for a running one of another type: the server would attach to
    it, or terminate it.
    """
    if not call.reaches(latest):
        raise already_started(call.workflow_id)
    if await _was_started_with(call, latest, keyed):
        return _Outcome(_handle_to(call, latest), is_replay=True)
    if not is_open(latest.status):
        return None
    if latest.workflow_type != call.exposure.definition.name:
        raise already_started(call.workflow_id)
    return _Outcome(_handle_to(call, latest), attached_to=latest.status) if call.exposure.attaches else None


def _handle_to(call: Call, execution: WorkflowExecutionDescription) -> WorkflowHandle[Any, Any]:
    """The handle that ``start_workflow`` would return."""
    return WorkflowHandle(
        call.client,
        call.workflow_id,
        result_run_id=execution.run_id,
        first_execution_run_id=execution.raw_info.first_run_id or execution.run_id,
        result_type=call.exposure.result,
    )


async def _start_another(call: Call, keyed: KeyedRequest | None) -> _Outcome:
    """Start the workflow, if the latest workflow with this id allows it."""
    # For the server, simultaneous requests with this key are one, whatever the policies are.
    try:
        with one_request(call.client, keyed):
            handle = await _start(call, keyed)
    except WorkflowAlreadyStartedError:
        # Another request was faster.
        found = await _existing(call, await _describe(call, None), keyed) if call.exposure.attaches else None
        if found is None:
            raise
        return found
    started = await _describe(call, handle.result_run_id)
    if not call.reaches(started):
        raise already_started(call.workflow_id)
    await _was_started_with(call, started, keyed)
    return _Outcome(handle)


async def _latest(call: Call) -> WorkflowExecutionDescription | None:
    try:
        return await _describe(call, None)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and to_problem(error).status is HTTPStatus.NOT_FOUND:
            return None
        raise


async def _describe(call: Call, run_id: str | None) -> WorkflowExecutionDescription:
    handle = call.client.get_workflow_handle(call.workflow_id, run_id=run_id)
    return await handle.describe(rpc_timeout=call.rpc_timeout)


async def _was_started_with(call: Call, execution: WorkflowExecutionDescription, keyed: KeyedRequest | None) -> bool:
    """Whether a request with this key started it. Raises the problem 422."""
    if keyed is None or execution.workflow_type != call.exposure.definition.name:
        return False
    stored = await execution.memo_value(MARK, {})
    # The app's own code may have started it, with any memo.
    if not isinstance(stored, Mapping) or stored.get("key") != keyed.scope:
        return False
    keyed.check_input(stored)
    return True


def _refuses_another(call: Call, latest: WorkflowExecutionDescription) -> bool:
    options = call.exposure.start_options
    if is_open(latest.status):
        return options["id_conflict_policy"] is WorkflowIDConflictPolicy.FAIL
    return options["id_reuse_policy"] is WorkflowIDReusePolicy.REJECT_DUPLICATE
