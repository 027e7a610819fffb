"""Flow control in a run's workflow: slots for its calls, and reports of its end."""

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine
from typing import Any

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import FailureError

from durably.engine.core.flow.admission import STARTED_LATE
from durably.engine.core.inputs import EndRun, WaitResolved
from durably.engine.core.run_state import RunStatus
from durably.engine.core.transition import data_memo
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import InvokerRecord, RunFlowState, RunInput

from .limit_queue_state import JoinInput, LeaveRecord

JOIN = "durably.join"
RESTORE_QUEUE = "durably.restore_queue"
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_EARLY_GRANTS = "early-grants"
_EARLY_SECONDS = 1
"""Time in which a call requests a slot that it has already. It usually does so in the same workflow task."""
_OF_BEGUN_RUNS = Priority(priority_key=2)
"""Temporal's default priority is 3."""


class RunFlowControl:
    """Queues a run's calls before they are made, and removes them afterwards."""

    def __init__(self, run: RunInput, cancel: Callable[[str], None]) -> None:
        self._run = run
        self._cancel = cancel
        self._flow = run.flow or RunFlowState()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._joining: dict[int, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Future[object]] = set()
        self._asked: set[int] = set()
        """Generations that have requested a slot."""
        self._early: dict[int, asyncio.Task[None]] = {}
        """Slots of generations that have not requested one yet.

        A worker may queue a call and end before it stores its workflow task. The next worker then gets the grant first.
        """
        self._has_ended = False
        self._has_started = False
        self._timeout: asyncio.Task[None] | None = None

    @property
    def calls_queue(self) -> str:
        """The task queue of the run's calls."""
        return self._flow.calls_queue or self._run.calls_queue

    def priority_of(self, generation: int) -> Priority:
        """The priority of a call in its task queue.

        Started runs come before new runs. Servers without priorities ignore it.
        """
        has_begun = self._flow.calls_queue is not None and generation > 1
        return _OF_BEGUN_RUNS if has_begun else Priority.default

    @property
    def has_started(self) -> bool:
        """Whether the first call was made, or may be made without a slot."""
        return self._has_started or self._flow.queue is None

    async def acquire(self, generation: int) -> None:
        """Wait until the call may be made. Always call ``release`` afterwards."""
        entry, queue = self._flow.queue_entry, self._flow.queue
        starts_run = not self._has_started
        if entry is None or queue is None or not entry.has_to_queue(starts_run=starts_run):
            self._has_started = True
            return
        start_by = self._start_by
        if starts_run and self._timeout is None and start_by is not None:
            self._timeout = asyncio.create_task(self._cancel_late(start_by))
        record = JoinInput(queue, self._run.function_id, self._run.run_id, generation, entry, starts_run=starts_run)
        granted = self._waiting[generation] = asyncio.get_running_loop().create_future()
        self._asked.add(generation)
        if generation in self._early:
            self._early.pop(generation).cancel()
            granted.set_result(None)
        else:
            self._joining[generation] = asyncio.create_task(self._join(record))
        await granted
        self._has_started = True
        self._stop_timeout()

    @property
    def _start_by(self) -> int | None:
        if self._flow.start_within is None:
            return self._flow.start_by
        return int(workflow.info().start_time.timestamp() * 1000) + self._flow.start_within

    async def _cancel_late(self, start_by: int) -> None:
        seconds = start_by / 1000 - workflow.now().timestamp()
        await workflow.sleep(max(seconds, 0.001), summary="timeouts.start")
        self._timeout = None
        if not self._has_started:
            self._cancel(STARTED_LATE)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()

    async def _join(self, record: JoinInput) -> None:
        await workflow.execute_local_activity(JOIN, record, start_to_close_timeout=_LOCAL_TIMEOUT)

    def grant(self, generation: int) -> None:
        waiting = self._waiting.get(generation)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(None)
        elif self._may_request(generation) and workflow.patched(_EARLY_GRANTS):
            self._early[generation] = asyncio.create_task(self._leave_unasked(generation))
        else:
            self._send(self._leave(generation))  # The call was released, or a stalled process queued it again.

    def _may_request(self, generation: int) -> bool:
        return generation not in self._asked and generation not in self._early and not self._has_ended

    async def _leave_unasked(self, generation: int) -> None:
        await workflow.sleep(_EARLY_SECONDS, summary="slot of a lost worker")
        del self._early[generation]
        self._send(self._leave(generation))

    def release(self, generation: int) -> None:
        """Leave the queue. Does nothing if the call did not join."""
        if self._waiting.pop(generation, None) is not None:
            self._send(self._leave(generation))

    async def _leave(self, generation: int) -> None:
        joining = self._joining.pop(generation, None)
        if joining is not None:
            await joining
        queue, left = self._flow.queue, LeaveRecord(self._run.run_id, generation)
        if queue is None or await _signal(queue, "leave", left) or not workflow.patched("restore-queue"):
            return
        # A queue in use does not end by itself, so a user has terminated it. Other runs may wait in it.
        await workflow.execute_local_activity(RESTORE_QUEUE, queue, start_to_close_timeout=_LOCAL_TIMEOUT)
        await _signal(queue, "leave", left)

    async def end(self, end: EndRun) -> None:
        """Release all slots, and report the end to steps that invoked it through a bucket."""
        self._stop_timeout()
        self._has_ended = True
        for generation in list(self._waiting):
            self.release(generation)
        for generation, task in self._early.items():
            task.cancel()
            self._send(self._leave(generation))
        if self._flow.singleton is not None:
            self._send(_signal(self._flow.singleton, "release", self._run.run_id))
        for event in self._run.events:
            if event.invoker is not None:
                self._send(_resolve(event.invoker, end))
        while self._sending:
            await asyncio.wait([*self._sending])

    def _send(self, sending: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Future[object] = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


async def _resolve(invoker: InvokerRecord, end: EndRun) -> None:
    failed = end.status is not RunStatus.COMPLETED
    memo = b'{"error":' + end.output + b"}" if failed else data_memo(end.output)
    await _signal(run_workflow_id(invoker.run_id), "resolve", WaitResolved(invoker.step_id, memo, failed=failed))


async def _signal(workflow_id: str, signal: str, argument: object) -> bool:
    """Send a signal. Returns false if the workflow has ended and needs none."""
    try:
        await workflow.get_external_workflow_handle(workflow_id).signal(signal, argument)
    except FailureError as error:
        workflow.logger.debug("%s: %s", workflow_id, error)
        return False
    return True
