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
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.namespace import REGISTER_COMMANDS, commands, indexed_type, is_open, owned_by

from .call import Call, StartValues
from .idempotency import MARK, find_repetition, is_repetition, one_request
from .inputs import check_id
from .messages import Accepted, Completed, GatewayResponse, Links, Started, answer
from .problems import Problem, already_started, internal_error, logger, to_problem
from .runs import wait_for_result


def choose_id(call: Call) -> str:
    """The id of a workflow to be started. Raises a problem.

    Without ``id=`` it is random, or derived from the idempotency key: a repeated request finds the same workflow.
    """
    if call.exposure.id is not None:
        return check_id(call.exposure.id(call.start_input, call.request.principal, call.access.owner))
    return f"{call.exposure.name}-{uuid.uuid4() if call.keyed is None else call.keyed.id}"


def start_values(call: Call) -> StartValues:
    """The results of the exposure's functions, which may need the request's context. Raises their exceptions."""
    exposure, value, principal = call.exposure, call.start_input, call.request.principal
    return StartValues(
        memo={} if exposure.memo is None else exposure.memo(value, principal),
        search_attributes=exposure.search_attributes and exposure.search_attributes(value, principal),
        start_delay=exposure.start_delay and exposure.start_delay(value, principal),
    )


@dataclass(frozen=True)
class _Outcome:
    """A new workflow, that of an earlier request, or a running one with the id."""

    handle: WorkflowHandle[Any, Any]
    is_replay: bool = False
    attached_to: WorkflowExecutionStatus | None = None


async def start(call: Call) -> GatewayResponse:
    terminates = call.exposure.start_options["id_conflict_policy"] is WorkflowIDConflictPolicy.TERMINATE_EXISTING
    is_checked = call.exposure.attaches or terminates or not call.access.sees_all
    # A random id is new.
    may_exist = call.keyed is not None or (call.exposure.id is not None and is_checked)
    found = await _start_once(call) if may_exist else _Outcome(await _start(call))
    run_id = found.handle.result_run_id
    attached = True if found.attached_to is not None else None
    headers = {"location": call.location}
    if (wait := call.preferred_wait()) is not None:
        headers["preference_applied"] = f"wait={wait:g}"
        done = await _result_of_started(call, run_id or "", wait)
        if done is not None:
            done = done.model_copy(update={"attached": attached})
            return answer(done, HTTPStatus.OK, is_replay=found.is_replay, **headers)
    status: Literal["running", "paused"] = "paused" if found.attached_to is PAUSED else "running"
    links = Links.of(call.location)
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


async def _start_once(call: Call) -> _Outcome:
    """Start the workflow, or return one that exists.

    The key is stored in the workflow's memo. The first attempt reserves the id, whatever the exposure's policies are:
    they apply only to an id of the same owner that another request has used.
    """
    options = call.exposure.start_options
    try:
        handle = await _start(
            call,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        )
        return _Outcome(handle)
    except WorkflowAlreadyStartedError as error:
        latest = await _describe(call, None)
        if (found := await _existing(call, latest)) is not None:
            return found
        is_refused = (
            options["id_conflict_policy"] is WorkflowIDConflictPolicy.FAIL
            if is_open(latest.status)
            else options["id_reuse_policy"] is WorkflowIDReusePolicy.REJECT_DUPLICATE
        )
        if is_refused:
            raise error
    # Start another one. For the server, simultaneous requests with this key are one, whatever the policies are.
    try:
        with one_request(call.client, call.keyed):
            handle = await _start(call)
    except WorkflowAlreadyStartedError:
        # Another request was faster.
        if call.exposure.attaches and (found := await _existing(call, await _describe(call, None))) is not None:
            return found
        raise
    started = await _describe(call, handle.result_run_id)
    if not call.reaches(started):
        raise already_started(call.workflow_id)
    await _was_started_with_key(call, started)
    return _Outcome(handle)


async def _existing(call: Call, latest: WorkflowExecutionDescription) -> _Outcome | None:
    """The workflow with the id; ``None`` if the policies decide about a start.

    Raises a problem for a workflow of another owner, and for a running one of another type: the server would attach to
    it, or terminate it.
    """
    if not call.reaches(latest):
        raise already_started(call.workflow_id)
    is_replay = await _was_started_with_key(call, latest)
    if not is_replay and not is_open(latest.status):
        return None
    if not is_replay and latest.workflow_type != call.exposure.workflow_type:
        raise already_started(call.workflow_id)
    if not is_replay and not call.exposure.attaches:
        return None
    handle = WorkflowHandle[Any, Any](  # The one that start_workflow would return.
        call.client,
        call.workflow_id,
        result_run_id=latest.run_id,
        first_execution_run_id=latest.raw_info.first_run_id or latest.run_id,
        result_type=call.exposure.run.result,
    )
    return _Outcome(handle, is_replay=True) if is_replay else _Outcome(handle, attached_to=latest.status)


