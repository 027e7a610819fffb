"""Bulk cancellations, as they apply to runs that start later.

A function's record has its cancellations, so starts of other functions read none. Runs in the time range are cancelled.
Descendants of cancelled runs are cancelled for one hour. The senders of events find out whether an event has a
cancelled ancestor.
"""

from collections.abc import AsyncIterator

import msgspec
from temporalio.client import Client, WorkflowExecution

from durably.engine.core.expressions import compile_expression
from durably.engine.core.run_state import RunStatus
from durably.engine.model.functions import CANCELLED_IN_BULK, BulkCancellation
from durably.engine.model.runs import to_milliseconds
from durably.engine.sqlite.transactions.triggers import MOST_ANCESTORS
from durably.engine.temporal.ids import bulk_workflow_id, function_workflow_id
from durably.engine.temporal.messages import CancellationRecord, FunctionRecord, RunInput, RunMemo, RunOutcome
from durably.engine.temporal.records import Records
from durably.engine.temporal.reports.bulk_workflow import BULK, BulkRecord
from durably.engine.temporal.reports.run_views import RunViews, memo_of, status_of
from durably.engine.temporal.workflow_code import wall_clock
from durably.engine.temporal.workflow_requests import ENDED_BY_HAND, describe
from durably.protocol.errors import ErrorData

_CANCELLED = RunOutcome(RunStatus.CANCELLED, ErrorData(name="FunctionCancelledError", message=CANCELLED_IN_BULK))


class BulkCancellations:
    def __init__(self, client: Client, records: Records) -> None:
        self._client = client
        self._records = records
        self._views = RunViews(client)

    async def begin(self, record: BulkRecord) -> int:
        """Apply a cancellation to runs that start from now on.

        Repeating this changes nothing. Returns its start time by the server's clock.
        """
        cancellation = CancellationRecord(
            id=record.id,
            started_before=record.started_before,
            created_at=record.created_at,
            started_after=record.started_after,
            expression=record.expression,
        )
        function = await self._records.find_function(record.function_id)
        if function is None or cancellation.is_over(wall_clock()):
            return record.created_at
        for known in function.cancellations:
            if known.id == record.id:
                return known.created_at
        handle = self._client.get_workflow_handle(function_workflow_id(record.function_id))
        began_at: int = await handle.execute_update("add_cancellation", cancellation, result_type=int)
        return began_at

    async def apply(self, run: RunInput, function: FunctionRecord) -> RunInput:
        """The run. If a cancellation applies to it, it ends without a call."""
        if not function.cancellations or run.outcome is not None or not await self._is_cancelled(run, function):
            return run
        return msgspec.structs.replace(run, outcome=_CANCELLED, cancel_on=())

    async def _is_cancelled(self, run: RunInput, function: FunctionRecord) -> bool:
        now, event = wall_clock(), run.events[0]
        fields = msgspec.json.decode(event.body)
        cancelled_at: int | None = None
        for record in function.cancellations:
            cancellation = _decode(record)
            if record.is_over(now) or not cancellation.holds_for(fields, now):
                continue
            is_meant = cancellation.is_in_time(now)
            if not is_meant and cancellation.is_followed(now):
                if cancelled_at is None:
                    cancelled_at = await self.ancestor_cancelled_at(run.function_id, event.sender)
                is_meant = cancelled_at >= record.created_at
            if is_meant and await self._is_in_force(record.id):
                return True
        return False

    async def _is_in_force(self, cancellation_id: str) -> bool:
        """False if a user deleted the cancellation, or terminated its workflow."""
        described = await describe(self._client, bulk_workflow_id(cancellation_id))
        if described is None:
            return False
        record: BulkRecord = await described.memo_value(BULK, type_hint=BulkRecord)
        return described.status not in ENDED_BY_HAND and not record.is_stopped

    async def ancestor_cancelled_at(self, function_id: str, sender: str | None) -> int:
        """End time of the latest cancelled ancestor of an event, for one function.

        ``sender`` is the event's. Returns 0 if there is none.
        """
        ends = [
            to_milliseconds(run.close_time)
            async for run, memo in self._ancestors(sender)
            if memo.function_id == function_id and status_of(run) is RunStatus.CANCELLED and run.close_time is not None
        ]
        return max(ends, default=0)

    async def _ancestors(self, sender: str | None) -> AsyncIterator[tuple[WorkflowExecution, RunMemo]]:
        """The runs that led to an event, the latest first, until the first unknown one."""
        run_id, is_ancestor = sender, True
        for _ in range(MOST_ANCESTORS):
            described = None if run_id is None else await self._views.describe(run_id)
            if described is None:
                return
            memo = await memo_of(described)
            if is_ancestor:
                yield described, memo
            # A rerun has the event of the original run. The sender of the original led to it, the original did not.
            is_ancestor = memo.rerun_of is None
            run_id = memo.parent if is_ancestor else memo.rerun_of


def _decode(record: CancellationRecord) -> BulkCancellation:
    condition = compile_expression(record.expression) if record.expression else None
    return BulkCancellation(record.started_after, record.started_before, condition, record.created_at)
