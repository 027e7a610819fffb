"""Records of long-lived workflows, and restoring of terminated workflows.

Records are in memos. They are read by Describe, which is consistent and costs no action. A long-lived workflow that a
user terminated is started again with its record.

Buckets, queues and waits end by themselves, so a new workflow would not know the waiting, stored and running work of a
terminated one. They are restored before the next event, signal, wait or call uses them.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, TypeVar

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyExcludeType, ResetReapplyType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryReverseRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from durably.engine.temporal.apps.record_workflows import (
    APP,
    FUNCTION,
    TOPIC,
    AppWorkflow,
    FunctionWorkflow,
    TopicWorkflow,
)
from durably.protocol.text import get_logger

from .ids import WORKFLOWS_QUEUE, function_workflow_id, run_workflow_id, topic_workflow_id
from .messages import RUN_MEMO, FunctionRecord, RunMemo, TopicRecord
from .workflow_requests import ENDED_BY_HAND, SharedReads, describe, ignoring_not_found

T = TypeVar("T")

_logger = get_logger("durably.engine")

_ENDLESS: Mapping[str, Any] = {APP: AppWorkflow.run, FUNCTION: FunctionWorkflow.run, TOPIC: TopicWorkflow.run}
"""Workflows that never end by themselves, by the memo with their record."""
_PAGE = 100
_LAST_DAYS = dt.timedelta(days=7)
_MOST_ENDED = 1000
"""Maximum number of workflows in one search."""
_MOST_AT_ONCE = 16


class Records:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._reads = SharedReads(self._describe)

    async def read(self, workflow_id: str, memo: str, as_type: type[T]) -> T | None:
        """A record in the memo of a workflow, or ``None``."""
        found: T | None = await self._reads((workflow_id, memo, as_type))
        return found

    async def _describe(self, key: tuple[str, str, type[T]]) -> T | None:
        workflow_id, memo, as_type = key
        described = await describe(self._client, workflow_id)
        if described is None:
            return None
        record: T | None = await described.memo_value(memo, None, type_hint=as_type)
        if memo in _ENDLESS and record is not None and described.status is not WorkflowExecutionStatus.RUNNING:
            await self._restore(workflow_id, memo, record)
        return record

    async def _restore(self, workflow_id: str, memo: str, record: object) -> None:
        _logger.warning("the workflow %r was terminated on Temporal, and is started again with its record", workflow_id)
        await self._client.start_workflow(
            _ENDLESS[memo],
            record,
            id=workflow_id,
            task_queue=WORKFLOWS_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            memo={memo: record},
            static_summary=workflow_id.rpartition("/")[2],
        )

    async def find_function(self, function_id: str) -> FunctionRecord | None:
        return await self.read(function_workflow_id(function_id), FUNCTION, FunctionRecord)

    async def find_functions(self, function_ids: Iterable[str]) -> dict[str, FunctionRecord]:
        """The functions that exist, by id."""
        wanted = list(function_ids)
        found = await asyncio.gather(*map(self.find_function, wanted))
        return {each: record for each, record in zip(wanted, found, strict=True) if record is not None}

    async def find_run(self, run_id: str) -> RunMemo | None:
        return await self.read(run_workflow_id(run_id), RUN_MEMO, RunMemo)

    async def find_topic(self, event_name: str) -> TopicRecord:
        """The record of an event name, empty if the name is unknown."""
        found = await self.read(topic_workflow_id(event_name), TOPIC, TopicRecord)
        return TopicRecord() if found is None else found

    async def find_topics(self, event_names: Iterable[str]) -> list[TopicRecord]:
        return await asyncio.gather(*map(self.find_topic, event_names))


class Restorer:
    """Restores workflows that end by themselves when they are empty."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reads: SharedReads[str] = SharedReads(self._restore)

    async def restore(self, workflow_id: str) -> bool:
        """Continue a workflow that a user has terminated. Returns whether it runs."""
        is_running: bool = await self._reads(workflow_id)
        return is_running

    async def restore_all(self) -> None:
        """Continue the buckets and queues that users terminated in the last days.

        Their next event or call also does that. But it may never arrive, and their events and calls are due at a time.
        """
        since = dt.datetime.now(dt.UTC) - _LAST_DAYS
        query = (
            "WorkflowType IN ('durably.Gate', 'durably.Queue') AND ExecutionStatus IN ('Terminated', 'Canceled') "
            f"AND CloseTime > '{since:%Y-%m-%dT%H:%M:%SZ}'"
        )
        at_once = asyncio.Semaphore(_MOST_AT_ONCE)

        async def restore(workflow_id: str) -> None:
            async with at_once:
                await self.restore(workflow_id)

        try:
            ids = {each.id async for each in self._client.list_workflows(query, limit=_MOST_ENDED)}
            await asyncio.gather(*map(restore, ids))
            if len(ids) == _MOST_ENDED:
                _logger.warning(
                    "more buckets and queues were terminated on Temporal than the %d that continue now; the others "
                    "continue with their next event or call",
                    _MOST_ENDED,
                )
        except RPCError as error:
            _logger.warning("cannot search for buckets and queues that were terminated on Temporal: %s", error)

    async def _restore(self, workflow_id: str) -> bool:
        described = await describe(self._client, workflow_id)
        if described is None:
            return False
        if described.status not in ENDED_BY_HAND:
            return described.status is WorkflowExecutionStatus.RUNNING
        execution = WorkflowExecution(workflow_id=workflow_id, run_id=described.run_id)
        with ignoring_not_found():
            task_end = await self._find_last_task_end(
                execution, was_cancelled=described.status is WorkflowExecutionStatus.CANCELED
            )
            if task_end is None:
                _logger.warning(
                    "the workflow %r was terminated on Temporal before a worker had executed it, and its state is "
                    "lost: rerun the runs that wait for it, and send its events again",
                    workflow_id,
                )
                return False
            _logger.warning("the workflow %r was terminated on Temporal, and continues with its state", workflow_id)
            await self._reset(execution, task_end)
            return True
        return False

    async def _reset(self, execution: WorkflowExecution, task_end: int) -> None:
        """Execute a task again.

        The server applies the later signals and Updates again.
        """
        await self._client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self._client.namespace,
                workflow_execution=execution,
                reason="runs or events wait for it",
                workflow_task_finish_event_id=task_end,
                request_id=f"restore-{execution.run_id}",  # The server executes requests of several processes once.
                reset_reapply_type=ResetReapplyType.RESET_REAPPLY_TYPE_ALL_ELIGIBLE,
                reset_reapply_exclude_types=[ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_CANCEL_REQUEST],
            )
        )

    async def _find_last_task_end(self, execution: WorkflowExecution, *, was_cancelled: bool) -> int | None:
        """The end of the last task, or of the one before it if the workflow was cancelled.

        The last started task may not have ended.
        """
        is_past = not was_cancelled
        async for event in self._events(execution):
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
                is_past = True
            elif is_past and event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
                return event.event_id + 1
        return None

    async def _events(self, execution: WorkflowExecution) -> AsyncIterator[HistoryEvent]:
        """The history, the latest event first."""
        token = b""
        while True:
            page = await self._client.workflow_service.get_workflow_execution_history_reverse(
                GetWorkflowExecutionHistoryReverseRequest(
                    namespace=self._client.namespace,
                    execution=execution,
                    maximum_page_size=_PAGE,
                    next_page_token=token,
                )
            )
            for event in page.history.events:
                yield event
            token = page.next_page_token
            if not token:
                return
