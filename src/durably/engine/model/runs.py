"""The run book: runs, steps, attempts, waits and events as people and programs see them, for every engine.

The structs are frozen, with aware UTC datetimes. They are also the JSON of the HTTP API.
"""

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

import msgspec

from durably.engine.core.run_state import RunStatus as RunStatus
from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import Opcode

_error_decoder = msgspec.json.Decoder(ErrorData)
_memo_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def describe_error(encoded: bytes | msgspec.Raw) -> str:
    """``Name: message`` for an error in JSON."""
    error = _error_decoder.decode(encoded)
    return f"{error.name or 'Error'}: {error.message or ''}"


def describe_failed_memo(memo: bytes) -> str:
    return describe_error(_memo_decoder.decode(memo)["error"])


def to_datetime(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def from_microseconds(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)


def to_microseconds(time: dt.datetime) -> int:
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


def to_milliseconds(time: dt.datetime) -> int:
    return round(time.timestamp() * 1000)


def to_optional_datetime(milliseconds: int | None) -> dt.datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)


def to_optional_milliseconds(time: dt.datetime | None) -> int | None:
    return None if time is None else to_milliseconds(time)


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, rename={"id": "internal_id", "event_id": "id"}):
    """An event as it was received.

    ``id`` is the engine's own (a ULID), ``event_id`` the sender's if it has one. ``notes`` are sentences on the event's
    effects other than runs, and on why it started no run; lists omit them.
    """

    id: str
    event_id: str
    name: str
    data: Any
    ts: int
    received_at: dt.datetime
    user: Any = None
    v: str | None = None
    notes: list[str] = []

    @classmethod
    def of(cls, id: str, event: Event, received_at: dt.datetime) -> "StoredEvent":
        return cls(
            id=id,
            event_id=event.id or id,
            name=event.name,
            data=event.data,
            ts=event.ts,
            received_at=received_at,
            user=event.user,
            v=event.v,
        )

    @property
    def event(self) -> Event:
        """The event as functions get it."""
        return Event(name=self.name, data=self.data, id=self.event_id, ts=self.ts, user=self.user, v=self.v)


class StepStatus(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    PLANNED = "planned"
    RETRYING = "retrying"
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAITING = "waiting"
    UNFINISHED = "unfinished"
    """Its run ended before the step did."""


class RunWait(msgspec.Struct, frozen=True, kw_only=True):
    """The sleep, wait or retry after which an idle run continues.

    - ``kind``: ``SLEEPING``, ``WAITING`` or ``RETRYING``.
    - ``step``: Empty for a retry of the function's own code.
    - ``due_at``: When a sleep ends, a wait times out, or the next attempt is made.
    - ``awaited``: The event name or signal.
    - ``error``: The error of the previous attempt.
    """

    kind: "StepStatus"
    step: str
    due_at: dt.datetime | None
    awaited: str | None = None
    error: str | None = None


class Run(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"id": "run_id", "created_at": "run_started_at", "rerun_of": "original_run_id"},
):
    """A run of a function.

    - ``output``: JSON: the function's result or, of a failed run, ``{name, message, stack, …}``.
    - ``started_at``: When the first call was made.
    - ``attempt``: The attempt of the call under way, from 0.
    - ``event_id``, ``event_name``: The first of ``event_ids``, and its name.
    - ``failed_attempts``: The number of attempts that another followed, ``None`` on Temporal.
    - ``waiting``: The earliest sleep, wait or retry of an idle run.
    """

    id: str
    function_id: str
    app_id: str
    status: RunStatus
    event_ids: list[str]
    event_id: str | None = None
    event_name: str | None = None
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    output: msgspec.Raw | None
    attempt: int
    max_attempts: int
    rerun_of: str | None
    failed_attempts: int | None = None
    waiting: RunWait | None = None

    def decode_output(self) -> Any:
        """The output as Python objects; ``None`` if there is none."""
        return None if self.output is None else msgspec.json.decode(self.output)


