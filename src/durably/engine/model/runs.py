"""The run book: runs, steps, attempts, waits and events as people and programs see them, for every engine.

The structs are frozen, with aware UTC datetimes. They are also the JSON of the HTTP API.
"""

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

import msgspec

from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, InternalEvent
from durably.protocol.events import RunStatus as RunStatus
from durably.protocol.opcodes import Opcode
from durably.protocol.questions import QuestionInfo
from durably.protocol.usage import ModelUsage as ModelUsage

# times


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def to_datetime(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def to_milliseconds(time: dt.datetime) -> int:
    return round(time.timestamp() * 1000)


def to_optional_datetime(milliseconds: int | None) -> dt.datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)


def to_optional_milliseconds(time: dt.datetime | None) -> int | None:
    return None if time is None else to_milliseconds(time)


def from_microseconds(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)


def to_microseconds(time: dt.datetime) -> int:
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


# runs


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
    """The sleep, wait or retry after which an idle run continues."""

    kind: StepStatus
    """``SLEEPING``, ``WAITING`` or ``RETRYING``."""
    step: str
    """Empty for a retry of the function's own code."""
    due_at: dt.datetime | None
    """When a sleep ends, a wait times out, or the next attempt is made."""
    awaited: str | None = None
    """The event name or signal."""
    error: str | None = None
    """The error of the previous attempt."""


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


MAX_PROGRESS_TEXT = 1_000


class Progress(msgspec.Struct, frozen=True):
    """How far a run is, by ``ctx.progress``."""

    fraction: float
    """From 0 to 1."""
    message: str
    at: dt.datetime


class Run(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"id": "run_id", "created_at": "run_started_at", "rerun_of": "original_run_id"},
):
    """A run of a function."""

    id: str
    function_id: str
    app_id: str = ""
    status: RunStatus
    event_ids: list[str] = []
    event_id: str | None = None
    """The first of ``event_ids``."""
    event_name: str | None = None
    created_at: dt.datetime
    started_at: dt.datetime | None = None
    """When the first call was made."""
    ended_at: dt.datetime | None = None
    output: msgspec.Raw | None = None
    """JSON: the function's result or, of a failed run, ``{name, message, stack, …}``."""
    attempt: int = 0
    """The attempt of the call under way, from 0."""
    max_attempts: int = 0
    """0 if it is not known."""
    rerun_of: str | None = None
    failed_attempts: int | None = None
    """The number of attempts that another followed, ``None`` on Temporal."""
    usage: list[ModelUsage] | None = None
    """The tokens of models that its steps have reported, failed attempts included, without steps that it has copied.
    On Temporal ``None``, except in a report."""
    waiting: RunWait | None = None
    """The earliest sleep, wait or retry of an idle run."""
    progress: Progress | None = None
    """The last that the run has reported."""
    relation: Relation | None = None
    """Of the parent and the children in a report: how one started the other."""
    step: str | None = None
    """Of these: the step through which one started the other, if it is known."""

    def decode_output(self) -> Any:
        """The output as Python objects; ``None`` if there is none."""
        return None if self.output is None else msgspec.json.decode(self.output)


class RunCall(msgspec.Struct, frozen=True, kw_only=True, rename={"job_id": "id", "due_at": "at"}):
    """A call of a run: scheduled for ``due_at``, or under way if ``in_flight``."""

    job_id: str
    position: int
    """Among the run's calls."""
    kind: str = "edge"
    step_id: str
    """The hashed id of the step that it targets, or ``step`` if it discovers steps."""
    step_name: str | None
    generation: int
    attempt: int
    due_at: dt.datetime
    in_flight: bool
    error: str | None
    """The error of the previous attempt."""


# steps and attempts


