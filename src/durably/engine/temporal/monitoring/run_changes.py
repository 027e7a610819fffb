"""Changes of runs, as their workflows report them for metrics, the log and alerts.

Nothing depends on it. It is workflow code, except for the class of reports.
"""

from collections.abc import Sequence

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
from durably.engine.scheduling.subscriptions import ENDS, RunChange, call_repeated, step_ended, step_waits
from durably.engine.temporal.messages import RunInput
from durably.engine.temporal.runs.run_record import RunRecord
from durably.engine.temporal.workflow_time import now
from durably.engine.views import UpdateKind
from durably.protocol.opcodes import Opcode

from .process_reports import ProcessReports

CHANGES = ProcessReports[list[RunChange]]()

_OPS = {AwaitEvent: Opcode.WAIT_FOR_EVENT, AwaitSignal: Opcode.WAIT_FOR_SIGNAL, Invoke: Opcode.INVOKE_FUNCTION}


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
        self._event_id = run.events[0].id
        self._record = record
        self._has_started = False

    def note_start(self) -> None:
        """Report the start of a run that does not end at once."""
        self._has_started = True
        if report := CHANGES.listener:
            report([RunChange(UpdateKind.RUN_STARTED, now(), self._run)])

    def note(self, commands: Sequence[Command]) -> None:
        """Report what an input has caused, which is in the record already."""
        report = CHANGES.listener
        if report is None:
            return
        at = now()
        written = len(self._record.steps) - sum(type(command) is WriteMemo for command in commands)
        changes: list[RunChange] = []
        for command in commands:
            match command:
                case WriteMemo():
                    times = self._record.steps[written].times
                    written += 1
                    began = times.created_at if times.ran_from is None else times.ran_from // 1000
                    changes.append(step_ended(self._run, command, began, times.ran_for, at))
                case MakeCall(call=call, failed=failed) if failed is not None:
                    changes.append(call_repeated(self._run, call, at))
                case Sleep(name=name, until=until):
                    changes.append(step_waits(self._run, name, Opcode.SLEEP, until, at))
                case (
                    AwaitEvent(name=name, until=until)
                    | AwaitSignal(name=name, until=until)
                    | Invoke(name=name, until=until)
                ):
                    changes.append(step_waits(self._run, name, _OPS[type(command)], until, at))
        if changes:
            report(changes)

    def note_end(self, end: EndRun) -> None:
        """Report the end of the run."""
        report = CHANGES.listener
        if report is None:
            return
        began = self._record.started_at
        if began is None and self._has_started:
            began = self._run.created_at
        change = RunChange(
            ENDS[end.status],
            now(),
            self._run,
            output=end.output,
            failed=end.status is not RunStatus.COMPLETED,
            began=began,
            event_id=self._event_id,
        )
        report([change])