class RunCall(msgspec.Struct, frozen=True, kw_only=True, rename={"job_id": "id", "due_at": "at"}):
    """A call of a run: scheduled for ``due_at``, or under way if ``in_flight``.

    ``position`` is its position among the run's calls. ``step_id`` is the hashed id of the step it targets, or ``step``
    if it discovers steps. ``error`` is the error of the previous attempt.
    """

    job_id: str
    position: int
    kind: str = "edge"
    step_id: str
    step_name: str | None
    generation: int
    attempt: int
    due_at: dt.datetime
    in_flight: bool
    error: str | None


class SpanKind(StrEnum):
    """The kind of a part of a step's or run's time.

    ``QUEUED``: waits for a call. ``RUNNING``: the app runs its code. ``RETRYING``: backoff after a failed attempt.
    ``SLEEPING``: a sleep. ``WAITING``: for an event, a signal or an invoked function.
    """

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SLEEPING = "sleeping"
    WAITING = "waiting"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time.

    ``end`` is ``None`` if it has not ended; ``attempt`` counts from 0.
    """

    kind: SpanKind
    start: dt.datetime
    end: dt.datetime | None
    attempt: int | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt that was or will be followed by another.

    ``attempt`` counts from 0. ``is_unreached``: the call did not reach the app, so that the next call made the same
    attempt.
    """

    attempt: int
    ended_at: dt.datetime
    error: ErrorData
    is_unreached: bool = False


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt that was or will be followed by another.

    ``attempt`` counts from 0. ``step`` is the step's id as the user wrote it, ``None`` for the function's own code.
    ``error`` is ``"Name: message"``.
    """

    step: str | None
    attempt: int
    ended_at: dt.datetime
    error: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step in full detail.

    - ``spans``: In the order of time.
    - ``input``: A JSON array of arguments, if the SDK sends it.
    - ``output``: JSON, or ``None`` (also for null).
    - ``awaited``: The event name, signal or function id that a wait is for.
    - ``child_run_id``: The invoked run.
    - ``is_copied``: The step has the result of the run that this one repeats, and no spans.
    - ``error``: The error of the last attempt.
    """

    id: str
    hashed_id: str
    op: Opcode
    status: StepStatus
    attempts: int
    created_at: dt.datetime
    ended_at: dt.datetime | None
    due_at: dt.datetime | None
    spans: list[Span]
    failed_attempts: list[Attempt]
    input: msgspec.Raw | None = None
    output: msgspec.Raw | None = None
    error: ErrorData | None = None
    awaited: str | None = None
    child_run_id: str | None = None
    is_copied: bool = False


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run.

    - ``id``: The step's id as the user wrote it.
    - ``hashed_id``: The id on the wire.
    - ``attempts``: The number of attempts made.
    - ``due_at``: When a sleep ends, a wait times out, or the next attempt is made.
    - ``memo``: JSON, in the form in which apps get it: ``{"data": …}``, ``{"error": …}``, the awaited event, or null.
    """

    id: str
    hashed_id: str
    op: Opcode
    status: StepStatus
    attempts: int
    created_at: dt.datetime
    ended_at: dt.datetime | None
    due_at: dt.datetime | None
    memo: msgspec.Raw | None
    error: str | None


class Relation(StrEnum):
    """The way in which one run started another."""

    INVOKED = "invoked"
    SENT_EVENT = "sent event"
    DEFERRED = "deferred"
    RERUN = "rerun"
    ENDED = "ended"
    """The event of its end triggered the other, as it does for failure handlers."""


_RELATIONS: dict[str, Relation] = {
    InternalEvent.FUNCTION_INVOKED: Relation.INVOKED,
    InternalEvent.DEFERRED_SCHEDULE: Relation.DEFERRED,
    InternalEvent.FUNCTION_FINISHED: Relation.ENDED,
    InternalEvent.FUNCTION_FAILED: Relation.ENDED,
    InternalEvent.FUNCTION_CANCELLED: Relation.ENDED,
}


def relation_by(event_name: str) -> Relation:
    """The relation of a run to the run that sent the event that triggered it."""
    return _RELATIONS.get(event_name, Relation.SENT_EVENT)


class RunLink(msgspec.Struct, frozen=True, kw_only=True):
    """A run that another one names.

    ``step`` is the step through which one started the other, if it is known.
    """

    run_id: str
    function_id: str
    status: RunStatus
    created_at: dt.datetime
    relation: Relation | None = None
    step: str | None = None


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run in full detail.

    - ``spans``: The run's own: the known calls of the app, the time in which it waited for a call, and the backoff of
      the function's own code.
    - ``failed_attempts``: Attempts of the function's own code.
    - ``app_version``: The version of the app when the run was created.
    - ``logs``: Empty unless the engine keeps them, as in development.
    - ``children``: The earliest 200, without functions that ``inngest/function.finished`` triggers.
    - ``unavailable``: Why the engine cannot read the run's steps now. The report has no steps, attempts and logs then.
    """

    run: Run
    function_name: str
    app_version: str | None
    spans: list[Span]
    steps: list[Step]
    failed_attempts: list[Attempt]
    events: list[StoredEvent]
    parent: RunLink | None
    children: list[RunLink]
    has_more_children: bool
    logs: list[LogLine]
    error: ErrorData | None = None
    unavailable: str | None = None


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``ctx.logger``, and the run that logged it."""

    run_id: str
    function_id: str
    line: LogLine


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the order of their arrival.

    ``position`` is that of the next lines.
    """

    entries: list[LogEntry]
    position: int


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that a search found, newest first.

    ``cursor`` continues the search; ``None`` if there are no more. A search looks at a limited number of runs:
    ``searched_until`` is the creation time of the oldest one that it looked at, if it stopped there.
    """

    runs: list[Run]
    cursor: str | None
    searched_until: dt.datetime | None = None


class EventReport(msgspec.Struct, frozen=True, kw_only=True):
    """An event and the runs that it started.

    ``runs`` are the first 50. ``ended`` is the number of waits that it ended and of runs that it cancelled; 0 on
    Temporal, where it is not known. ``is_unmatched``: the event had no effect, and its name triggers no function now.
    The engine's own events are never unmatched.
    """

    event: StoredEvent
    runs: list[RunLink]
    is_unmatched: bool
    ended: int = 0


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events that a search found, newest first; see ``RunPage``."""

    events: list[EventReport]
    cursor: str | None
    searched_until: dt.datetime | None = None


