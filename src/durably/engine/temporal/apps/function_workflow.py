"""Functions: the configuration that an app synced. It is read by Describe."""

import msgspec
from temporalio import workflow

from durably.engine.temporal.messages import CancellationRecord, FunctionRecord
from durably.engine.temporal.workflow_time import now

FUNCTION = "function"
"""The memo with the record."""


@workflow.defn(name="durably.Function", sandboxed=False)
class FunctionWorkflow:
    @workflow.init
    def __init__(self, record: FunctionRecord) -> None:
        self._record = record

    @workflow.run
    async def run(self, record: FunctionRecord) -> None:
        await workflow.wait_condition(lambda: workflow.info().is_continue_as_new_suggested())
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(self._record, memo={FUNCTION: self._record})

    @workflow.update(name="configure")
    def configure(self, record: FunctionRecord) -> None:
        """The pause and the cancellations stay: an app does not sync them."""
        before = self._record
        self._put(msgspec.structs.replace(record, is_paused=before.is_paused, cancellations=before.cancellations))

    @workflow.update(name="set_paused")
    def set_paused(self, is_paused: bool) -> None:
        self._put(msgspec.structs.replace(self._record, is_paused=is_paused))

    @workflow.update(name="add_cancellation")
    def add_cancellation(self, cancellation: CancellationRecord) -> int:
        """Apply a bulk cancellation to new runs. Repeating this changes nothing.

        Returns when it began.
        """
        for known in self._record.cancellations:
            if known.id == cancellation.id:
                return known.created_at
        present = [each for each in self._record.cancellations if not each.is_over(now())]
        added = msgspec.structs.replace(cancellation, created_at=now())
        self._put(msgspec.structs.replace(self._record, cancellations=(*present, added)))
        return added.created_at

    def _put(self, record: FunctionRecord) -> None:
        if record != self._record:
            self._record = record
            workflow.upsert_memo({FUNCTION: record})
