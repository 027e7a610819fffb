"""The record of a run for reports, and its details in Temporal's UI.

The run's workflow keeps them. They have no effect on its execution.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from temporalio import workflow

from durably.engine.core.inputs import (
    AwaitEvent,
    AwaitSignal,
    CloseWait,
    Command,
    EndRun,
    Input,
    Invoke,
    MakeCall,
    MakeRequest,
    OfCall,
    Sleep,
    WriteMemo,
)
from durably.engine.core.run_state import RunState, RunStatus
from durably.engine.model.records import (
    MAX_LOG_CHARACTERS,
    MAX_LOG_LINES,
    MAX_METADATA_BYTES,
    AttemptRow,
    CallTimes,
    StepRow,
    UnfinishedStep,
    WaitTimes,
    arguments_to_keep,
    failed_call_row,
    failed_request_row,
    memo_times,
    unfinished_steps,
)
from durably.engine.model.run_report import run_wait
from durably.engine.model.runs import RunMetadata, RunWait, to_datetime
from durably.protocol.call import LogLine

_MAX_ARGUMENTS_BYTES = 4 * 1024 * 1024
"""Maximum number of step arguments that a run keeps. Further arguments are not shown."""
_MAX_PAGE_BYTES = 1024 * 1024
_ROW_BYTES = 300
"""Approximate size of a row of the record."""
_MAX_LINES = 50
_MAX_CHARACTERS = 200


class RunSummary(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The state of a run that has not ended: the answer of the query ``summary``."""

    started_at: int | None = None
    attempt: int = 0
    waiting: RunWait | None = None


class RecordPage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A page of failed attempts, from the answer of the query ``record``.

    ``total`` is the number of failed attempts. The first page also has the rest of the record. ``started_at`` is the
    time of the first call.
    """

    total: int
    failed: list[AttemptRow] = []
    state: RunState | None = None
    waits: dict[str, WaitTimes] = {}
    unfinished: list[UnfinishedStep] = []
    started_at: int | None = None
    last_called_at: int | None = None
    logs: list[LogLine] = []
    metadata: list[RunMetadata] = []


class StepsPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of finished steps with their memos: the answer of the query ``steps``.

    ``total`` is the number of finished steps.
    """

    total: int
    steps: list[StepRow] = []
    memos: list[msgspec.Raw] = []


class Annotation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The argument of the Update ``annotate``.

    It has lines of ``ctx.logger``, or metadata of an SDK.
    """

    lines: list[LogLine] = []
    metadata: RunMetadata | None = None


class RunRecord:
    """Records the changes of a run. It is a ``ChangingRun``."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.input: Input | None = None
        self.called_at: int | None = None
        self.began = 0
        self.call: CallTimes | None = None
        self.before = RunState(version=0, status=RunStatus.SCHEDULED, max_attempts=1)
        self.ended_waits: dict[str, WaitTimes] = {}
        self.steps: list[StepRow] = []
        """The finished steps, in the order of the memos."""
        self.logs: list[LogLine] = []
        self.metadata: list[RunMetadata] = []
        self.started_at: int | None = None
        self._failed: list[AttemptRow] = []
        self._waits: dict[str, WaitTimes] = {}
        self._unfinished: list[UnfinishedStep] = []
        self._last_called_at: int | None = None
        self._arguments_bytes = 0
        self._log_characters = 0

    def copy(self, steps: Sequence[StepRow]) -> None:
        """Copy steps of the run that this one repeats."""
        self.steps += [msgspec.structs.replace(step, is_copied=True) for step in steps]

    def note(self, before: RunState, run_input: Input, commands: Sequence[Command], now: int) -> None:
        """Record an input and the commands that it caused.

        ``before`` is the state before it.
        """
        self.before, self.input, self.call, self.called_at = before, run_input, None, None
        self.began, self.ended_waits = now, {}
        if isinstance(run_input, OfCall):
            if call := before.call(run_input.generation):
                self.began, self.called_at = call.due, run_input.called_at
            if self.started_at is None:
                self.started_at = self.began if self.called_at is None else min(self.called_at, now)
        for command in commands:
            note = _NOTES.get(type(command))
            if note is not None:
                note(self, command, now)

    def _note_call(self, command: MakeCall, now: int) -> None:
        failed = failed_call_row(self, command, now)
        if failed is not None:
            self._failed.append(failed)

    def _note_memo(self, command: WriteMemo, now: int) -> None:
        arguments = None if command.arguments is None else arguments_to_keep(self, command)
        if arguments is not None:
            self._arguments_bytes += len(arguments)
            arguments = arguments if self._arguments_bytes <= _MAX_ARGUMENTS_BYTES else None
        self.steps.append(
            StepRow(
                command.step_id,
                command.name,
                command.op,
                command.attempts,
                command.failed,
                memo_times(self, command, now),
                arguments=arguments,
            )
        )

    def _note_sleep(self, command: Sleep, now: int) -> None:
        self._open(command.step_id, now, command.until)

    def _note_event_wait(self, command: AwaitEvent, now: int) -> None:
        self._open(command.step_id, now, command.until, command.event)

    def _note_signal_wait(self, command: AwaitSignal, now: int) -> None:
        self._open(command.step_id, now, command.until, command.signal)

    def _note_invocation(self, command: Invoke, now: int) -> None:
        self._open(command.step_id, now, command.until, command.function_id)

    def _note_request(self, command: MakeRequest, now: int) -> None:
        failed = failed_request_row(command, now)
        if failed is not None:
            self._failed.append(failed)
        else:
            self._open(command.step_id, now)

    def _open(self, step_id: str, now: int, due: int | None = None, topic: str | None = None) -> None:
        self._waits[step_id] = WaitTimes(now, due, topic, self.called_at)

    def _note_closed(self, command: CloseWait, now: int) -> None:
        wait = self._waits.pop(command.step_id, None)
        if wait is not None:
            self.ended_waits[command.step_id] = wait

    def _note_end(self, command: EndRun, now: int) -> None:
        self._unfinished = unfinished_steps(self._waits, self, now)
        self._last_called_at = self.called_at
        self._waits.clear()

    def annotate(self, annotation: Annotation) -> bool:
        """Store an annotation. Returns false if part of it is dropped."""
        if annotation.metadata is not None:
            size = sum(len(bytes(each.body)) for each in (*self.metadata, annotation.metadata))
            if size > MAX_METADATA_BYTES:
                return False
            self.metadata.append(annotation.metadata)
        for line in sorted(annotation.lines, key=lambda line: line.at):
            self._log_characters += len(line.message)
            if len(self.logs) >= MAX_LOG_LINES or self._log_characters > MAX_LOG_CHARACTERS:
                return False
            self.logs.append(line)
        return True

    # answers of queries

    def summary(self, state: RunState) -> RunSummary:
        due = sorted((wait.due is None, wait.due or 0, step_id) for step_id, wait in self._waits.items())
        first = self._waits[due[0][2]] if due else None
        return RunSummary(
            started_at=self.started_at,
            attempt=max((call.attempt for call in state.calls), default=0),
            waiting=run_wait(state) if first is None else run_wait(state, due[0][2], first.due, first.topic),
        )

    def page(self, state: RunState, after: int) -> RecordPage:
        """A page of the failed attempts after a number of them."""
        size, end = 0, after
        while end < len(self._failed) and size < _MAX_PAGE_BYTES:
            size += _ROW_BYTES + len(self._failed[end].data or b"")
            end += 1
        page = RecordPage(total=len(self._failed), failed=self._failed[after:end])
        if after:
            return page
        return msgspec.structs.replace(
            page,
            state=state,
            waits=self._waits,
            unfinished=self._unfinished,
            started_at=self.started_at,
            last_called_at=self._last_called_at,
            logs=self.logs,
            metadata=self.metadata,
        )


