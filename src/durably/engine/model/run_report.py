"""From the rows of a run to what people and programs see: its report, steps, attempts, calls and spans of time.

Pure, and the same for every engine.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from durably.engine.core.calls import job_id_of
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call, RunState
from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.headers import DISCOVER
from durably.protocol.opcodes import Opcode, hash_step_id
from durably.protocol.questions import QuestionInfo, without_run
from durably.protocol.usage import ModelUsage, sum_usage

from .records import UNREACHED_ERRORS, AttemptRow, StepRow, UnfinishedStep, WaitTimes
from .runs import (
    Attempt,
    Run,
    RunCall,
    RunReport,
    RunStatus,
    RunWait,
    Span,
    SpanKind,
    Step,
    StepStatus,
    StoredEvent,
    decode_error,
    from_microseconds,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
)

_DATA, _ERROR = b'{"data":', b'{"error":'
_decode_question = msgspec.json.Decoder(QuestionInfo).decode
_WAITS = {Opcode.SLEEP: SpanKind.SLEEPING, **dict.fromkeys(REQUESTS, SpanKind.RUNNING)}


class RunRows(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has stored of a run."""

    run: Run
    function_name: str = ""
    app_version: str | None = None
    last_called_at: int | None = None
    """When the call that ended the run was made, in milliseconds, if a call did."""
    finished: Sequence[tuple[StepRow, bytes]] = ()
    """The finished steps, in the order of their ends, with their memos."""
    failed: Sequence[AttemptRow] = ()
    """The failed attempts that another followed, in the order of their ends."""
    unfinished: Sequence[UnfinishedStep] = ()
    """The steps that were under way at the run's end."""
    state: RunState | None = None
    """Of a run that has not ended."""
    waits: Mapping[str, WaitTimes] = {}
    """The open waits, by hashed step id."""
    calls: Mapping[int, int] = {}
    """The start times of the calls under way in milliseconds, by generation."""
    events: list[StoredEvent] = []
    parent: Run | None = None
    children: list[Run] = []
    has_more_children: bool = False
    logs: list[LogLine] = []
    unavailable: str | None = None
    """Why the engine cannot read the run's steps now."""


def report_steps(rows: RunRows) -> list[Step]:
    """Finished steps in the order of their ends, then the others."""
    return _Reporter(rows).steps()


def report_attempts(rows: RunRows) -> list[Attempt]:
    """The failed attempts that another followed, the earliest first."""
    reporter = _Reporter(rows)
    found = [each for step in reporter.steps() for each in step.failed_attempts] + reporter.failed_attempts(None)
    return sorted(found, key=lambda each: (each.ended_at, each.step or "", each.attempt))


def report_calls(run_id: str, state: RunState, under_way: Mapping[int, int]) -> list[RunCall]:
    """The calls of a run, the earliest first. ``under_way`` has start times by generation."""
    return [
        RunCall(
            job_id=job_id_of(run_id, call.step_id),
            step_id=call.step_id,
            step_name=call.name or None,
            generation=call.generation,
            attempt=call.attempt,
            due_at=to_datetime(call.due),
            in_flight=call.generation in under_way,
            error=call.error or None,
            position=position,
        )
        for position, call in enumerate(sorted(state.calls, key=lambda call: call.due))
    ]


def report_run(rows: RunRows) -> RunReport:
    reporter = _Reporter(rows)
    steps = reporter.steps()
    steps.sort(key=lambda step: step.spans[0].start if step.spans else step.created_at)
    run = rows.run
    has_failed = run.status.has_ended and run.status is not RunStatus.COMPLETED
    if run.usage is None and rows.unavailable is None:
        usage = sum_usage(each for step in steps for each in step.usage)
        run = msgspec.structs.replace(run, usage=list(usage))
    return RunReport(
        run=run,
        function_name=rows.function_name,
        app_version=rows.app_version,
        spans=reporter.run_spans(steps),
        steps=steps,
        failed_attempts=reporter.failed_attempts(None),
        events=rows.events,
        parent=rows.parent,
        children=rows.children,
        has_more_children=rows.has_more_children,
        logs=rows.logs,
        error=decode_error(run.output) if has_failed and run.output is not None else None,
        unavailable=rows.unavailable,
    )


