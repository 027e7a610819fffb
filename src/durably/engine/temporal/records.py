"""Records of long-lived workflows, in their memos.

They are read by Describe, which is consistent and costs no action.
"""

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.temporal.routing.function_workflow import FUNCTION
from durably.engine.temporal.routing.topic_workflow import TOPIC

from .ids import function_workflow_id, run_workflow_id, topic_workflow_id
from .messages import RUN_MEMO, FunctionRecord, RunMemo, TopicRecord
from .shared_reads import SharedReads

T = TypeVar("T")


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
        try:
            described = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        return await described.memo_value(memo, None, type_hint=as_type)

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