class MatchCount(msgspec.Struct, frozen=True, kw_only=True):
    """A number of runs, such as those to which a bulk operation would apply.

    ``is_complete`` is false if the number is a lower bound.
    """

    count: int
    is_complete: bool


class StatusCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of runs by status.

    Statuses that the engine does not distinguish are missing.
    """

    counts: dict[RunStatus, MatchCount]


class FromStep(msgspec.Struct, frozen=True):
    """The step that a rerun starts from.

    The id is as the user wrote it, or the hashed one. ``input`` is a JSON array that replaces the step's arguments.
    """

    step_id: str
    input: list[msgspec.Raw] | None = None

    @classmethod
    def of(cls, step_id: str, arguments: Sequence[Any] | None) -> "FromStep":
        """The step with other arguments, which must be JSON values."""
        encoded = None if arguments is None else [msgspec.Raw(msgspec.json.encode(each)) for each in arguments]
        return cls(step_id, encoded)


class InvokeReceipt(msgspec.Struct, frozen=True, kw_only=True, rename={"event_id": "id"}):
    """The result of an invocation.

    ``run_id`` is ``None`` if flow control starts no run, or has not started it yet. ``status`` repeats the HTTP status.
    """

    event_id: str
    run_id: str | None
    status: int = 200


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of a function, selected by creation time and event.

    The runs were created from ``started_after`` until before ``started_before``, and the expression is true for their
    event.
    """

    function_id: str
    started_before: dt.datetime
    started_after: dt.datetime | None = None
    expression: str | None = None


