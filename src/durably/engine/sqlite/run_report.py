"""The report of one run: all that the engine knows of it, in one read."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call, RunState, Wait
from durably.engine.reports import AttemptReport, RunLink, RunReport, Span, SpanKind, StepReport
from durably.engine.spans import AttemptTimes, Interval, attempt_spans, make_span, run_spans
from durably.engine.views import EventView, RunView, StepStatus, from_microseconds, to_datetime, to_milliseconds
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode, hash_step_id
from durably.protocol.sync import decode_function

from .queries import FirstCallAt, find_event, find_run, read_run_state_of
from .run_links import child_links, parent_link

CalledAt = Callable[[int, int], int | None]
"""Maps a run's key and a generation to when that call was made, in milliseconds; ``None`` if it is not under way."""

_DATA, _ERROR = b'{"data":', b'{"error":'
_SPAN_KINDS = {Opcode.SLEEP: SpanKind.SLEEPING, **dict.fromkeys(REQUESTS, SpanKind.RUNNING)}
_error_decoder = msgspec.json.Decoder(ErrorData)


class FailedRow(msgspec.Struct, frozen=True):
    """A failed attempt as stored.

    ``step`` is the step's name; empty for the function's own code.
    """

    step: str
    attempt: int
    ended_at: int
    error: str

    @property
    def data(self) -> ErrorData:
        name, separator, message = self.error.partition(": ")
        return ErrorData(name=name, message=message) if separator else ErrorData(message=self.error)

    def report(self) -> AttemptReport:
        return AttemptReport(attempt=self.attempt, ended_at=to_datetime(self.ended_at), error=self.data)


def read_run_report(
    connection: sqlite3.Connection, run_id: str, first_call_at: FirstCallAt, called_at: CalledAt
) -> RunReport | None:
    """The report; ``None`` if there is no such run."""
    run = find_run(connection, run_id, first_call_at)
    if run is None:
        return None
    key, event_key = connection.execute("SELECT key, event_key FROM runs WHERE id = ?", (run_id,)).fetchone()
    children, has_more_children = child_links(connection, key, run_id, first_call_at)
    reader = _Reader(connection, key, run, called_at, children)
    steps = reader.read_steps()
    return RunReport(
        run=run,
        function_name=_function_name(connection, run.function_id),
        app_version=None,
        spans=reader.read_spans(),
        steps=sorted(steps, key=lambda step: step.spans[0].start if step.spans else step.created_at),
        failed_attempts=[row.report() for row in reader.failed[""]],
        events=_events(connection, run),
        parent=parent_link(connection, event_key, run.rerun_of, first_call_at),
        children=children,
        has_more_children=has_more_children,
        logs=[],
        error=_run_error(run),
    )


def _events(connection: sqlite3.Connection, run: RunView) -> list[EventView]:
    found = (find_event(connection, event_id) for event_id in run.event_ids)
    return [event for event in found if event is not None]


def _function_name(connection: sqlite3.Connection, function_id: str) -> str:
    row = connection.execute("SELECT config FROM functions WHERE id = ?", (function_id,)).fetchone()
    return (decode_function(row[0]).name if row else None) or function_id


def _run_error(run: RunView) -> ErrorData | None:
    if run.output is None or not run.status.has_ended or run.status == "Completed":
        return None
    return _decode_error(run.output)


def _decode_error(encoded: bytes | msgspec.Raw) -> ErrorData:
    try:
        return _error_decoder.decode(encoded)
    except msgspec.MsgspecError:  # as the app wrote it
        return ErrorData(message=bytes(encoded).decode(errors="replace"))