class SpanKind(StrEnum):
    """The kind of a part of a step's or run's time."""

    QUEUED = "queued"
    """It waits for a call."""
    RUNNING = "running"
    """The app runs its code."""
    RETRYING = "retrying"
    """Backoff after a failed attempt."""
    SLEEPING = "sleeping"
    WAITING = "waiting"
    """For an event, a signal or an invoked function."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time."""

    kind: SpanKind
    start: dt.datetime
    end: dt.datetime | None
    """``None`` if it has not ended."""
    attempt: int | None = None
    """From 0."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt that was or will be followed by another."""

    step: str | None = None
    """The step's id as the user wrote it, ``None`` for the function's own code."""
    attempt: int
    """From 0."""
    ended_at: dt.datetime
    error: ErrorData
    is_unreached: bool = False
    """The call did not reach the app, so that the next call made the same attempt."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run."""

    id: str
    """As the user wrote it."""
    hashed_id: str
    """The id on the wire."""
    op: Opcode
    status: StepStatus
    attempts: int
    """The number of attempts made."""
    created_at: dt.datetime
    ended_at: dt.datetime | None = None
    due_at: dt.datetime | None = None
    """When a sleep ends, a wait times out, or the next attempt is made."""
    spans: list[Span] = []
    """In the order of time."""
    failed_attempts: list[Attempt] = []
    input: msgspec.Raw | None = None
    """A JSON array of arguments, if the SDK sends it."""
    output: msgspec.Raw | None = None
    """JSON, or ``None`` (also for null)."""
    error: ErrorData | None = None
    """The error of the last attempt, if it failed."""
    awaited: str | None = None
    """The event name, signal, function id, or name of a message that a wait is for."""
    question: QuestionInfo | None = None
    """Of an open wait for a message."""
    child_run_id: str | None = None
    """The invoked run."""
    usage: list[ModelUsage] = []
    """The tokens of models in all its attempts."""
    is_copied: bool = False
    """The step has the result of the run that this one repeats, and no spans and no usage."""


# events


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, rename={"id": "internal_id", "event_id": "id"}):
    """An event as it was received."""

    id: str
    """The engine's own id (a ULID)."""
    event_id: str
    """The sender's id if the event has one."""
    name: str
    data: Any
    ts: int
    received_at: dt.datetime
    user: Any = None
    v: str | None = None
    meta: Any = None
    notes: list[str] = []
    """Sentences on its effects other than runs, and on why it started no run. Lists omit them."""
    runs: list[Run] = []
    """Of an event that a search found: the first 50 runs that it started."""
    is_unmatched: bool = False
    """Of these: it had no effect, and its name triggers no function now. The engine's own events never are."""
    ended: int = 0
    """Of these: the number of waits that it ended and of runs that it cancelled; 0 on Temporal, which does not know."""

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
            meta=event.meta,
        )

    @property
    def event(self) -> Event:
        """The event as functions get it."""
        return Event(
            name=self.name,
            data=self.data,
            id=self.event_id,
            ts=self.ts,
            user=self.user,
            v=self.v,
            meta=self.meta,
        )


# reports and pages


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run in full detail."""

    run: Run
    function_name: str
    app_version: str | None
    """The version of the app when the run was created."""
    spans: list[Span]
    """The run's own: the known calls of the app, the time in which it waited for a call, and the backoff of the
    function's own code."""
    steps: list[Step]
    failed_attempts: list[Attempt]
    """Those of the function's own code."""
    events: list[StoredEvent]
    parent: Run | None
    children: list[Run]
    """The earliest 200, without functions that ``inngest/function.finished`` triggers."""
    has_more_children: bool
    logs: list[LogLine]
    """Empty unless the engine keeps them, as in development."""
    error: ErrorData | None = None
    unavailable: str | None = None
    """Why the engine cannot read the run's steps now. The report has no steps, attempts and logs then."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``ctx.logger``, and the run that logged it."""

    run_id: str
    function_id: str
    line: LogLine


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the order of their arrival."""

    entries: list[LogEntry]
    position: int
    """The position of the next lines."""


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that a search found, newest first."""

    runs: list[Run]
    cursor: str | None
    """Continues the search; ``None`` if there are no more."""
    searched_until: dt.datetime | None = None
    """The creation time of the oldest run that was looked at, if the search stopped there because of its limit."""


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events that a search found, newest first; see ``RunPage``."""

    events: list[StoredEvent]
    cursor: str | None
    searched_until: dt.datetime | None = None


class MatchCount(msgspec.Struct, frozen=True, kw_only=True):
    """A number of runs, such as those to which a bulk operation would apply."""

    count: int
    is_complete: bool
    """False if the number is a lower bound."""


class StatusCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of runs by status. Statuses that the engine does not distinguish are missing."""

    counts: dict[RunStatus, MatchCount]