class BulkOperationView(msgspec.Struct, frozen=True, kw_only=True, rename={"expression": "if"}):
    """A bulk cancellation or replay of a function's runs.

    It applies to runs created from ``started_after`` until before ``started_before`` for whose event the expression is
    true. A replay only applies to runs that ended with one of ``statuses``. ``affected`` is the number of its runs so
    far. ``ended_at`` is when all existing runs were processed; a cancellation applies to new ones until
    ``started_before``.
    """

    id: str
    function_id: str
    started_after: dt.datetime | None
    started_before: dt.datetime
    expression: str | None
    statuses: tuple[RunStatus, ...]
    created_at: dt.datetime
    ended_at: dt.datetime | None
    affected: int


class CancellationView(BulkOperationView, frozen=True, kw_only=True, rename={"affected": "cancelled"}):
    affected: int


class ReplayView(BulkOperationView, frozen=True, kw_only=True, rename={"affected": "replayed"}):
    affected: int


class RunMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a run from an SDK: the JSON that was received."""

    received_at: dt.datetime
    body: msgspec.Raw


class ExportedSpans(msgspec.Struct, frozen=True, kw_only=True):
    """One export of spans by an SDK (OTLP).

    ``body`` is JSON. For another content type, it is the body as a base64 string.
    """

    received_at: dt.datetime
    content_type: str
    body: msgspec.Raw


class UpdateKind(StrEnum):
    RUN_STARTED = "run started"
    STEP_COMPLETED = "step completed"
    STEP_FAILED = "step failed"
    RETRYING = "retrying"
    UNREACHED = "app unreached"
    SLEEPING = "sleeping"
    WAITING = "waiting"
    RUN_COMPLETED = "run completed"
    RUN_FAILED = "run failed"
    RUN_CANCELLED = "run cancelled"
    RUN_SKIPPED = "run skipped"


END_UPDATES = {
    RunStatus.COMPLETED: UpdateKind.RUN_COMPLETED,
    RunStatus.FAILED: UpdateKind.RUN_FAILED,
    RunStatus.CANCELLED: UpdateKind.RUN_CANCELLED,
    RunStatus.SKIPPED: UpdateKind.RUN_SKIPPED,
}
"""The update about a run's end, by its status."""


class RunUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An update of a run. Subscribers get it after the commit.

    - ``step``: The step's id as the user wrote it, ``None`` for the function's own code.
    - ``attempt``: The failed attempt, from 0.
    - ``due_at``: When the next attempt is made, a sleep ends or a wait times out.
    - ``output``: JSON: of a step its memo, of a run the function's result.
    - ``error``: ``"Name: message"``.
    - ``created_at``: When the run was triggered.
    - ``event_id``: In the ends of runs, the id of the event that triggered the run.
    """

    kind: UpdateKind
    at: dt.datetime
    run_id: str
    function_id: str
    step: str | None = None
    op: Opcode | None = None
    attempt: int | None = None
    due_at: dt.datetime | None = None
    output: msgspec.Raw | None = None
    error: str | None = None
    app_id: str = ""
    created_at: dt.datetime | None = None
    event_id: str | None = None

    @classmethod
    def started(cls, run: Run) -> Self:
        """The update about the start of a run."""
        kind = UpdateKind.RUN_STARTED
        return cls(kind=kind, at=run.created_at, run_id=run.id, function_id=run.function_id, app_id=run.app_id)

    @classmethod
    def ended(cls, run: Run) -> Self:
        """The update about the end of a run that has ended."""
        assert run.ended_at is not None
        is_completed = run.status is RunStatus.COMPLETED
        return cls(
            kind=END_UPDATES[run.status],
            at=run.ended_at,
            run_id=run.id,
            function_id=run.function_id,
            app_id=run.app_id,
            output=run.output if is_completed else None,
            error=None if is_completed or run.output is None else describe_error(run.output),
            created_at=run.created_at,
            event_id=run.event_id,
        )