class _Reader:
    """Reads the steps of a run.

    ``calls`` are the intervals of the run's calls that are known.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_key: int,
        run: RunView,
        called_at: CalledAt,
        children: Sequence[RunLink],
    ) -> None:
        self._connection = connection
        self._key = run_key
        self._run = run
        self._called_at = called_at
        self._state: RunState | None = read_run_state_of(connection, run_key)
        self._child_of = {child.step: child.run_id for child in children if child.step is not None}
        self.calls: list[Interval] = []
        self.failed: dict[str, list[FailedRow]] = defaultdict(list)
        rows = connection.execute(
            "SELECT name, attempt, ended_at, error FROM failed_attempts WHERE run_key = ? ORDER BY ended_at", (run_key,)
        )
        for row in rows:
            self.failed[row[0]].append(FailedRow(*row))

    def read_steps(self) -> list[StepReport]:
        rows = self._connection.execute(
            "SELECT step_id, name, op, attempts, failed, created_at, ended_at, memo FROM memos WHERE run_key = ? "
            "ORDER BY seq",
            (self._key,),
        ).fetchall()
        steps = [self._finished(*row) for row in rows]
        if self._state is not None:
            steps += [self._called(call) for call in self._state.calls if call.name]
            steps += [self._waiting(wait) for wait in self._state.waits]
        return steps

    def read_spans(self) -> list[Span]:
        """The run's own spans. Its steps must be read already."""
        run, state = self._run, self._state
        for call in state.calls if state is not None else ():
            made_at = self._called_at(self._key, call.generation)
            if made_at is not None:
                self.calls.append(Interval(made_at * 1000, None))
        return run_spans(
            to_milliseconds(run.created_at) * 1000,
            None if run.started_at is None else to_milliseconds(run.started_at) * 1000,
            None if run.ended_at is None else to_milliseconds(run.ended_at) * 1000,
            self.calls,
            self._attempts(""),
        )

    def _attempts(self, step: str) -> list[AttemptTimes]:
        return [AttemptTimes(attempt=row.attempt, ended_at=row.ended_at * 1000) for row in self.failed[step]]

    def _finished(
        self,
        step_id: str,
        name: str,
        stored_op: str,
        attempts: int,
        failed: int,
        created_at: int,
        ended_at: int,
        memo: bytes,
    ) -> StepReport:
        op = Opcode(stored_op)
        began, ended = created_at * 1000, ended_at * 1000
        if op is Opcode.STEP_RUN:
            self.calls.append(Interval(began, ended))
            last = AttemptTimes(attempt=attempts - 1, began_at=began, ended_at=ended)
            spans = attempt_spans([*self._attempts(name), last])
        else:
            spans = [make_span(_SPAN_KINDS.get(op, SpanKind.WAITING), began, ended)]
        return StepReport(
            id=name,
            hashed_id=step_id,
            op=op,
            status=StepStatus.FAILED if failed else StepStatus.COMPLETED,
            attempts=attempts,
            created_at=from_microseconds(began),
            ended_at=to_datetime(ended_at),
            due_at=None,
            spans=spans,
            failed_attempts=[row.report() for row in self.failed[name]],
            output=None if failed else _output(op, memo),
            error=_decode_error(memo[len(_ERROR) : -1]) if failed else None,
            child_run_id=self._child_of.get(name),
        )

    def _called(self, call: Call) -> StepReport:
        """A step that is planned, under way or to be tried again."""
        made_at = self._called_at(self._key, call.generation)
        idle = StepStatus.RETRYING if call.attempt else StepStatus.PLANNED
        now = AttemptTimes(
            attempt=call.attempt, queued_at=call.due * 1000, began_at=None if made_at is None else made_at * 1000
        )
        failed = self._attempts(call.name)
        return StepReport(
            id=call.name,
            hashed_id=hash_step_id(call.name) if call.is_discovery else call.step_id,
            op=Opcode.STEP_RUN,
            status=idle if made_at is None else StepStatus.RUNNING,
            attempts=call.attempt + (made_at is not None),
            created_at=to_datetime(call.due),
            ended_at=None,
            due_at=to_datetime(call.due),
            spans=attempt_spans([*failed, now]),
            failed_attempts=[row.report() for row in self.failed[call.name]],
        )

    def _waiting(self, wait: Wait) -> StepReport:
        due, created_at, topic = self._connection.execute(
            "SELECT due, created_at, topic FROM waits WHERE run_key = ? AND step_id = ?", (self._key, wait.step_id)
        ).fetchone()
        idle = StepStatus.SLEEPING if wait.op == Opcode.SLEEP else StepStatus.WAITING
        is_named = wait.op in (Opcode.WAIT_FOR_EVENT, Opcode.WAIT_FOR_SIGNAL)
        return StepReport(
            id=wait.name,
            hashed_id=wait.step_id,
            op=wait.op,
            status=StepStatus.RUNNING if wait.op in REQUESTS else idle,
            attempts=wait.attempt + 1,
            created_at=to_datetime(created_at),
            ended_at=None,
            due_at=None if due is None else to_datetime(due),
            spans=[make_span(_SPAN_KINDS.get(wait.op, SpanKind.WAITING), created_at * 1000, None)],
            failed_attempts=[],
            awaited=topic if is_named else None,
            child_run_id=self._child_of.get(wait.name),
        )


def _output(op: Opcode, memo: bytes) -> msgspec.Raw | None:
    """The result of a step, without a copy; ``None`` for null.

    A memo has it in ``{"data":…}``, except that of an event wait.
    """
    is_wrapped = op is not Opcode.WAIT_FOR_EVENT and memo.startswith(_DATA)
    output = memoryview(memo)[len(_DATA) : -1] if is_wrapped else memoryview(memo)
    return None if bytes(output[:5]) == b"null" else msgspec.Raw(output)
