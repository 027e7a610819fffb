"""What the parts of a run's workflow share: its state and content, and the slots of its calls.

Everything here is workflow code.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError

from durably.engine.core.flow.admission import STARTED_LATE
from durably.engine.core.inputs import CancelRequested, EndRun, Input, WaitResolved
from durably.engine.core.machine import start
from durably.engine.core.run_state import RunStatus
from durably.engine.core.transition import data_memo
from durably.engine.model.events import ReceivedEvent
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import CopiedMemos, InvokerRecord, RunFlowState, RunInput
from durably.engine.temporal.routing.limit_queue import CHANGE_QUEUE, QueueChange
from durably.engine.temporal.runs.contents import CACHED, CONTENTS, CachedContent, RunContent
from durably.engine.temporal.workflow_code import now
from durably.protocol.opcodes import Op


class RunContext:
    """State, events and memos of a run, and the tasks that execute its commands.

    ``apply`` applies an input to the run. ``error`` is the first error of a task: an error of the engine or of its
    configuration.
    """

    def __init__(self, run: RunInput, apply: Callable[[Input], None]) -> None:
        self.run = run
        self.apply = apply
        self.error: Exception | None = None
        self.triggers = [
            ReceivedEvent(each.id, each.name, bytes(each.body), origin=each.origin, traceparent=each.traceparent)
            for each in run.events
        ]
        copied = run.copied or CopiedMemos(run_id="", memos=0, size=0)
        given = copied.step_input
        step_input = None if given is None else (given.step_id, bytes(given.memo))
        self._cached = CachedContent(RunContent([event.body for event in self.triggers], step_input))
        self.memoised: set[str] = set()
        self.state = start(run.max_attempts, now(), copied.memos, copied.size)
        self.flow = RunFlowControl(run, self.cancel)
        self.registrations: set[asyncio.Task[None]] = set()
        """Registrations of waits. The steps after them run only when they are registered."""
        self._content_key = workflow.info().run_id
        CACHED[self._content_key] = self._cached

    @property
    def content(self) -> RunContent:
        return self._cached.content

    def add_memo(self, step_id: str, memo: bytes) -> None:
        self.memoised.add(step_id)
        self.content.add(step_id, memo)

    def share_content(self) -> None:
        """Share the content with the calls that this process makes."""
        CONTENTS.put(self._content_key, self.content)

    def forget_content(self) -> None:
        CONTENTS.forget(self._content_key)

    def cancel(self, reason: str) -> None:
        self.apply(CancelRequested(reason))

    def known(self, ops: Iterable[Op], target: str = "") -> frozenset[str]:
        return frozenset({target, *(op.id for op in ops)} & self.memoised)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(work, *arguments))

    async def _run(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        try:
            await work(*arguments)
        except Exception as error:
            self.error = self.error or error


def stop(task: asyncio.Task[None]) -> None:
    if task is not asyncio.current_task():
        task.cancel()


_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_MAX_HELD = 1000
"""Milliseconds for which a run keeps a slot for its next calls, which then need no exchange with the queue."""
_EARLY_SECONDS = 1
"""Time in which a call requests a slot that it has already. It usually does so in the same workflow task."""


class RunFlowControl:
    """Queues a run's calls before they are made, and removes them afterwards."""

    def __init__(self, run: RunInput, cancel: Callable[[str], None]) -> None:
        self._run = run
        self._cancel = cancel
        self._flow = run.flow or RunFlowState()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._slots: dict[int, tuple[int, int]] = {}
        """The slots of calls: the generation that the queue knows, and the time of its grant."""
        self._joined: list[int] = []
        self._left: list[tuple[int, int]] = []
        self._change: asyncio.Task[None] | None = None
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
    def has_started(self) -> bool:
        """Whether the first call was made, or may be made without a slot."""
        return self._has_started or self._flow.queue is None

    @property
    def has_limits(self) -> bool:
        """Whether the run's calls count against concurrency limits."""
        return self._flow.queue_entry is not None and bool(self._flow.queue_entry.slots)

    async def acquire(self, generation: int) -> None:
        """Wait until the call may be made. Always call ``release`` afterwards."""
        entry = self._flow.queue_entry
        starts_run = not self._has_started
        if entry is None or self._flow.queue is None or not entry.has_to_queue(starts_run=starts_run):
            self._has_started = True
            return
        start_by = self._flow.start_by
        if self._flow.start_within is not None:
            start_by = int(workflow.info().start_time.timestamp() * 1000) + self._flow.start_within
        if starts_run and self._timeout is None and start_by is not None:
            self._timeout = asyncio.create_task(self._cancel_late(start_by))
        granted = self._waiting[generation] = asyncio.get_running_loop().create_future()
        self._asked.add(generation)
        if generation in self._early:
            self._early.pop(generation).cancel()
            granted.set_result(None)
        else:
            self._joined.append(generation)
            self._change_queue()
        await granted
        self._slots.setdefault(generation, (generation, now()))
        self._has_started = True
        self._stop_timeout()

    async def _cancel_late(self, start_by: int) -> None:
        seconds = start_by / 1000 - workflow.now().timestamp()
        await workflow.sleep(max(seconds, 0.001), summary="timeouts.start")
        self._timeout = None
        if not self._has_started:
            self._cancel(STARTED_LATE)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()

    def grant(self, generation: int) -> None:
        waiting = self._waiting.get(generation)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        elif waiting is not None or any(generation == granted for granted, _ in self._slots.values()):
            pass  # The grant was repeated.
        elif generation in self._asked or generation in self._early or self._has_ended:
            self._leave(generation)  # The call was released, or a stalled process queued it again.
        else:
            self._early[generation] = asyncio.create_task(self._leave_unasked(generation))

    async def _leave_unasked(self, generation: int) -> None:
        await workflow.sleep(_EARLY_SECONDS, summary="slot of a lost worker")
        del self._early[generation]
        self._leave(generation)

    def release(self, generation: int) -> None:
        """Leave the queue. Does nothing if the call did not join."""
        if self._waiting.pop(generation, None) is not None:
            self._leave(*self._slots.pop(generation, (generation, 0)))

    def _leave(self, generation: int, since: int = 0) -> None:
        self._left.append((generation, since))
        self._change_queue()

    def _change_queue(self) -> None:
        if self._change is None:
            self._change = asyncio.create_task(self._send_changes())

    async def _send_changes(self) -> None:
        """Send changes to the queue, one after another. A call usually gives its slot to the next one, without one."""
        queue, entry = self._flow.queue, self._flow.queue_entry
        assert queue is not None
        assert entry is not None
        while self._joined or self._left:
            self._reuse_slots()
            if not (self._joined or self._left):
                break
            change = QueueChange(
                queue=queue,
                function_id=self._run.function_id,
                run_id=self._run.run_id,
                queue_entry=entry,
                joined=tuple(self._joined),
                starts_run=not self._has_started,
                left=tuple(generation for generation, _ in self._left),
            )
            self._joined, self._left = [], []
            await workflow.execute_local_activity(CHANGE_QUEUE, change, start_to_close_timeout=_LOCAL_TIMEOUT)
        self._change = None

    def _reuse_slots(self) -> None:
        reusable = [slot for slot in self._left if now() < slot[1] + _MAX_HELD]
        while self._joined and reusable:
            generation, slot = self._joined.pop(0), reusable.pop(0)
            if generation in self._waiting:
                self._left.remove(slot)
                self._slots[generation] = slot
                self._waiting[generation].set_result(None)

    async def end(self, end: EndRun) -> None:
        """Release all slots, and report the end to steps that invoked it through a bucket."""
        self._stop_timeout()
        self._has_ended = True
        for generation in list(self._waiting):
            self.release(generation)
        for generation, task in self._early.items():
            task.cancel()
            self._leave(generation)
        signals = []
        if self._flow.singleton is not None:
            signals.append(_signal(self._flow.singleton, "release", self._run.run_id))
        signals += [_resolve(event.invoker, end) for event in self._run.events if event.invoker is not None]
        await asyncio.gather(*signals)
        while self._change is not None:
            await workflow.wait([self._change])


async def _resolve(invoker: InvokerRecord, end: EndRun) -> None:
    failed = end.status is not RunStatus.COMPLETED
    memo = b'{"error":' + end.output + b"}" if failed else data_memo(end.output)
    await _signal(run_workflow_id(invoker.run_id), "resolve", WaitResolved(invoker.step_id, memo, failed=failed))


async def _signal(workflow_id: str, signal: str, argument: object) -> None:
    """Send a signal, unless the workflow has ended and needs none."""
    try:
        await workflow.get_external_workflow_handle(workflow_id).signal(signal, argument)
    except FailureError as error:
        workflow.logger.debug("%s: %s", workflow_id, error)