class _Reporter:
    """Reports the steps of a run, and collects the times of its calls on the way."""

    def __init__(self, rows: RunRows) -> None:
        self._rows = rows
        self._children = {child.step: child for child in rows.children if child.step is not None}
        self._calls: list[Interval] = []
        self._due_times: list[int] = []
        """Times at which some of the calls were due, in microseconds."""
        self._failed: dict[str, list[AttemptRow]] = defaultdict(list)
        for row in rows.failed:
            # A call that discovers, but repeats a step that has failed in such a call, has the step's name alone.
            key = hash_step_id(row.name) if row.step_id == DISCOVER and row.name else row.step_id
            self._failed[key].append(row)
            self._note_call(row.called_at, row.ended_at)

    def steps(self) -> list[Step]:
        steps = [self._finished(row, memo) for row, memo in self._rows.finished]
        steps += [self._unfinished(step) for step in self._rows.unfinished]
        state = self._rows.state
        if state is not None:
            for call in state.calls:
                called_at = self._rows.calls.get(call.generation)
                self._note_call(called_at, None)
                if call.name:
                    steps.append(self._called(call, called_at))
            for wait in state.waits:
                times = self._rows.waits.get(wait.step_id)
                if times is not None:
                    self._note_call(times.called_at, times.created_at)
                    idle = StepStatus.SLEEPING if wait.op == Opcode.SLEEP else StepStatus.WAITING
                    step = self._step(
                        wait.step_id,
                        wait.name,
                        wait.op,
                        StepStatus.RUNNING if wait.op in REQUESTS else idle,
                        attempts=wait.attempt + 1,
                        created_at=times.created_at,
                        due=times.due,
                        topic=times.topic,
                        spans=self._wait_spans(wait.op, wait.step_id, times.created_at * 1000, None),
                        question=None if times.question is None else _decode_question(times.question),
                    )
                    steps.append(step)
        return steps

    def failed_attempts(self, step_id: str | None, latest: int | None = None) -> list[Attempt]:
        """The failed attempts at a step, or at the function's own code.

        ``latest`` is the attempt that follows the last failed one, if it is known.
        """
        return [
            Attempt(
                step=row.name or None,
                attempt=row.attempt,
                ended_at=to_datetime(row.ended_at),
                error=(error := ErrorData(message=row.error) if row.data is None else decode_error(row.data)),
                is_unreached=_is_unreached(row, error, latest),
            )
            for row in self._failed.get(step_id or DISCOVER, ())
        ]

    def run_spans(self, steps: Sequence[Step]) -> list[Span]:
        """The run's own spans. Call it after ``steps``."""
        run, last_called_at = self._rows.run, self._rows.last_called_at
        created_at, started_at, ended_at = (
            None if time is None else to_milliseconds(time) for time in (run.created_at, run.started_at, run.ended_at)
        )
        assert created_at is not None
        if last_called_at is not None and ended_at is not None:
            self._note_call(last_called_at, ended_at)
        return run_spans(
            created_at * 1000,
            _micro(started_at),
            _micro(ended_at),
            self._calls,
            self._attempt_times(DISCOVER),
            [span for step in steps for span in step.spans],
            self._due_times,
        )

    def _note_call(self, called_at: int | None, ended_at: int | None) -> None:
        """Record a call of the run, with times in milliseconds. ``called_at`` is ``None`` if it is unknown."""
        if called_at is not None:
            self._calls.append(Interval(called_at * 1000, _micro(ended_at)))

    def _step(
        self,
        step_id: str,
        name: str,
        op: Opcode,
        status: StepStatus,
        *,
        attempts: int,
        created_at: int,
        spans: list[Span],
        ended_at: dt.datetime | None = None,
        due: int | None = None,
        topic: str | None = None,
        latest: int | None = None,
        usage: Sequence[ModelUsage] = (),
        **result: Any,
    ) -> Step:
        """A step with what all have.

        ``latest``: see ``failed_attempts``; ``usage``: that of the last attempt; ``result``: its other fields.
        """
        failed = self.failed_attempts(step_id, latest)
        child = self._children.get(name)
        awaited = _awaited(op, topic)
        if op is Opcode.INVOKE_FUNCTION and child is not None:
            awaited = child.function_id
        if "error" not in result and status is not StepStatus.COMPLETED and failed:
            result["error"] = failed[-1].error
        return Step(
            id=name,
            hashed_id=step_id,
            op=op,
            status=status,
            attempts=attempts,
            created_at=to_datetime(created_at),
            ended_at=ended_at,
            due_at=to_optional_datetime(due),
            spans=spans,
            failed_attempts=failed,
            awaited=awaited,
            child_run_id=None if child is None else child.id,
            usage=list(sum_usage([*(each for row in self._failed.get(step_id, ()) for each in row.usage), *usage])),
            **result,
        )

    def _finished(self, row: StepRow, memo: bytes) -> Step:
        op, times, spans = row.op, row.times, list[Span]()
        self._note_call(times.called_at, times.ended_at if op is Opcode.STEP_RUN else times.created_at)
        if op is Opcode.STEP_RUN and times.called_at is not None:
            self._due_times.append(min(times.created_at, times.called_at) * 1000)
        began, ended = times.created_at * 1000, times.ended_at * 1000
        if not row.is_copied and op is not Opcode.STEP_RUN:
            spans = self._wait_spans(op, row.step_id, began, ended)
        elif not row.is_copied:
            last = AttemptTimes(attempt=row.attempts - 1, began_at=began, ended_at=ended)
            if times.ran_from is not None:
                last = AttemptTimes(
                    attempt=row.attempts - 1,
                    queued_at=began,
                    began_at=times.ran_from,
                    ended_at=_ended_at(times.ran_from, times.ran_for, times.ended_at),
                )
            spans = attempt_spans([*self._attempt_times(row.step_id), last])
        return self._step(
            row.step_id,
            row.name,
            op,
            StepStatus.FAILED if row.failed else StepStatus.COMPLETED,
            attempts=row.attempts,
            created_at=self._began_at(row.step_id, times.created_at),
            ended_at=to_datetime(times.ended_at),
            topic=times.topic,
            spans=spans,
            latest=row.attempts - 1,
            input=None if row.arguments is None else msgspec.Raw(row.arguments),
            output=None if row.failed else _output(op, memo),
            error=decode_error(memo[len(_ERROR) : -1]) if row.failed else None,
            is_copied=row.is_copied,
            usage=row.usage,
        )

    def _called(self, call: Call, called_at: int | None) -> Step:
        """A step that is planned, under way or to be tried again. It may have failed in a call that discovered."""
        step_id = hash_step_id(call.name) if call.is_discovery else call.step_id
        idle = StepStatus.RETRYING if call.attempt else StepStatus.PLANNED
        now = AttemptTimes(attempt=call.attempt, queued_at=call.due * 1000, began_at=_micro(called_at))
        return self._step(
            step_id,
            call.name,
            Opcode.STEP_RUN,
            idle if called_at is None else StepStatus.RUNNING,
            attempts=call.attempt + (called_at is not None),
            created_at=self._began_at(step_id, call.due),
            due=call.due,
            spans=attempt_spans([*self._attempt_times(step_id), now]),
            latest=call.attempt,
        )

    def _unfinished(self, step: UnfinishedStep) -> Step:
        """A step that was under way when the run ended."""
        ended_at = self._rows.run.ended_at or to_datetime(step.created_at)
        began, ended = step.created_at * 1000, to_milliseconds(ended_at) * 1000
        if step.op is Opcode.STEP_RUN:
            last = AttemptTimes(attempt=step.attempts, queued_at=began, ended_at=max(began, ended))
            spans = attempt_spans([*self._attempt_times(step.step_id), last])
        else:
            spans = self._wait_spans(step.op, step.step_id, began, ended)
        return self._step(
            step.step_id,
            step.name,
            step.op,
            StepStatus.UNFINISHED,
            attempts=step.attempts,
            created_at=self._began_at(step.step_id, step.created_at),
            ended_at=ended_at,
            due=step.due,
            topic=step.topic,
            spans=spans,
            latest=step.attempts,
        )

    def _began_at(self, step_id: str, latest: int) -> int:
        """When the first attempt at a step was due, or otherwise began.

        ``latest`` is when the last one was due. Both are in milliseconds.
        """
        for row in self._failed.get(step_id, ())[:1]:
            ran_from = None if row.ran_from is None else row.ran_from // 1000
            known = (row.queued_at, ran_from, row.called_at, row.ended_at)
            return min(latest, next(each for each in known if each is not None))
        return latest

    def _attempt_times(self, step_id: str) -> list["AttemptTimes"]:
        return [
            AttemptTimes(
                attempt=row.attempt,
                queued_at=_micro(row.queued_at),
                began_at=row.ran_from,
                ended_at=_ended_at(row.ran_from, row.ran_for, row.ended_at),
                retry_at=_micro(row.retry_at),
            )
            for row in self._failed.get(step_id, ())
        ]

    def _wait_spans(self, op: Opcode, step_id: str, began: int, ended: int | None) -> list[Span]:
        """The span of a sleep or wait; the attempts of a request of the engine."""
        kind = _WAITS.get(op, SpanKind.WAITING)
        failed = self._failed.get(step_id, ()) if kind is SpanKind.RUNNING else ()
        spans = []
        for row in failed:
            spans.append(make_span(kind, began, row.ended_at * 1000, row.attempt))
            began = max(row.ended_at, row.retry_at or 0) * 1000
            spans.append(make_span(SpanKind.RETRYING, row.ended_at * 1000, began, row.attempt))
        return [*spans, make_span(kind, began, ended, len(failed) if failed else None)]


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