def steps_page(steps: Sequence[StepRow], memos: Sequence[tuple[str, bytes]], after: int) -> StepsPage:
    """A page of the steps after a number of them."""
    size, end, total = 0, after, min(len(steps), len(memos))
    while end < total:
        size += _ROW_BYTES + len(steps[end].arguments or b"") + len(memos[end][1])
        if size > _MAX_PAGE_BYTES and end > after:
            break
        end += 1
    return StepsPage(total, list(steps[after:end]), [msgspec.Raw(memo) for _, memo in memos[after:end]])


_NOTES: dict[type[Any], Callable[[RunRecord, Any, int], None]] = {
    MakeCall: RunRecord._note_call,
    WriteMemo: RunRecord._note_memo,
    Sleep: RunRecord._note_sleep,
    AwaitEvent: RunRecord._note_event_wait,
    AwaitSignal: RunRecord._note_signal_wait,
    Invoke: RunRecord._note_invocation,
    MakeRequest: RunRecord._note_request,
    CloseWait: RunRecord._note_closed,
    EndRun: RunRecord._note_end,
}


class RunDetails:
    """The last changes of a run, as Markdown in Temporal's UI.

    ``workflow.set_current_details`` shows them. It adds nothing to histories.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._dropped = 0

    def note(self, command: Command) -> None:
        text = _describe(command)
        if text is None:
            return
        self._dropped += len(self._lines) == _MAX_LINES
        at = workflow.now().strftime("%H:%M:%S.%f")[:-3]
        self._lines.append(f"- {at} {text[:_MAX_CHARACTERS]}")
        first = [f"- … {self._dropped} lines before"] if self._dropped else []
        workflow.set_current_details("\n".join([*first, *self._lines]))


def _describe(command: Command) -> str | None:
    match command:
        case WriteMemo(name=name, failed=failed, attempts=attempts):
            outcome = "failed" if failed else "finished"
            return f"step `{name}` {outcome}" + (f" at attempt {attempts}" if attempts > 1 else "")
        case MakeCall(call, failed) if failed is not None:
            return f"`{call.name or 'function'}` is repeated at {_time(call.due)}: {call.error}"
        case Sleep(name=name, until=until):
            return f"step `{name}` sleeps until {_time(until)}"
        case AwaitEvent(name=name, event=event, until=until):
            return f"step `{name}` waits for the event `{event}` until {_time(until)}"
        case AwaitSignal(name=name, signal=signal, until=until):
            return f"step `{name}` waits for the signal `{signal}` until {_time(until)}"
        case Invoke(name=name, function_id=function_id):
            return f"step `{name}` invokes `{function_id}`"
        case MakeRequest(name=name, attempt=attempt):
            return f"step `{name}` makes its request" + (f", attempt {attempt + 1}" if attempt else "")
        case EndRun(status=status):
            return f"the run is {status.value.lower()}"
        case _:
            return None


def _time(milliseconds: int) -> str:
    return to_datetime(milliseconds).strftime("%Y-%m-%d %H:%M:%S")
