"""The record of a run for reports.

The run's workflow keeps it. It has no effect on the execution of the run.
"""

from collections.abc import Sequence

import msgspec

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
from durably.protocol.questions import QuestionInfo

_MAX_ARGUMENTS_BYTES = 4 * 1024 * 1024
"""Maximum number of step arguments that a run keeps. Further arguments are not shown."""
_MAX_PAGE_BYTES = 1024 * 1024
_ROW_BYTES = 300
"""Approximate size of a row of the record."""


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


class StepsPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of finished steps with their memos: the answer of the query ``steps``.

    ``total`` is the number of finished steps.
    """

    total: int
    steps: list[StepRow] = []
    memos: list[msgspec.Raw] = []


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
        self.started_at: int | None = None
        self._failed: list[AttemptRow] = []
        self._waits: dict[str, WaitTimes] = {}
        self._unfinished: list[UnfinishedStep] = []
        self._last_called_at: int | None = None
        self._arguments_bytes = 0

    def copy(self, steps: Sequence[StepRow]) -> None:
        """Copy steps of the run that this one repeats."""
        self.steps += [msgspec.structs.replace(step, is_copied=True, usage=()) for step in steps]

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
            self._note_command(command, now)

    def _note_command(self, command: Command, now: int) -> None:
        match command:
            case MakeCall():
                if (failed := failed_call_row(self, command, now)) is not None:
                    self._failed.append(failed)
            case WriteMemo():
                self._note_memo(command, now)
            case Sleep(step_id=step_id, until=until):
                self._open(step_id, now, until)
            case AwaitEvent(step_id=step_id, until=until, event=topic):
                self._open(step_id, now, until, topic)
            case AwaitSignal(step_id=step_id, until=until, signal=topic, question=question):
                self._open(step_id, now, until, topic, question)
            case Invoke(step_id=step_id, until=until, function_id=topic):
                self._open(step_id, now, until, topic)
            case MakeRequest():
                if (failed := failed_request_row(command, now)) is None:
                    self._open(command.step_id, now)
                else:
                    self._failed.append(failed)
            case CloseWait(step_id=step_id):
                if (wait := self._waits.pop(step_id, None)) is not None:
                    self.ended_waits[step_id] = wait
            case EndRun():
                self._unfinished = unfinished_steps(self._waits, self, now)
                self._last_called_at = self.called_at
                self._waits.clear()

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
                usage=command.usage,
            )
        )

    def _open(
        self,
        step_id: str,
        now: int,
        due: int | None = None,
        topic: str | None = None,
        question: QuestionInfo | None = None,
    ) -> None:
        described = None if question is None else msgspec.json.encode(question)
        self._waits[step_id] = WaitTimes(now, due, topic, self.called_at, described)

    # answers of queries

    def page(self, state: RunState, after: int) -> RecordPage:
        """A page of the failed attempts after a number of them."""
        size, end = 0, after
        while end < len(self._failed) and size < _MAX_PAGE_BYTES:
            size += _ROW_BYTES * (1 + len(self._failed[end].usage)) + len(self._failed[end].data or b"")
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
        )


def steps_page(steps: Sequence[StepRow], memos: Sequence[tuple[str, bytes]], after: int) -> StepsPage:
    """A page of the steps after a number of them."""
    size, end, total = 0, after, min(len(steps), len(memos))
    while end < total:
        size += _ROW_BYTES * (1 + len(steps[end].usage)) + len(steps[end].arguments or b"") + len(memos[end][1])
        if size > _MAX_PAGE_BYTES and end > after:
            break
        end += 1
    return StepsPage(total, list(steps[after:end]), [msgspec.Raw(memo) for _, memo in memos[after:end]])