def _output(op: Opcode, memo: bytes) -> msgspec.Raw | None:
    """The result of a step, without a copy; ``None`` for null.

    A memo contains it in ``{"data":…}``, except that of an event wait.
    """
    is_wrapped = op is not Opcode.WAIT_FOR_EVENT and memo.startswith(_DATA)
    output = memoryview(memo)[len(_DATA) : -1] if is_wrapped else memoryview(memo)
    return None if bytes(output[:5]) == b"null" else msgspec.Raw(output)


def _awaited(op: Opcode, topic: str | None) -> str | None:
    """The event, signal or message that a step waits for."""
    if op is Opcode.WAIT_FOR_SIGNAL and topic is not None:
        return without_run(topic)
    return topic if op is Opcode.WAIT_FOR_EVENT else None


# the wait of an idle run


def is_idle(state: RunState) -> bool:
    """Whether the run has no request, and no call that is not a retry."""
    return all(call.error for call in state.calls) and all(wait.op not in REQUESTS for wait in state.waits)


def run_wait(
    state: RunState, step_id: str | None = None, due: int | None = None, topic: str | None = None
) -> RunWait | None:
    """The earliest sleep, wait or retry of an idle run.

    ``step_id`` is the hashed id of the wait that is due first, if there is one.
    """
    if not is_idle(state):
        return None
    retry = min(state.calls, key=lambda call: call.due, default=None)
    if retry is not None and (step_id is None or due is None or retry.due <= due):
        due_at = to_datetime(retry.due)
        return RunWait(kind=StepStatus.RETRYING, step=retry.name, due_at=due_at, error=retry.error)
    wait = next((wait for wait in state.waits if wait.step_id == step_id), None)
    if wait is None:
        return None
    return RunWait(
        kind=StepStatus.SLEEPING if wait.op is Opcode.SLEEP else StepStatus.WAITING,
        step=wait.name,
        due_at=to_optional_datetime(due),
        awaited=_awaited(wait.op, topic),
    )


