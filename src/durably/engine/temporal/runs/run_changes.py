"""Changes of runs, as their workflows report them to their process.

They are for metrics, the log and spans. Nothing else depends on them.

A module variable is the only access of workflows to their process. A replay reports nothing. A task is executed again,
and reports again, if the server refuses it because an event came during it, or gives it to a second process. So an end
is certain only when the runtime evicts the workflow because the server has accepted the end.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

import msgspec
from temporalio import workflow

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
from durably.engine.model.runs import END_UPDATES, UpdateKind
from durably.engine.model.settings import EndedRun
from durably.engine.model.subscriptions import RunChange, call_repeated, step_ended, step_waits
from durably.engine.temporal.messages import RunInput
from durably.engine.temporal.workflow_code import now
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode
from durably.temporal.compat import Eviction

from .run_record import RunRecord

_WAITS = {
    Sleep: Opcode.SLEEP,
    AwaitEvent: Opcode.WAIT_FOR_EVENT,
    AwaitSignal: Opcode.WAIT_FOR_SIGNAL,
    Invoke: Opcode.INVOKE_FUNCTION,
}


class RunReport(msgspec.Struct, frozen=True, gc=False):
    """A change of a run.

    ``key`` is the same in each report of the change. The end of a run has ``ended``.
    """

    key: int
    change: RunChange
    ended: EndedRun | None = None


Listener = Callable[[list[RunReport]], None]
EvictionListener = Callable[[int, Eviction], None]
"""Gets the key of an end, and the reason for the eviction of the workflow that may have reported it."""

_listeners: dict[tuple[str, str], tuple[Listener, EvictionListener]] = {}
"""Listeners for reports, by namespace and task queue of the workflows."""


def listen(
    namespace: str, queues: Iterable[str], listener: Listener, on_eviction: EvictionListener
) -> Callable[[], None]:
    """Call ``listener`` with reports, on the running event loop.

    ``on_eviction`` is called after them. Returns a function that removes the listener.
    """
    loop = asyncio.get_running_loop()

    def report(reports: list[RunReport]) -> None:
        with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
            loop.call_soon_threadsafe(listener, reports)

    def report_eviction(key: int, eviction: Eviction) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(on_eviction, key, eviction)

    listeners = report, report_eviction
    keys = [(namespace, queue) for queue in queues]
    _listeners.update(dict.fromkeys(keys, listeners))

    def end() -> None:
        for key in keys:
            if _listeners.get(key) is listeners:
                del _listeners[key]

    return end


def find_listener() -> Listener | None:
    """The listener for reports of the running workflow.

    ``None`` during a replay. Workflow code.
    """
    info = workflow.info()
    listeners = _listeners.get((info.namespace, info.task_queue))
    return None if listeners is None or workflow.unsafe.is_replaying() else listeners[0]


def report_eviction(info: workflow.Info, eviction: Eviction) -> None:
    """Report the eviction of a workflow, which decides whether its end is certain."""
    listeners = _listeners.get((info.namespace, info.task_queue))
    if listeners is not None:
        listeners[1](_key_of_end(info.run_id), eviction)


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
        if report := find_listener():
            report([self._report(RunChange(UpdateKind.RUN_STARTED, now(), self._run))])

    def note(self, commands: Sequence[Command]) -> None:
        """Report the effects of an input that the record already contains."""
        report = find_listener()
        if report is None:
            return
        at = now()
        written = len(self._record.steps) - sum(type(command) is WriteMemo for command in commands)
        reports: list[RunReport] = []
        for command in commands:
            match command:
                case WriteMemo(step_id=step_id):
                    times = self._record.steps[written].times
                    written += 1
                    began = times.created_at if times.ran_from is None else times.ran_from // 1000
                    reports.append(self._report(step_ended(self._run, command, began, times.ran_for, at), step_id))
                case MakeCall(call=call, failed=failed) if failed is not None:
                    reports.append(self._report(call_repeated(self._run, call, at), call.generation))
                case Sleep() | AwaitEvent() | AwaitSignal() | Invoke():
                    waiting = step_waits(self._run, command.name, _WAITS[type(command)], command.until, at)
                    reports.append(self._report(waiting, command.step_id))
        if reports:
            report(reports)

    def note_end(self, end: EndRun) -> None:
        """Report the end of the run."""
        report = find_listener()
        if report is None:
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
        report([RunReport(_key_of_end(workflow.info().run_id), change, ended)])

    def _report(self, change: RunChange, part: str | int = "") -> RunReport:
        """Report a change. ``part`` is the changed part of the run: a step, or a call."""
        return RunReport(hash((workflow.info().run_id, change.kind, part)), change)
