"""Runs as Temporal describes them, without a worker: memo, status, output."""

import asyncio
from collections.abc import Iterable

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError

from durably.engine.core.transition import encode_error
from durably.engine.model.runs import Relation, Run, RunStatus, relation_by
from durably.engine.temporal.ids import run_id_of, run_workflow_id
from durably.engine.temporal.messages import END, RUN_MEMO, RunInput, RunMemo
from durably.engine.temporal.search_attributes import STATUS
from durably.engine.temporal.workflow_requests import describe, ignoring_not_found
from durably.protocol.errors import ErrorData

_STATUSES = {
    WorkflowExecutionStatus.RUNNING: RunStatus.RUNNING,
    WorkflowExecutionStatus.COMPLETED: RunStatus.COMPLETED,
    WorkflowExecutionStatus.CANCELED: RunStatus.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: RunStatus.CANCELLED,
}
_MOST_AT_ONCE = 16
"""Maximum number of concurrent requests to the server for one page of runs."""


def status_of(execution: WorkflowExecution) -> RunStatus:
    """The status of a workflow. A live run counts as running.

    The server does not know whether the app was called.
    """
    own = execution.typed_search_attributes.get(STATUS)
    if own is not None:
        return RunStatus(own)
    return RunStatus.FAILED if execution.status is None else _STATUSES.get(execution.status, RunStatus.FAILED)


def relation_of(memo: RunMemo) -> Relation:
    if memo.rerun_of is not None:
        return Relation.RERUN
    return relation_by(memo.event_name)


class RunViews:
    """Reads runs from a Temporal server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

    async def find(self, run_id: str) -> Run | None:
        described = await self.describe(run_id)
        return None if described is None else await self.view(described)

    async def describe(self, run_id: str) -> WorkflowExecution | None:
        """The run's workflow, or ``None``."""
        described = await describe(self._client, run_workflow_id(run_id))
        return described if described is not None and is_run(described) else None

    async def view(self, execution: WorkflowExecution, *, has_output: bool = True) -> Run:
        run_id = run_id_of(execution.id)
        memo = await memo_of(execution)
        status = status_of(execution)
        output: msgspec.Raw | None = None
        if has_output and status.has_ended:
            output = await execution.memo_value(END, None, type_hint=msgspec.Raw)
            if output is None:
                async with self._slots:
                    output = await self.output(run_id)
        return Run(
            id=run_id,
            function_id=memo.function_id,
            app_id=memo.app_id,
            status=status,
            event_ids=list(memo.event_ids),
            event_id=memo.event_ids[0],
            event_name=memo.event_name,
            created_at=execution.start_time,
            started_at=execution.start_time,
            ended_at=execution.close_time,
            output=output,
            attempt=0,
            max_attempts=memo.max_attempts,
            rerun_of=memo.rerun_of,
        )

    async def views(self, executions: Iterable[WorkflowExecution], *, has_output: bool = True) -> list[Run]:
        return list(await asyncio.gather(*(self.view(each, has_output=has_output) for each in executions)))

    async def link(self, execution: WorkflowExecution, *, has_relation: bool = True) -> Run:
        """A run without its output, with its relation to the run that started it."""
        run = await self.view(execution, has_output=False)
        if not has_relation:
            return run
        memo = await memo_of(execution)
        return msgspec.structs.replace(run, relation=relation_of(memo), step=memo.parent_step)

    async def output(self, run_id: str) -> msgspec.Raw:
        """The output of an ended run."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id), result_type=msgspec.Raw)
        try:
            output: msgspec.Raw = await handle.result()
            return output
        except WorkflowFailureError as error:
            return _error_output(error.cause)

    async def input(self, run_id: str) -> RunInput | None:
        """The input of a run with its events, from the first event of its history."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        with ignoring_not_found():
            async for event in handle.fetch_history_events(page_size=1):
                assert event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                (run,) = await self._client.data_converter.decode(payloads, [RunInput])
                return run  # type: ignore[no-any-return]
        return None


def is_run(execution: WorkflowExecution) -> bool:
    """Whether the engine started the workflow.

    Other clients of the namespace can start workflows of any type and id.
    """
    return RUN_MEMO in execution.raw_info.memo.fields


async def memo_of(execution: WorkflowExecution) -> RunMemo:
    memo: RunMemo = await execution.memo_value(RUN_MEMO, type_hint=RunMemo)
    return memo


def _error_output(cause: BaseException | None) -> msgspec.Raw:
    """The error of a run, as it wrote it, or as Temporal reports it."""
    if isinstance(cause, ApplicationError) and cause.details:
        return msgspec.Raw(msgspec.json.encode(cause.details[0]))
    match cause:
        case CancelledError():
            if cause.details:
                return msgspec.Raw(msgspec.json.encode(cause.details[0]))
            name, message = "FunctionCancelledError", "the run was cancelled"
        case TerminatedError():
            name, message = "FunctionCancelledError", f"the run was terminated on Temporal: {cause}"
        case TimeoutError():
            name, message = "RunTimedOutError", "the run's workflow has timed out on Temporal"
        case _:
            name, message = type(cause).__name__, str(cause)
    return msgspec.Raw(encode_error(ErrorData(name=name, message=message)))