# spans of time, from times in microseconds since the epoch; ``None`` is an unknown or a future time


_SHORTEST = 1000
"""Shorter times in a queue are ignored, because the engine's times are milliseconds."""
_SHORTEST_QUEUED = dt.timedelta(milliseconds=2)
"""Shorter times between calls are the engine's own work."""
_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)


class AttemptTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one attempt at a step, or at the function's own code."""

    attempt: int
    queued_at: int | None = None
    """When its call was due; ``None`` if no call was made for it alone."""
    began_at: int | None = None
    """When the app began."""
    ended_at: int | None = None
    retry_at: int | None = None
    """When the next attempt was or is due."""


class Interval(msgspec.Struct, frozen=True, order=True):
    """An interval of time. ``end`` is ``None`` if it has not ended."""

    start: int
    end: int | None


def make_span(kind: SpanKind, start: int, end: int | None, attempt: int | None = None) -> Span:
    """A span; its end is not before its start, even if a clock was set back."""
    end_time = None if end is None else from_microseconds(max(start, end))
    return Span(kind=kind, start=from_microseconds(start), end=end_time, attempt=attempt)


def attempt_spans(attempts: Sequence[AttemptTimes]) -> list[Span]:
    """Queued, running and backoff of each attempt, in the order of time.

    Unknown parts of an attempt have no span.
    """
    spans = []
    for times in attempts:
        began = times.began_at
        if times.queued_at is not None and (began is None or began - times.queued_at >= _SHORTEST):
            spans.append(make_span(SpanKind.QUEUED, times.queued_at, began or times.ended_at, times.attempt))
        if began is not None:
            spans.append(make_span(SpanKind.RUNNING, began, times.ended_at, times.attempt))
        if times.retry_at is not None and times.ended_at is not None and times.retry_at > times.ended_at:
            spans.append(make_span(SpanKind.RETRYING, times.ended_at, times.retry_at, times.attempt))
    return spans


