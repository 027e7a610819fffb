"""Changes of runs for metrics, the log and spans: workflows report them, and the process publishes them.

No run depends on them. A module variable is the only access of workflows to their process. A replay reports nothing. A
task is executed again, and reports again, if the server refuses it because an event came during it, or gives it to a
second process. So an end is certain only when the runtime evicts the workflow because the server has accepted the end.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import msgspec
from temporalio import activity, workflow

from durably.engine.api.counters import RunObservers
from durably.engine.api.metrics import Metric, Sample
from durably.engine.core.calls import Answer, CallData
from durably.engine.core.inputs import (
    AwaitEvent,
    AwaitSignal,
    Command,
    EndRun,
    Invoke,
    MakeCall,
    Sleep,
    WriteMemo,
)
from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import END_UPDATES, RunUpdate, UpdateKind
from durably.engine.model.settings import EndedRun, EngineSettings
from durably.engine.model.subscriptions import (
    EndedCall,
    Group,
    RunChange,
    Subscriptions,
    call_repeated,
    step_ended,
    step_waits,
)
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.messages import CallInput, RunInput
from durably.engine.temporal.runs.activities import ActivityCaller
from durably.engine.temporal.runs.record import RunRecord
from durably.engine.temporal.workflow_code import now, wall_clock
from durably.protocol.errors import ErrorData
from durably.protocol.headers import VERSION
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger
from durably.temporal.compat import Eviction

_WAITS = {
    Sleep: Opcode.SLEEP,
    AwaitEvent: Opcode.WAIT_FOR_EVENT,
    AwaitSignal: Opcode.WAIT_FOR_SIGNAL,
    Invoke: Opcode.INVOKE_FUNCTION,
}


class ReportedChange(msgspec.Struct, frozen=True, gc=False):
    """A change of a run.

    ``key`` is the same in each report of the change. The end of a run has ``ended``.
    """

    key: int
    change: RunChange
    ended: EndedRun | None = None


_monitors: dict[tuple[str, str], "ProcessMonitor"] = {}
"""Monitors by namespace and task queue of the workflows."""


def _find_monitor() -> "ProcessMonitor | None":
    """The monitor of the running workflow. ``None`` during a replay. Workflow code."""
    info = workflow.info()
    return None if workflow.unsafe.is_replaying() else _monitors.get((info.namespace, info.task_queue))


def report_eviction(info: workflow.Info, eviction: Eviction) -> None:
    """Report the eviction of a workflow, which decides whether its end is certain."""
    monitor = _monitors.get((info.namespace, info.task_queue))
    if monitor is not None:
        monitor.note_eviction(_key_of_end(info.run_id), eviction)


def _key_of_end(workflow_run_id: str) -> int:
    return hash((workflow_run_id, "end"))


class _Run(msgspec.Struct, frozen=True, gc=False):
    """The run of a change (``ChangedRun``)."""

    id: str
    function_id: str
    app_id: str
    created_at: int


class RunChanges:
    """Reports the changes of one run."""

    def __init__(self, run: RunInput, record: RunRecord) -> None:
        created_at = int(workflow.info().start_time.timestamp() * 1000)
        self._run = _Run(run.run_id, run.function_id, run.app_id, created_at)
        self._input = run
        self._record = record
        self._has_started = False

    def note_start(self) -> None:
        """Report the start of a run that does not end immediately."""
        self._has_started = True
        if monitor := _find_monitor():
            monitor.note([self._report(RunChange(UpdateKind.RUN_STARTED, now(), self._run))])

    def note(self, commands: Sequence[Command]) -> None:
        """Report the effects of an input that the record already contains."""
        monitor = _find_monitor()
        if monitor is None:
            return
        at = now()
        written = len(self._record.steps) - sum(type(command) is WriteMemo for command in commands)
        reports: list[ReportedChange] = []
        for command in commands:
            match command:
                case WriteMemo(step_id=step_id):
                    times = self._record.steps[written].times
                    written += 1
                    began = times.created_at if times.ran_from is None else times.ran_from // 1000
                    reports.append(self._report(step_ended(self._run, command, began, times.ran_for, at), step_id))
                case MakeCall(call=call, failed=failed) if failed is not None:
                    repeated = call_repeated(self._run, call, at, failed.usage)
                    reports.append(self._report(repeated, call.generation))
                case Sleep() | AwaitEvent() | AwaitSignal() | Invoke():
                    waiting = step_waits(self._run, command.name, _WAITS[type(command)], command.until, at)
                    reports.append(self._report(waiting, command.step_id))
        if reports:
            monitor.note(reports)

    def note_end(self, end: EndRun) -> None:
        """Report the end of the run."""
        monitor = _find_monitor()
        if monitor is None:
            return
        at, is_completed = now(), end.status is RunStatus.COMPLETED
        began = self._record.started_at
        if began is None and self._has_started:
            began = self._run.created_at
        change = RunChange(
            END_UPDATES[end.status],
            at,
            self._run,
            output=end.output,
            failed=not is_completed,
            began=began,
            event_id=self._input.events[0].id,
            by_engine=end.by_engine,
        )
        ended = EndedRun(
            run_id=self._run.id,
            function_id=self._run.function_id,
            app_id=self._run.app_id,
            status=end.status,
            created_at=self._run.created_at,
            ended_at=at,
            traceparents=tuple(event.traceparent for event in self._input.events),
            rerun_of=self._input.rerun_of,
            error=None if is_completed else msgspec.json.decode(end.output, type=ErrorData).name,
        )
        monitor.note([ReportedChange(_key_of_end(workflow.info().run_id), change, ended)])

    def _report(self, change: RunChange, part: str | int = "") -> ReportedChange:
        """Report a change. ``part`` is the changed part of the run: a step, or a call."""
        return ReportedChange(hash((workflow.info().run_id, change.kind, part)), change)


_NO_COMMIT = Group(committed=0, failed=0, seconds=0.0)
"""Workflows report run changes; no local transaction commits them."""
_UNCONFIRMED_SECONDS = 0.5
"""Delay before the end of a run is published if the server may not have accepted it."""
_MOST_KNOWN = 10_000
"""Recent reports, to drop duplicates."""

_logger = get_logger("durably.engine")


class ProcessMonitor:
    """The metrics, updates and log lines of the runs and calls of one process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._observers = RunObservers(settings)
        self._updates = Subscriptions()
        self._in_flight = Counter[str]()
        self._started_at = time.time()
        self._tracing = settings.tracing
        self._ends: dict[int, ReportedChange] = {}
        """Ends that the server may not have accepted. It refuses the task that ends a run if an event arrives during
        it, and the run may then end in another way."""
        self._known = set[int]()
        self._known_in_order = deque[int]()
        self._loop: asyncio.AbstractEventLoop | None = None

    def monitor(self, namespace: str, queues: Sequence[str], caller: ActivityCaller) -> ActivityCaller:
        """Follow the runs of these task queues, on the running event loop.

        Returns a caller that makes calls through ``caller``, and counts and traces them.
        """
        self._stop()
        self._loop = asyncio.get_running_loop()
        _monitors.update({(namespace, queue): self for queue in queues})
        return partial(self._count, caller)

    def _stop(self) -> None:
        for key in [key for key, monitor in _monitors.items() if monitor is self]:
            del _monitors[key]

    # called by workflows and workers, in threads

    def note(self, reports: list[ReportedChange]) -> None:
        self._call(self._note, reports)

    def note_eviction(self, key: int, eviction: Eviction) -> None:
        """``key`` is that of an end which the evicted workflow may have reported."""
        self._call(self._note_eviction, key, eviction)

    def _call(self, note: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
            self._loop.call_soon_threadsafe(note, *arguments)

    # on the event loop

    def _note(self, reports: list[ReportedChange]) -> None:
        changes: list[RunChange] = []
        for report in reports:
            if report.key in self._known:
                continue
            if report.ended is None:
                self._remember(report.key)
                changes.append(report.change)
            else:
                self._ends[report.key] = report
        if changes:
            self._publish(changes)

    def _note_eviction(self, key: int, eviction: Eviction) -> None:
        report = self._ends.get(key)
        if report is None:
            return
        match eviction:
            case Eviction.ENDED:
                self._publish_end(report)
            case Eviction.REFUSED:
                del self._ends[key]
            case Eviction.OTHER:
                asyncio.get_running_loop().call_later(_UNCONFIRMED_SECONDS, self._publish_end, report)

    def _publish_end(self, report: ReportedChange) -> None:
        """Publish an end, unless the workflow was executed again and reported another."""
        if self._ends.get(report.key) is not report:
            return
        del self._ends[report.key]
        self._remember(report.key)
        self._publish([report.change])
        if self._tracing is not None and report.ended is not None:
            self._tracing.run_ended(report.ended)

    def _remember(self, key: int) -> None:
        self._known.add(key)
        self._known_in_order.append(key)
        if len(self._known_in_order) > _MOST_KNOWN:
            self._known.discard(self._known_in_order.popleft())

    def _publish(self, changes: list[RunChange]) -> None:
        self._observers.changes += changes
        self._observers.on_commit(_NO_COMMIT)
        if self._updates.listeners:
            for change in changes:
                self._updates.publish(change)

    async def _count(self, caller: ActivityCaller, call: CallInput, data: CallData) -> Answer:
        delay, began = _delay_of(call), time.perf_counter()
        self._in_flight[call.function_id] += 1
        try:
            answer = await self._trace(caller, call, data)
        finally:
            self._in_flight[call.function_id] -= 1
        self._observers.on_call(EndedCall(call.function_id, delay, time.perf_counter() - began, answer))
        return answer

    async def _trace(self, caller: ActivityCaller, call: CallInput, data: CallData) -> Answer:
        """Make a call in its own span. Calls are activities, so replays make no spans."""
        if self._tracing is None:
            return await caller(call, data)
        info = activity.info()
        known = msgspec.structs.replace(data, call=call.call)
        execution = execution_of(info.workflow_run_id or "")
        with self._tracing.calling(known, execution=execution, repetition=info.attempt - 1) as span:
            answer = await caller(call, msgspec.structs.replace(data, traceparent=span.traceparent))
            span.answered(answer)
            return answer

    def note_events(self, names: Sequence[str], unmatched: Collection[str]) -> None:
        """Count the events of a sender, and how many of them match nothing."""
        self._observers.counters.received += len(names)
        if unmatched:
            self._observers.on_unmatched([name for name in names if name in unmatched])

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        return self._updates.watch()

    def read(self) -> list[Metric]:
        """The metrics of this process."""
        in_flight = Counter[str]()
        for function_id, calls in self._in_flight.items():
            in_flight[self._observers.counters.label_of(function_id)] += calls
        return [
            *self._observers.counters.read(),
            Metric("calls_in_flight", [Sample((label,), calls) for label, calls in in_flight.items()]),
            Metric("start_time_seconds", [Sample((), self._started_at)]),
            Metric("build_info", [Sample((VERSION,), 1)]),
        ]

    def end_updates(self) -> None:
        self._updates.close()

    async def close(self) -> None:
        self._stop()
        for report in list(self._ends.values()):
            self._publish_end(report)
        self._updates.close()


def _delay_of(call: CallInput) -> int:
    """Milliseconds between the due time of the call and now.

    Limits and the task queue have delayed it.
    """
    info = activity.info()
    due = call.call.due
    if info.attempt > 1:  # Earlier attempts did not reach the app.
        due = max(due, int(info.current_attempt_scheduled_time.timestamp() * 1000))
    return max(0, wall_clock() - due)
