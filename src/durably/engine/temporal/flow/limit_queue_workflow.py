"""The workflow of a queue of calls. It ends when no run needs a slot."""

import asyncio
import datetime as dt

from temporalio import workflow
from temporalio.exceptions import FailureError

from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.workflow_code import (
    EarliestTimer,
    history_is_long,
    now,
    pack,
    stores_clipped_levels,
    unpack,
)

from .bucket_workflow import FIND_ENDED
from .limit_queue import CallLimitQueue
from .limit_queue_state import FunctionLimits, JoinRecord, LeaveRecord, LimitQueueState, QueueCounts

QUEUE = "durably.Queue"
READ_LIMITS = "durably.read_limits"
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_INSPECTION_PERIOD = 60_000
"""Milliseconds between inspections, which find terminated runs and new limits."""


@workflow.defn(name=QUEUE, sandboxed=False)
class LimitQueueWorkflow:
    @workflow.init
    def __init__(self, state: LimitQueueState) -> None:
        self._queue = CallLimitQueue(unpack(state))
        self._granting: set[asyncio.Task[None]] = set()
        self._is_changed = False
        self._timer = EarliestTimer(self._wake)
        self._inspection = 0

    @workflow.run
    async def run(self, state: LimitQueueState) -> None:
        self._inspection = now() + _INSPECTION_PERIOD
        while True:
            self._is_changed = False
            if self._inspection <= now():
                await self._inspect()
            for made in self._queue.settle(now(), stores_clipped_levels):
                task = asyncio.create_task(self._grant(made))
                self._granting.add(task)
                task.add_done_callback(self._granting.discard)
            if history_is_long():
                await workflow.wait_condition(lambda: not self._granting)
                workflow.continue_as_new(pack(self._queue.state))
            if self._queue.is_empty and not (self._granting or self._is_changed):
                return
            self._set_timer()
            await workflow.wait_condition(lambda: self._is_changed)

    @workflow.signal(name="join")
    def join(self, record: JoinRecord) -> None:
        self._queue.join(record)
        self._is_changed = True

    @workflow.signal(name="leave")
    def leave(self, record: LeaveRecord) -> None:
        self._queue.leave(record)
        self._is_changed = True

    @workflow.query(name="counts")
    def counts(self) -> QueueCounts:
        return self._queue.counts

    async def _grant(self, made: LeaveRecord) -> None:
        handle = workflow.get_external_workflow_handle(run_workflow_id(made.run_id))
        try:
            await handle.signal("granted", made.generation)
        except FailureError:
            self._queue.leave(made)  # The run has ended.
        self._is_changed = True

    async def _inspect(self) -> None:
        """Free the slots of terminated runs, and read the functions' limits."""
        holders, function_ids = self._queue.holders, self._queue.function_ids
        if holders:
            for run_id in await workflow.execute_local_activity(
                FIND_ENDED, holders, result_type=list[str], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                self._queue.drop_run(run_id)
        if self._queue.counts.waiting:
            for limits in await workflow.execute_local_activity(
                READ_LIMITS, function_ids, result_type=list[FunctionLimits], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                self._queue.update_options(limits.function_id, limits.options)
        self._inspection = now() + _INSPECTION_PERIOD

    def _set_timer(self) -> None:
        times = [self._inspection] if self._queue.holders else []
        self._timer.set(min((each for each in (*times, self._queue.next_time()) if each is not None), default=None))

    def _wake(self, due: int) -> None:
        self._is_changed = True