def run_spans(
    created_at: int,
    first_call_at: int | None,
    ended_at: int | None,
    calls: Iterable[Interval],
    attempts: Sequence[AttemptTimes] = (),
    step_spans: Iterable[Span] = (),
    due_times: Iterable[int] = (),
) -> list[Span]:
    """The run's own spans: queued, running and backoff.

    ``attempts`` are the failed ones of the function's own code, ``step_spans`` the spans of its steps. ``due_times``
    are times at which calls were due. Any other call was due when nothing else was under way: a run that has not ended
    has a call or a wait outstanding, so a call is outstanding when no step is under way.
    """
    spans = []
    if first_call_at is None or first_call_at > created_at:
        spans.append(make_span(SpanKind.QUEUED, created_at, ended_at if first_call_at is None else first_call_at))
    running = [make_span(SpanKind.RUNNING, call.start, call.end) for call in merge(calls)]
    retrying = [span for span in attempt_spans(attempts) if span.kind is SpanKind.RETRYING]
    due = [make_span(SpanKind.QUEUED, time, time) for time in due_times]
    known = sorted([*running, *retrying, *step_spans, *due], key=_start)
    busy_until, place = None, 0
    for call in running:
        while place < len(known) and known[place].start < call.start:
            end = known[place].end
            busy_until = _NEVER if end is None else end if busy_until is None else max(busy_until, end)
            place += 1
        if busy_until is not None and call.start - busy_until > _SHORTEST_QUEUED:
            spans.append(Span(kind=SpanKind.QUEUED, start=busy_until, end=call.start))
    return sorted([*spans, *running, *retrying], key=_start)


def _start(span: Span) -> dt.datetime:
    return span.start


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals that overlap, in the order of time. Those that only touch stay separate."""
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.start):
        last = merged[-1] if merged else None
        if last is None or (last.end is not None and last.end <= interval.start):
            merged.append(interval)
        elif last.end is not None and (interval.end is None or interval.end > last.end):
            merged[-1] = Interval(last.start, interval.end)
    return merged
