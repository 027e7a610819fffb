"""Batches: cancel, terminate or signal open workflows that match a query.

The server does the work in a batch job. The job gets the runs, which have been checked one by one, and not the query:
the server would evaluate it later, without checks. The gateway stores nothing. The job's id contains a hash of its
exposure and owner. For a request with an idempotency key, it also contains the key's hash, and the job's identity has
the fingerprint of the input. The server refuses a second job with the same id.

Source: https://docs.temporal.io/cli/command-reference/batch.
"""

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from temporalio.api.batch.v1 import BatchOperationCancellation, BatchOperationSignal, BatchOperationTermination
from temporalio.api.common.v1 import Payloads
from temporalio.api.common.v1 import WorkflowExecution as Execution
from temporalio.api.enums.v1 import BatchOperationState, BatchOperationType
from temporalio.api.workflowservice.v1 import (
    DescribeBatchOperationRequest,
    DescribeBatchOperationResponse,
    StartBatchOperationRequest,
)
from temporalio.client import WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.gateway.authorization import Access
from durably.temporal.gateway.call import Call
from durably.temporal.gateway.exposure import Exposure, Operation
from durably.temporal.gateway.idempotency import KeyedRequest
from durably.temporal.gateway.messages import GatewayResponse, answer
from durably.temporal.gateway.models import BatchAccepted, BatchDryRun, BatchJob, BatchKind, BatchState, JobLinks
from durably.temporal.gateway.problems import RETRY_AFTER, Problem, bad_request, not_found
from durably.temporal.namespace.inspection import OPEN_FILTER

from .lists import check_searchable, fetch_page, is_reachable, reachable, time_of
from .visibility import all_of, parse, write

SAMPLE = 20
"""Number of ids in the response to a dry run."""
_DEFAULT_REASON = "Requested through the app's gateway"
"""The server refuses a batch without a reason."""
_PAGE = 1000
_NOTHING = "RunId = '00000000-0000-0000-0000-000000000000'"
"""The query of a job without workflows: the server refuses an empty list of runs."""
_MARK = re.compile(r"durably-idempotency/(?P<input>[0-9a-f]{64})/(?P<count>[0-9]+)\Z")
"""The end of a job's identity, for a request with an idempotency key."""
_JOB_ID = re.compile(r"durably-[0-9a-f]{16}-(?:all|[0-9a-f]{32})-[0-9a-f]{32}")


async def batch(call: Call) -> GatewayResponse:
    """Start a job. A dry run reports its workflows instead.

    Raises problems: 400 for a bad query and for too many workflows, 422 for an idempotency key of another input.
    """
    keyed, is_dry_run = call.keyed, call.value.dry_run
    query = _query(call)
    if is_dry_run and keyed is not None:
        raise bad_request("a dry run starts nothing: leave out the Idempotency-Key")
    job_id = new_job_id(call.exposure, call.access, uuid.uuid4() if keyed is None else uuid.UUID(keyed.id))
    if keyed is not None and (earlier := await _started_before(call, keyed, job_id)) is not None:
        return earlier
    found = await _found(call, query)
    if is_dry_run:
        return answer(BatchDryRun(count=len(found), workflows=[each.id for each in found[:SAMPLE]]))
    request = StartBatchOperationRequest(
        namespace=call.client.namespace,
        visibility_query="" if found else _NOTHING,
        executions=[Execution(workflow_id=each.id, run_id=each.run_id) for each in found],
        job_id=job_id,
        reason=call.value.reason or _DEFAULT_REASON,
        **await _operation(call, _identity(call, len(found))),
    )
    try:
        with _batch_problems():
            await call.client.workflow_service.start_batch_operation(request, timeout=call.rpc_timeout)
    except RPCError as error:
        if keyed is None or error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise
        if (earlier := await _started_before(call, keyed, job_id)) is None:
            raise
        return earlier
    return _accepted(call, job_id, len(found))


async def _found(call: Call, query: str) -> list[WorkflowExecution]:
    """The runs that the principal can reach. Raises a problem for more than the limit."""
    limit = call.limits.max_batch
    listed = call.client.list_workflows(query, page_size=min(_PAGE, limit + 1), rpc_timeout=call.rpc_timeout)
    found: list[WorkflowExecution] = []
    await check_searchable(call.client, query, call.rpc_timeout)
    while True:
        await fetch_page(listed)
        found += [item for item in listed.current_page or () if is_reachable(call, item)]
        if len(found) > limit:
            raise _too_many(limit)
        if not listed.next_page_token:
            return found


async def _started_before(call: Call, keyed: KeyedRequest, job_id: str) -> GatewayResponse | None:
    """The response of an earlier request with this key. Raises the problem 422."""
    job = await _describe(call, job_id)
    if job is None:
        return None
    stored = _MARK.search(job.identity)
    keyed.check_input({} if stored is None else stored.groupdict())
    return _accepted(call, job_id, int(stored["count"]) if stored else 0, is_replay=True)


def _identity(call: Call, count: int) -> str:
    identity = call.client.identity
    return identity if call.keyed is None else f"{identity} durably-idempotency/{call.keyed.fingerprint}/{count}"


def _accepted(call: Call, job_id: str, count: int, *, is_replay: bool = False) -> GatewayResponse:
    location = _location(call, job_id)
    accepted = BatchAccepted(job_id=job_id, count=count, links=JobLinks(self=location))
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay, location=location)


async def batch_status(call: Call) -> GatewayResponse:
    """The progress of a job. Raises 404 if the principal cannot see it."""
    job_id = call.ids["job_id"]
    if not may_see(job_id, call.exposure, call.access):
        raise _no_such_job()
    job = await _describe(call, job_id)
    if job is None:
        raise _no_such_job()
    return answer(_shown(call, job))


