"""Bulk cancellations and replays, each as a workflow.

The workflow applies the operation to pages of the function's runs. Runs that start later find a cancellation in the
record of their function. The workflow runs as long as the cancellation applies to new runs, so that it can be deleted.
"""

import contextlib
import datetime as dt

import msgspec
from temporalio import workflow
from temporalio.common import RetryPolicy

from durably.engine.core.run_state import RunStatus
from durably.engine.model.functions import FOLLOWED_FOR
from durably.engine.temporal.workflow_code import history_is_long, now

BULK = "bulk"
"""The memo with the record."""
BULK_PAGE = "durably.bulk_page"

_PAGE_TIMEOUT = dt.timedelta(minutes=5)
_HEARTBEAT_TIMEOUT = dt.timedelta(seconds=30)
_PAUSE = 5_000
"""Milliseconds between two searches for runs that the index did not have."""
_LAG = 30_000
"""Milliseconds after which the index has a run. The lag is usually below a second."""
_STARTS_CHECK = "starts-check-cancellations"
_LONGEST_WAIT = 30 * 24 * 3600 * 1000
"""Milliseconds of one timer."""


class BulkRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A bulk operation; see ``BulkOperationView``.

    - Times are milliseconds since the epoch.
    - ``statuses``: those of a replay; a cancellation has none.
    - ``is_stopped``: it was deleted.
    """

    id: str
    function_id: str
    started_before: int
    created_at: int
    started_after: int | None = None
    expression: str | None = None
    statuses: tuple[RunStatus, ...] = ()
    ended_at: int | None = None
    affected: int = 0
    is_stopped: bool = False

    @property
    def is_replay(self) -> bool:
        return bool(self.statuses)


class BulkInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of a bulk operation: runs after ``cursor``, a run id."""

    record: BulkRecord
    cursor: str | None = None


class BulkPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The runs to which the operation was applied.

    ``cursor`` is the start of the next page, or ``None`` if there are no more runs.
    """

    run_ids: list[str] = []
    cursor: str | None = None


@workflow.defn(name="durably.Bulk", sandboxed=False)
class BulkWorkflow:
    @workflow.init
    def __init__(self, work: BulkInput) -> None:
        self._record = work.record
        self._applied: set[str] = set()
        self._is_stopped = False

    @workflow.run
    async def run(self, work: BulkInput) -> BulkRecord:
        """The record, with the number of runs."""
        cursor = work.cursor
        while not self._is_stopped:
            page = await workflow.execute_activity(
                BULK_PAGE,
                BulkInput(self._record, cursor),
                result_type=BulkPage,
                start_to_close_timeout=_PAGE_TIMEOUT,
                heartbeat_timeout=_HEARTBEAT_TIMEOUT,
                retry_policy=RetryPolicy(maximum_interval=dt.timedelta(minutes=1)),
            )
            self._note(page)
            cursor = page.cursor
            if cursor is None and not await self._wait_for_more():
                break
            if history_is_long():
                workflow.continue_as_new(BulkInput(self._record, cursor), memo={BULK: self._record})
        return self._record

    @workflow.signal(name="stop")
    def stop(self) -> None:
        self._is_stopped = True
        self._put(msgspec.structs.replace(self._record, is_stopped=True))

    def _note(self, page: BulkPage) -> None:
        new = [each for each in page.run_ids if each not in self._applied]
        self._applied.update(new)
        record = msgspec.structs.replace(self._record, affected=self._record.affected + len(new))
        if page.cursor is None and record.ended_at is None:
            record = msgspec.structs.replace(record, ended_at=now())
        self._put(record)

    async def _wait_for_more(self) -> bool:
        """Whether a cancellation must search for runs again."""
        if self._record.is_replay:
            return False
        if not workflow.patched(_STARTS_CHECK):
            return now() < self._record.started_before + _LAG and not await self._is_stopped_within(_PAUSE)
        assert self._record.ended_at is not None
        if now() < self._record.ended_at + _LAG:
            return not await self._is_stopped_within(_PAUSE)
        until = max(self._record.started_before, self._record.created_at + FOLLOWED_FOR)
        while (left := until - now()) > 0:
            if await self._is_stopped_within(min(left, _LONGEST_WAIT)):
                break
        return False

    async def _is_stopped_within(self, milliseconds: int) -> bool:
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._is_stopped, timeout=milliseconds / 1000)
        return self._is_stopped

    def _put(self, record: BulkRecord) -> None:
        if record != self._record:
            self._record = record
            workflow.upsert_memo({BULK: record})
