"""Records of apps, functions and event names: their workflows, their reads, and the restoring of workflows.

Records are in memos of workflows that never end. They are read by Describe, which is consistent and costs no action.
Syncs of one app are applied one after another, even if the requesting processes end. A workflow with a record that a
user terminated is started again with its record.

Buckets, queues and waits end by themselves, so a new workflow would not know the waiting, stored and running work of a
terminated one. They are restored before the next event, signal, wait or call uses them.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyExcludeType, ResetReapplyType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryReverseRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ActivityError, ApplicationError

from durably.engine.model.overview import SyncResult
from durably.engine.temporal.client import ENDED_BY_HAND, SharedReads, describe, ignoring_not_found
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, function_workflow_id, run_workflow_id, topic_workflow_id
from durably.engine.temporal.messages import (
    RUN_MEMO,
    AppRecord,
    FunctionRecord,
    RunMemo,
    SyncInput,
    TopicRecord,
    TriggerRecord,
)
from durably.engine.temporal.workflow_code import now, wait_for_long_history
from durably.protocol.text import get_logger

APP = "app"
"""The memo of an app's workflow with its ``AppRecord``."""
FUNCTION = "function"
"""The memo of a function's workflow with its ``FunctionRecord``."""
TOPIC = "topic"
"""The memo of a topic's workflow with its ``TopicRecord``."""
MAX_PATHS = 50
"""The maximum number of paths of a topic. Each path costs every event of the name a request."""
APPLY_SYNC = "durably.apply_sync"
SYNC_REFUSED = "SyncRefused"
"""The error type of syncs that must not be repeated."""
_COMPARED = ("url", "sdk", "framework", "version", "in_process", "names", "schedules")


class AppliedSync(msgspec.Struct, frozen=True):
    """A sync to apply, and the app's previous record."""

    sync: SyncInput
    before: AppRecord | None = None


@workflow.defn(name="durably.App", sandboxed=False)
class AppWorkflow:
    """An app: the functions of its last sync."""

    @workflow.init
    def __init__(self, record: AppRecord | None = None) -> None:
        self._record = record
        self._turn = asyncio.Lock()

    @workflow.run
    async def run(self, record: AppRecord | None = None) -> None:
        await wait_for_long_history()
        memo = {} if self._record is None else {APP: self._record}
        workflow.continue_as_new(self._record, memo=memo)

    @workflow.update(name="sync")
    async def sync(self, sync: SyncInput) -> SyncResult:
        async with self._turn:
            before = self._record
            result = result_of_sync(sync, before)
            if before is None or sync.restores or not is_same_sync(before, sync.app):
                await self._apply(sync, before, result)
            return result

    async def _apply(self, sync: SyncInput, before: AppRecord | None, result: SyncResult) -> None:
        try:
            await workflow.execute_local_activity(
                APPLY_SYNC, AppliedSync(sync, before), start_to_close_timeout=dt.timedelta(minutes=1)
            )
        except ActivityError as error:
            if before is not None:
                known = {
                    field: tuple(dict.fromkeys([*getattr(sync.app, field), *getattr(before, field)]))
                    for field in ("names", "schedules")
                }
                self._put(msgspec.structs.replace(before, error=str(error.cause), **known))
            raise ApplicationError(str(error.cause), type=SYNC_REFUSED) from error
        synced_at = int(workflow.now().timestamp() * 1000)
        changes = {"added": result.added, "changed": result.changed, "removed": result.removed}
        self._put(msgspec.structs.replace(sync.app, synced_at=synced_at, **changes))

    def _put(self, record: AppRecord) -> None:
        self._record = record
        workflow.upsert_memo({APP: record})


def is_same_sync(before: AppRecord, now: AppRecord) -> bool:
    """Whether a sync would change nothing."""
    has_same_functions = list(before.functions.items()) == list(now.functions.items())
    is_same = all(getattr(before, field) == getattr(now, field) for field in _COMPARED)
    return before.error is None and has_same_functions and is_same


def result_of_sync(sync: SyncInput, before: AppRecord | None) -> SyncResult:
    """The result of a sync: its differences from the previous record."""
    old = {} if before is None else before.functions
    new, url = sync.app.functions, None if before is None else before.url
    return SyncResult(
        app_id=sync.app_id,
        modified=list(old.items()) != list(new.items()),
        added=tuple(each for each in new if each not in old),
        changed=tuple(each for each, digest in new.items() if old.get(each, digest) != digest),
        removed=tuple(each for each in old if each not in new),
        version=sync.app.version,
        previous_version=None if before is None else before.version,
        previous_url=url if url != sync.app.url else None,
    )


@workflow.defn(name="durably.Function", sandboxed=False)
class FunctionWorkflow:
    """A function: its synced configuration."""

    @workflow.init
    def __init__(self, record: FunctionRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: FunctionRecord) -> None:
        await wait_for_long_history()
        workflow.continue_as_new(self._record, memo={FUNCTION: self._record})

    @workflow.update(name="configure")
    def configure(self, record: FunctionRecord) -> None:
        """Replace the configuration. A pause stays: apps do not sync it."""
        before = self._record
        self._put(msgspec.structs.replace(record, is_paused=before.is_paused, paused_at=before.paused_at))

    @workflow.update(name="set_paused")
    def set_paused(self, is_paused: bool) -> None:
        paused_at = (self._record.paused_at or now()) if is_paused else None
        self._put(msgspec.structs.replace(self._record, is_paused=is_paused, paused_at=paused_at))

    def _put(self, record: FunctionRecord) -> None:
        if record != self._record:
            self._record = record
            workflow.upsert_memo({FUNCTION: record})


class AppTriggers(msgspec.Struct, frozen=True):
    """The new triggers of some functions.

    A function without triggers is missing in ``triggers``.
    """

    function_ids: tuple[str, ...]
    triggers: tuple[TriggerRecord, ...]


@workflow.defn(name="durably.Topic", sandboxed=False)
class TopicWorkflow:
    """The triggers of an event name, and the paths of waits for it."""

    @workflow.init
    def __init__(self, record: TopicRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: TopicRecord) -> None:
        await wait_for_long_history()
        workflow.continue_as_new(self._record, memo={TOPIC: self._record})

    @workflow.update(name="set_triggers")
    def set_triggers(self, change: AppTriggers) -> None:
        kept = [each for each in self._record.triggers if each.function_id not in change.function_ids]
        self._put(msgspec.structs.replace(self._record, triggers=(*kept, *change.triggers)))

    @workflow.update(name="add_path")
    def add_path(self, path: str | None) -> bool:
        """Add a path. Returns false if the topic has too many paths."""
        if path in self._record.paths:
            return True
        if path is not None and len(self._record.paths) >= MAX_PATHS:
            return False
        self._put(msgspec.structs.replace(self._record, paths=(*self._record.paths, path)))
        return True

    def _put(self, record: TopicRecord) -> None:
        self._record = record
        workflow.upsert_memo({TOPIC: record})


T = TypeVar("T")

_logger = get_logger("durably.engine")

_ENDLESS: Mapping[str, Any] = {APP: AppWorkflow.run, FUNCTION: FunctionWorkflow.run, TOPIC: TopicWorkflow.run}
"""Workflows that never end by themselves, by the memo with their record."""
_PAGE = 100


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
