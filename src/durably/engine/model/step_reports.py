"""Reports of a run and its steps, from what engines store.

Pure. Engines store memos, waits, calls and failed attempts.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call, RunState, Wait
from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.headers import DISCOVER
from durably.protocol.opcodes import Opcode, hash_step_id

from .rows import UNREACHED_ERRORS, AttemptRow, MemoRow, MemoTimes, OpenWait, UnfinishedStep
from .runs import (
    Attempt,
    Run,
    RunLink,
    RunReport,
    Span,
    SpanKind,
    Step,
    StepStatus,
    StoredEvent,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
)
from .spans import AttemptTimes, Interval, attempt_spans, make_span, run_spans
from .step_views import call_status, called_step_id, wait_status

CalledAt = Callable[[int], int | None]
"""Returns when the call of a generation was made, in milliseconds; ``None`` if it is not under way."""

_DATA, _ERROR = b'{"data":', b'{"error":'
_WAITS = {Opcode.SLEEP: SpanKind.SLEEPING, **dict.fromkeys(REQUESTS, SpanKind.RUNNING)}
_error_decoder = msgspec.json.Decoder(ErrorData)


class StepReporter:
    """Reports the steps of a run.

    - ``calls``: The intervals of the recorded calls, in microseconds.
    - ``due_times``: The times at which some of them were due, in microseconds.
    - ``failed``: The failed attempts in the order of their ends.
    - ``children``: The runs that the run started.
    """

    def __init__(
        self, run: Run, called_at: CalledAt, children: Sequence[RunLink], failed: Iterable[AttemptRow]
    ) -> None:
        self._run = run
        self._called_at = called_at
        self._children = {child.step: child for child in children if child.step is not None}
        self.calls: list[Interval] = []
        self.due_times: list[int] = []
        self._failed: dict[str, list[AttemptRow]] = defaultdict(list)
        for row in failed:
            # Rows of earlier versions store a discovered step only under its name.
            key = hash_step_id(row.name) if row.step_id == DISCOVER and row.name else row.step_id
            self._failed[key].append(row)
            self.note_call(row.called_at, row.ended_at)

    def report(
        self,
        finished: Iterable[tuple[MemoRow, bytes]],
        unfinished: Iterable[UnfinishedStep],
        state: RunState | None,
        waits: Mapping[str, OpenWait],
    ) -> list[Step]:
        """Report all steps.

        ``finished`` are those with their memos, ``unfinished`` those that were under way at the run's end. ``state``
        and ``waits`` are those of a run that has not ended.
        """
        steps = [self._finished(row, memo) for row, memo in finished]
        steps += [self._unfinished(step) for step in unfinished]
        if state is not None:
            steps += [self._called(call) for call in state.calls if call.name]
            steps += [self._waiting(wait, waits[wait.step_id]) for wait in state.waits]
            for call in state.calls:
                self.note_call(self._called_at(call.generation), None)
        return sorted(steps, key=_start_of)

    def note_call(self, called_at: int | None, ended_at: int | None) -> None:
        """Record a call of the run, with times in milliseconds.

        ``called_at`` is ``None`` if it is unknown.
        """
        if called_at is not None:
            self.calls.append(Interval(called_at * 1000, None if ended_at is None else ended_at * 1000))

    def attempts(self, step_id: str | None) -> list[AttemptTimes]:
        """The failed attempts at a step, or at the function's own code."""
        return [
            AttemptTimes(
                attempt=row.attempt,
                queued_at=_micro(row.queued_at),
                began_at=row.ran_from,
                ended_at=_ended_at(row.ran_from, row.ran_for, row.ended_at),
                retry_at=_micro(row.retry_at),
            )
            for row in self._failed[step_id or DISCOVER]
        ]

    def attempt_reports(self, step_id: str | None, latest: int | None = None) -> list[Attempt]:
        """Reports of the failed attempts at a step, or at the function's own code.

        ``latest`` is the attempt that follows the last failed one, if it is known.
        """
        return [
            Attempt(
                attempt=row.attempt,
                ended_at=to_datetime(row.ended_at),
                error=(error := _error_of(row)),
                is_unreached=_is_unreached(row, error, latest),
            )
            for row in self._failed[step_id or DISCOVER]
        ]

    def _began_at(self, step_id: str, latest: int) -> int:
        """When the first attempt at a step was due, or otherwise began.

        ``latest`` is when the last one was due. Both are in milliseconds.
        """
        failed = self._failed[step_id][:1]
        times = [(row.queued_at, row.ran_from and row.ran_from // 1000, row.called_at, row.ended_at) for row in failed]
        return min([latest, *(next(each for each in known if each is not None) for known in times)])

    def _finished(self, row: MemoRow, memo: bytes) -> Step:
        op, times = row.op, row.times
        if op is Opcode.STEP_RUN:
            self.note_call(times.called_at, times.ended_at)
            if times.called_at is not None:
                self.due_times.append(min(times.created_at, times.called_at) * 1000)
        else:
            self.note_call(times.called_at, times.created_at)
        return Step(
            id=row.name,
            hashed_id=row.step_id,
            op=op,
            status=StepStatus.FAILED if row.failed else StepStatus.COMPLETED,
            attempts=row.attempts,
            created_at=to_datetime(self._began_at(row.step_id, times.created_at)),
            ended_at=to_datetime(times.ended_at),
            due_at=None,
            spans=[] if row.is_copied else self._spans(op, row.step_id, row.attempts - 1, times),
            failed_attempts=self.attempt_reports(row.step_id, row.attempts - 1),
            input=None if row.arguments is None else msgspec.Raw(row.arguments),
            output=None if row.failed else _output(op, memo),
            error=decode_error(memo[len(_ERROR) : -1]) if row.failed else None,
            awaited=self._awaited(op, row.name, times.topic),
            child_run_id=self._child_run_id(row.name),
            is_copied=row.is_copied,
        )

    def _spans(self, op: Opcode, step_id: str, attempt: int, times: MemoTimes) -> list[Span]:
        began, ended = times.created_at * 1000, times.ended_at * 1000
        if op is not Opcode.STEP_RUN:
            return self._wait_spans(op, step_id, began, ended)
        failed = self.attempts(step_id)
        if times.ran_from is None:
            last = AttemptTimes(attempt=attempt, began_at=began, ended_at=ended)
        else:
            last = AttemptTimes(
                attempt=attempt,
                queued_at=began,
                began_at=times.ran_from,
                ended_at=_ended_at(times.ran_from, times.ran_for, times.ended_at),
            )
        return attempt_spans([*failed, last])

    def _wait_spans(self, op: Opcode, step_id: str, began: int, ended: int | None) -> list[Span]:
        """The span of a sleep or wait; the attempts of a request of the engine."""
        kind = _WAITS.get(op, SpanKind.WAITING)
        failed = self._failed[step_id] if kind is SpanKind.RUNNING else []
        spans = []
        for row in failed:
            spans.append(make_span(kind, began, row.ended_at * 1000, row.attempt))
            began = max(row.ended_at, row.retry_at or 0) * 1000
            spans.append(make_span(SpanKind.RETRYING, row.ended_at * 1000, began, row.attempt))
        return [*spans, make_span(kind, began, ended, len(failed) if failed else None)]

    def _called(self, call: Call) -> Step:
        """A step that is planned, under way or to be tried again."""
        step_id = called_step_id(call)
        called_at = self._called_at(call.generation)
        now = AttemptTimes(attempt=call.attempt, queued_at=call.due * 1000, began_at=_micro(called_at))
        return Step(
            id=call.name,
            hashed_id=step_id,
            op=Opcode.STEP_RUN,
            status=call_status(call, called_at is not None),
            attempts=call.attempt + (called_at is not None),
            created_at=to_datetime(self._began_at(step_id, call.due)),
            ended_at=None,
            due_at=to_datetime(call.due),
            spans=attempt_spans([*self.attempts(step_id), now]),
            failed_attempts=self.attempt_reports(step_id, call.attempt),
        )

    def _waiting(self, wait: Wait, row: OpenWait) -> Step:
        self.note_call(row.called_at, row.created_at)
        return Step(
            id=wait.name,
            hashed_id=wait.step_id,
            op=wait.op,
            status=wait_status(wait),
            attempts=wait.attempt + 1,
            created_at=to_datetime(row.created_at),
            ended_at=None,
            due_at=to_optional_datetime(row.due),
            spans=self._wait_spans(wait.op, wait.step_id, row.created_at * 1000, None),
            failed_attempts=self.attempt_reports(wait.step_id),
            awaited=self._awaited(wait.op, wait.name, row.topic),
            child_run_id=self._child_run_id(wait.name),
        )

    def _unfinished(self, step: UnfinishedStep) -> Step:
        """A step that was under way when the run ended."""
        ended_at = self._run.ended_at or to_datetime(step.created_at)
        began, ended = step.created_at * 1000, to_milliseconds(ended_at) * 1000
        if step.op is Opcode.STEP_RUN:
            last = AttemptTimes(attempt=step.attempts, queued_at=began, ended_at=max(began, ended))
            spans = attempt_spans([*self.attempts(step.step_id), last])
        else:
            spans = self._wait_spans(step.op, step.step_id, began, ended)
        return Step(
            id=step.name,
            hashed_id=step.step_id,
            op=step.op,
            status=StepStatus.UNFINISHED,
            attempts=step.attempts,
            created_at=to_datetime(self._began_at(step.step_id, step.created_at)),
            ended_at=ended_at,
            due_at=to_optional_datetime(step.due),
            spans=spans,
            failed_attempts=self.attempt_reports(step.step_id, step.attempts),
            awaited=self._awaited(step.op, step.name, step.topic),
            child_run_id=self._child_run_id(step.name),
        )

    def _awaited(self, op: Opcode, name: str, topic: str | None) -> str | None:
        if op is Opcode.INVOKE_FUNCTION:
            child = self._children.get(name)
            return None if child is None else child.function_id
        return topic if op in (Opcode.WAIT_FOR_EVENT, Opcode.WAIT_FOR_SIGNAL) else None

    def _child_run_id(self, name: str) -> str | None:
        child = self._children.get(name)
        return None if child is None else child.run_id


def _micro(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds * 1000


def _ended_at(ran_from: int | None, ran_for: int | None, stored_at: int) -> int:
    """The end of an attempt in microseconds, from the app or otherwise as stored."""
    return stored_at * 1000 if ran_from is None or ran_for is None else ran_from + ran_for


def _is_unreached(row: AttemptRow, error: ErrorData, latest: int | None) -> bool:
    """Whether the call of a failed attempt did not reach the app.

    The next call has the same number then, and an app that failed has sent times or a traceback.
    """
    if row.ran_from is not None or error.stack is not None:
        return False
    return error.name in UNREACHED_ERRORS or (latest is not None and row.attempt >= latest)


def _error_of(row: AttemptRow) -> ErrorData:
    if row.data is not None:
        return decode_error(row.data)
    name, separator, message = row.error.partition(": ")
    return ErrorData(name=name, message=message) if separator else ErrorData(message=row.error)


def decode_error(encoded: bytes | msgspec.Raw) -> ErrorData:
    """An error as an app wrote it."""
    try:
        return _error_decoder.decode(encoded)
    except msgspec.MsgspecError:
        return ErrorData(message=bytes(encoded).decode(errors="replace"))


def _output(op: Opcode, memo: bytes) -> msgspec.Raw | None:
    """The result of a step, without a copy; ``None`` for null.

    A memo contains it in ``{"data":…}``, except that of an event wait.
    """
    is_wrapped = op is not Opcode.WAIT_FOR_EVENT and memo.startswith(_DATA)
    output = memoryview(memo)[len(_DATA) : -1] if is_wrapped else memoryview(memo)
    return None if bytes(output[:5]) == b"null" else msgspec.Raw(output)


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a report other than the run's steps.

    ``last_called_at`` is when the call that ended the run was made, in milliseconds, if a call did.
    """

    function_name: str
    app_version: str | None
    last_called_at: int | None
    events: list[StoredEvent]
    parent: RunLink | None
    children: list[RunLink]
    has_more_children: bool
    logs: list[LogLine]


def report_run(run: Run, facts: RunFacts, reporter: StepReporter, steps: list[Step]) -> RunReport:
    """The report of a run. ``steps`` are those of ``reporter``."""
    if facts.last_called_at is not None and run.ended_at is not None:
        reporter.note_call(facts.last_called_at, to_milliseconds(run.ended_at))
    return RunReport(
        run=run,
        function_name=facts.function_name,
        app_version=facts.app_version,
        spans=run_spans(
            to_milliseconds(run.created_at) * 1000,
            None if run.started_at is None else to_milliseconds(run.started_at) * 1000,
            None if run.ended_at is None else to_milliseconds(run.ended_at) * 1000,
            reporter.calls,
            reporter.attempts(None),
            [span for step in steps for span in step.spans],
            reporter.due_times,
        ),
        steps=steps,
        failed_attempts=reporter.attempt_reports(None),
        events=facts.events,
        parent=facts.parent,
        children=facts.children,
        has_more_children=facts.has_more_children,
        logs=facts.logs,
        error=_error_of_run(run),
    )


def _start_of(step: Step) -> Any:
    return step.spans[0].start if step.spans else step.created_at


def _error_of_run(run: Run) -> ErrorData | None:
    if run.output is None or not run.status.has_ended or run.status == "Completed":
        return None
    return decode_error(run.output)