async def _describe(call: Call, job_id: str) -> DescribeBatchOperationResponse | None:
    request = DescribeBatchOperationRequest(namespace=call.client.namespace, job_id=job_id)
    try:
        with _batch_problems():
            return await call.client.workflow_service.describe_batch_operation(request, timeout=call.rpc_timeout)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and not error.message.startswith("Namespace "):
            return None
        raise


def new_job_id(exposure: Exposure, access: Access, unique: uuid.UUID) -> str:
    """``durably-{exposure}-{owner}-{unique}``; ``all`` for a job of all owners."""
    owner = "all" if access.sees_all else _owner_hash(exposure, access.owner)
    return f"durably-{_exposure_hash(exposure)}-{owner}-{unique.hex}"


def may_see(job_id: str, exposure: Exposure, access: Access) -> bool:
    """Whether the job belongs to the exposure, and to what the principal sees."""
    if not _JOB_ID.fullmatch(job_id):
        return False
    _, of_exposure, of_owner, _ = job_id.split("-")
    if of_exposure != _exposure_hash(exposure):
        return False
    return access.sees_all or hmac.compare_digest(of_owner, _owner_hash(exposure, access.owner))


def _exposure_hash(exposure: Exposure) -> str:
    return _hash(exposure.name, exposure.definition.name)[:16]


def _owner_hash(exposure: Exposure, owner: str | None) -> str:
    return _hash(exposure.name, exposure.definition.name, owner or "")[:32]


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _query(call: Call) -> str:
    """The query, limited to open workflows that the principal can reach."""
    text = call.value.query.strip()
    if not text:
        raise bad_request(f'query must not be empty; "{OPEN_FILTER}" finds all running and paused workflows')
    return write(all_of(*reachable(call), parse(OPEN_FILTER), parse(text)))


async def _operation(call: Call, identity: str) -> dict[str, Any]:
    """The field of the server's request with the operation on each workflow."""
    if call.operation is Operation.BATCH_CANCEL:
        return {"cancellation_operation": BatchOperationCancellation(identity=identity)}
    if call.operation is Operation.BATCH_TERMINATE:
        return {"termination_operation": BatchOperationTermination(identity=identity)}
    arguments = call.handler.arguments.spread(call.value.signal)
    payloads = await call.client.data_converter.encode(arguments) if arguments else []
    signal = BatchOperationSignal(signal=call.handler.name, input=Payloads(payloads=payloads), identity=identity)
    return {"signal_operation": signal}


_STATES: dict[Any, BatchState] = {
    BatchOperationState.BATCH_OPERATION_STATE_RUNNING: "running",
    BatchOperationState.BATCH_OPERATION_STATE_COMPLETED: "completed",
    BatchOperationState.BATCH_OPERATION_STATE_FAILED: "failed",
}
_KINDS: dict[str, BatchKind] = {"cancel": "cancel", "terminate": "terminate", "signal": "signal"}


def _kind(job: DescribeBatchOperationResponse) -> BatchKind:
    """The server 1.32 sends ``…_TYPE_CANCEL_WORKFLOW``, older ones ``…_TYPE_CANCEL``."""
    name = BatchOperationType.Name(job.operation_type) if job.operation_type in BatchOperationType.values() else ""
    words = name.removeprefix("BATCH_OPERATION_TYPE_").lower().split("_")
    for word in words:
        if word in _KINDS:
            return _KINDS[word]
    return "unknown"


def _shown(call: Call, job: DescribeBatchOperationResponse) -> BatchJob:
    state = _STATES.get(job.state, "unknown")
    is_counted = job.total_operation_count > 0 or state != "running"
    return BatchJob(
        job_id=job.job_id,
        operation=_kind(job),
        state=state,
        total=job.total_operation_count if is_counted else None,
        completed=job.complete_operation_count,
        failed=job.failure_operation_count,
        start_time=time_of(job, "start_time"),
        close_time=time_of(job, "close_time"),
        links=JobLinks(self=_location(call, job.job_id)),
    )


def _location(call: Call, job_id: str) -> str:
    return f"{call.request.mount}/{call.exposure.name}/batch/jobs/{job_id}"


@contextmanager
def _batch_problems() -> Iterator[None]:
    """Raises the problem 429 at the server's limit, 501 if it has no batches."""
    try:
        yield
    except RPCError as error:
        if error.status is RPCStatusCode.RESOURCE_EXHAUSTED and "batch operation" in error.message.lower():
            raise _busy() from error
        if error.status is RPCStatusCode.UNIMPLEMENTED or "Batch operation feature" in error.message:
            raise _unsupported() from error
        raise


def _too_many(limit: int) -> Problem:
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "batch-too-large",
        f"the query finds more than {limit} workflows, the maximum of a batch: narrow the query, or raise "
        "Limits(max_batch=…) in the app",
        limit=limit,
    )


def _busy() -> Problem:
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "batch-running",
        "the namespace runs as many batch jobs as the server allows: repeat the request when one has ended",
        headers={"Retry-After": RETRY_AFTER},
    )


def _unsupported() -> Problem:
    return Problem(
        HTTPStatus.NOT_IMPLEMENTED,
        "batch-not-supported",
        "the Temporal server has no batch jobs: it is too old, or frontend.enableBatcher is off in its dynamic "
        "configuration",
    )


def _no_such_job() -> Problem:
    """One problem for a job that does not exist and for a job of another principal."""
    return not_found("there is no such batch job here")
