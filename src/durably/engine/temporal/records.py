"""Records of long-lived workflows, in their memos.

They are read by Describe, which is consistent and costs no action. A workflow that somebody terminated is started
again with the record that it had.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy

from durably.engine.temporal.apps.app_workflow import APP, AppWorkflow
from durably.engine.temporal.apps.function_workflow import FUNCTION, FunctionWorkflow
from durably.engine.temporal.routing.topic_workflow import TOPIC, TopicWorkflow
from durably.protocol.text import get_logger

from .ids import WORKFLOWS_QUEUE, function_workflow_id, run_workflow_id, topic_workflow_id
from .long_lived import describe
from .messages import RUN_MEMO, FunctionRecord, RunMemo, TopicRecord
from .shared_reads import SharedReads

T = TypeVar("T")

_logger = get_logger("durably.engine")

_ENDLESS: Mapping[str, Any] = {APP: AppWorkflow.run, FUNCTION: FunctionWorkflow.run, TOPIC: TopicWorkflow.run}
"""Workflows that never end by themselves, by the memo with their record."""


class Records:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._reads = SharedReads(self._describe)

    async def read(self, workflow_id: str, memo: str, as_type: type[T]) -> T | None:
        """A record in the memo of a workflow; ``None`` if there is none."""
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
        _logger.warning("the workflow %r was ended on Temporal, and is started again with what it held", workflow_id)
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
        """The functions that exist, by their ids."""
        wanted = list(function_ids)
        found = await asyncio.gather(*map(self.find_function, wanted))
        return {each: record for each, record in zip(wanted, found, strict=True) if record is not None}

    async def find_run(self, run_id: str) -> RunMemo | None:
        return await self.read(run_workflow_id(run_id), RUN_MEMO, RunMemo)

    async def find_topic(self, event_name: str) -> TopicRecord:
        """An empty record if the event is not known."""
        found = await self.read(topic_workflow_id(event_name), TOPIC, TopicRecord)
        return TopicRecord() if found is None else found

    async def find_topics(self, event_names: Iterable[str]) -> list[TopicRecord]:
        return await asyncio.gather(*map(self.find_topic, event_names))