# arguments and results of operations


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
    """The result of an invocation."""

    event_id: str
    run_id: str | None = None
    """``None`` if flow control starts no run, or has not started it yet. ``event_id`` finds it then."""
    status: int = 200
    """Repeats the HTTP status."""


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a search, a count or a bulk operation."""

    status: RunStatus | None = None
    function_id: str | None = None
    app_id: str | None = None
    event_name: str | None = None
    started_after: dt.datetime | None = None
    """With ``started_before``, a half-open interval of the time of creation."""
    started_before: dt.datetime | None = None
    if_exp: str | None = None
    """A condition (CEL) over the run's event and, in a search, its output."""
    id: str | None = None
    """The id of the run or of one of its events, or the beginning or the end of such an id."""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a search."""

    name: str | None = None
    received_after: dt.datetime | None = None
    """With ``received_before``, a half-open interval."""
    received_before: dt.datetime | None = None
    is_unmatched: bool | None = None
    if_exp: str | None = None
    """A condition (CEL) over ``event``."""
    id: str | None = None
    """The id of the engine or of the sender, or the beginning or the end of the engine's."""
    has_runs: bool = True
    """The events have the runs that they started."""


class BulkOperation(msgspec.Struct, frozen=True, kw_only=True, rename={"expression": "if"}):
    """A bulk cancellation or replay of a function's runs; see ``RunFilter``."""

    id: str
    function_id: str
    started_after: dt.datetime | None
    started_before: dt.datetime
    expression: str | None
    statuses: tuple[RunStatus, ...] = ()
    """A replay applies to runs that ended with one of them; a cancellation has none."""
    created_at: dt.datetime
    ended_at: dt.datetime | None
    """When all existing runs were processed. A cancellation applies to new ones until ``started_before``."""
    affected: int
    """The number of its runs so far."""


class RunMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a run from an SDK: the JSON that was received."""

    received_at: dt.datetime
    body: msgspec.Raw


class ExportedSpans(msgspec.Struct, frozen=True, kw_only=True):
    """One export of spans by an SDK (OTLP)."""

    received_at: dt.datetime
    content_type: str
    body: msgspec.Raw
    """JSON. For another content type, the body as a base64 string."""


# updates


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
    """An update of a run. Subscribers get it after the commit."""

    kind: UpdateKind
    at: dt.datetime
    run_id: str
    function_id: str
    step: str | None = None
    """The step's id as the user wrote it, ``None`` for the function's own code."""
    op: Opcode | None = None
    attempt: int | None = None
    """The failed attempt, from 0."""
    due_at: dt.datetime | None = None
    """When the next attempt is made, a sleep ends or a wait times out."""
    output: msgspec.Raw | None = None
    """JSON: of a step its memo, of a run the function's result."""
    error: str | None = None
    """``"Name: message"``."""
    app_id: str = ""
    created_at: dt.datetime | None = None
    """When the run was triggered."""
    event_id: str | None = None
    """In the ends of runs, the id of the event that triggered the run."""

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


_error_decoder = msgspec.json.Decoder(ErrorData)
_memo_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_error(encoded: bytes | msgspec.Raw) -> ErrorData:
    """An error as an app wrote it."""
    try:
        return _error_decoder.decode(encoded)
    except msgspec.MsgspecError:
        return ErrorData(message=bytes(encoded).decode(errors="replace"))


def describe_error(encoded: bytes | msgspec.Raw) -> str:
    """``Name: message`` for an error in JSON."""
    error = _error_decoder.decode(encoded)
    return f"{error.name or 'Error'}: {error.message or ''}"


def describe_failed_memo(memo: bytes) -> str:
    return describe_error(_memo_decoder.decode(memo)["error"])