async def _was_started_with_key(call: Call, execution: WorkflowExecutionDescription) -> bool:
    """Whether an earlier request with the key started it. Raises the problem 422 for another input."""
    keyed = call.keyed
    if keyed is None or execution.workflow_type != call.exposure.workflow_type:
        return False
    stored = await execution.memo_value(MARK, {})
    # The app's own code may have started it, with any memo.
    if not isinstance(stored, Mapping) or stored.get("key") != keyed.scope:
        return False
    keyed.check_input(stored)
    return True


async def _describe(call: Call, run_id: str | None) -> WorkflowExecutionDescription:
    """A run with the id, of any type and owner."""
    handle = call.client.get_workflow_handle(call.workflow_id, run_id=run_id)
    return await handle.describe(rpc_timeout=call.rpc_timeout)


async def _start(call: Call, **changes: Any) -> WorkflowHandle[Any, Any]:
    exposure, values, owner_attribute = call.exposure, call.start_values, call.services.owner_attribute
    memo = dict(values.memo)
    if call.keyed is not None and "start_signal" not in changes:
        memo[MARK] = call.keyed.mark
    attributes = values.search_attributes
    if exposure.owner is not None:
        if any(pair.key.name == owner_attribute for pair in attributes or ()):
            raise TemporalSettingsError(
                f"expose(search_attributes=…) sets {owner_attribute}, which owner= sets by itself"
            )
        if call.access.owner is not None:
            attributes = owned_by(call.access.owner, attributes, attribute=owner_attribute)
    try:
        return await call.client.start_workflow(
            exposure.workflow_type,
            args=exposure.run.spread(call.start_input),
            id=call.workflow_id,
            task_queue=call.task_queue,
            result_type=exposure.run.result,
            memo=memo or None,
            search_attributes=attributes,
            start_delay=values.start_delay,
            rpc_timeout=call.rpc_timeout,
            **{**exposure.start_options, **changes},
        )
    except RPCError as error:
        if attributes is not None and error.status is RPCStatusCode.INVALID_ARGUMENT:
            _check_attributes(call, error, attributes)
        raise


def _check_attributes(call: Call, error: RPCError, attributes: TypedSearchAttributes) -> None:
    """Raises the problem 500 if the server refuses the app's search attributes."""
    if "attribute" not in error.message.lower():
        return
    workflow_type = call.exposure.workflow_type
    found = re.search(r"no mapping defined for search attribute (\S+)", error.message)
    key = next((pair.key for pair in attributes if found and pair.key.name == found[1]), None)
    if found is None or key is None:
        remedy = f"Correct the search_attributes of expose({workflow_type})"
    else:
        own = commands(call.client, found[1], indexed_type(key))
        remedy = f"To register it, declare it by key and {REGISTER_COMMANDS}, or {own}"
    logger.error("%s was not started: %s. %s", workflow_type, error.message, remedy)
    raise internal_error() from error


async def signal_with_start(call: Call) -> GatewayResponse:
    keyed, signal, latest = call.keyed, call.handler, None
    try:
        latest = await _describe(call, None)
        _check_signal(call, latest)
    except RPCError as error:
        if to_problem(error).status is not HTTPStatus.NOT_FOUND:
            raise
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
                start_signal_args=signal.spread(call.value.signal),
            )
        run_id = handle.result_run_id or ""
        if latest is None or run_id != latest.run_id:
            _check_signal(call, await _describe(call, run_id))
        is_replay = keyed is not None and await is_repetition(call.history(run_id), keyed)
    accepted = Accepted(workflow_id=call.workflow_id, links=Links.of(call.location))
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay, location=call.location)


def _check_signal(call: Call, latest: WorkflowExecutionDescription) -> None:
    """Raises a problem if the signal would reach a workflow of another type or owner."""
    is_other_type = is_open(latest.status) and latest.workflow_type != call.exposure.workflow_type
    if is_other_type or not call.reaches(latest):
        raise already_started(call.workflow_id)
