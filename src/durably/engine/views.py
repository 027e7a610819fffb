"""Values that the engine's methods take and return.

They are frozen, with aware UTC datetimes.
"""

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import FunctionConfig

__all__ = [
    "AppView",
    "BulkOperationView",
    "CallView",
    "CancellationView",
    "EventView",
    "FromStep",
    "FunctionView",
    "InvokeReceipt",
    "MetadataView",
    "ReplayView",
    "RunStatus",
    "RunUpdate",
    "RunView",
    "RunWait",
    "Selection",
    "StepStatus",
    "StepView",
    "SyncResult",
    "TracesView",
    "UpdateKind",
    "describe_error",
    "describe_failed_memo",
]


class EventView(msgspec.Struct, frozen=True, kw_only=True, rename={"id": "internal_id", "event_id": "id"}):
    """An event as it was received.

    ``id`` is the engine's own (a ULID), ``event_id`` the sender's, or else the same. ``notes`` are sentences on what
    the event did besides starting runs, and on why it started none; lists omit them.
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
    def of(cls, id: str, event: Event, received_at: dt.datetime) -> "EventView":
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


class AppView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    url: str
    sdk: str | None
    framework: str | None
    version: str | None
    synced_at: dt.datetime
    function_count: int


class FunctionView(msgspec.Struct, frozen=True, kw_only=True):
    """A function that its app serves. A function that ``is_paused`` starts no runs.

    ``config`` is what the app synced, without credentials in URLs. ``name`` is the id if the app gave no name.
    """

    id: str
    name: str
    app_id: str
    config: FunctionConfig
    is_paused: bool


class FromStep(msgspec.Struct, frozen=True):
    """The step that a rerun starts from.

    The id is as the user wrote it, or the hashed one. ``input`` is a JSON array of arguments for the step in place of
    its own.
    """

    step_id: str
    input: list[msgspec.Raw] | None = None

    @classmethod
    def of(cls, step_id: str, arguments: Sequence[Any] | None) -> "FromStep":
        """The step with arguments in place of its own.

        ``arguments`` are values that JSON can hold.
        """
        encoded = None if arguments is None else [msgspec.Raw(msgspec.json.encode(each)) for each in arguments]
        return cls(step_id, encoded)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of a function, selected by creation time and event.

    The runs were created from ``started_after`` until before ``started_before``, and the expression holds for their
    event.
    """

    function_id: str
    started_before: dt.datetime
    started_after: dt.datetime | None = None
    expression: str | None = None


class BulkOperationView(msgspec.Struct, frozen=True, kw_only=True, rename={"expression": "if"}):
    """A bulk cancellation or replay of a function's runs.

    It applies to runs created from ``started_after`` until before ``started_before``, for whose event the expression
    holds and, in a replay, that ended with one of ``statuses``. ``affected`` is the number of its runs so far.
    ``ended_at`` is when it had looked at the runs that existed; a cancellation applies to new ones until
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


class SyncResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a sync.

    ``modified`` is false if the app's functions have not changed since its last sync. ``added``, ``changed`` and
    ``removed`` are ids of functions. ``version`` is the client's ``app_version``, and ``previous_version`` that of the
    previous sync. ``previous_url`` is the app's URL before, if it has changed.
    """

    app_id: str
    modified: bool
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    version: str | None = None
    previous_version: str | None = None
    previous_url: str | None = None


class RunWait(msgspec.Struct, frozen=True, kw_only=True):
    """The sleep, wait or retry that an idle run continues after.

    ``kind`` is ``SLEEPING``, ``WAITING`` or ``RETRYING``. ``step`` is empty for a retry of the function's own code.
    ``due_at`` is when a sleep ends, a wait times out, or the next attempt is made. ``awaited`` is the event name or
    signal, ``error`` that of the attempt before.
    """

    kind: "StepStatus"
    step: str
    due_at: dt.datetime | None
    awaited: str | None = None
    error: str | None = None


class RunView(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"id": "run_id", "created_at": "run_started_at", "rerun_of": "original_run_id"},
):
    """A run of a function.

    ``output`` is JSON: what the function returned or, of a failed run, ``{name, message, stack, …}``. ``started_at`` is
    when the first call was made. ``attempt`` is that of the call under way, from 0. ``event_id`` is the first of
    ``event_ids``, and ``event_name`` its name. ``failed_attempts`` is the number of attempts that another followed,
    ``None`` on Temporal. ``waiting`` is the earliest sleep, wait or retry of an idle run.
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


class StepStatus(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    PLANNED = "planned"
    RETRYING = "retrying"
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAITING = "waiting"
    UNFINISHED = "unfinished"
    """Its run ended before it did."""


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run.

    ``id`` is the step's id as the user wrote it, ``hashed_id`` the one on the wire.

    ``attempts`` is how many were made. ``due_at`` is when a sleep ends, a wait times out, or the next attempt
    is made. ``memo`` is JSON, in the form in which apps get it: ``{"data": …}``, ``{"error": …}``, the event
    that was waited for, or null.
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


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that failed, and was or will be followed by another.

    ``attempt`` counts from 0. ``step`` is the step's id as the user wrote it, ``None`` for the function's own code.
    ``error`` is ``"Name: message"``.
    """

    step: str | None
    attempt: int
    ended_at: dt.datetime
    error: str


class MetadataView(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a run from an SDK: the JSON that was received."""

    received_at: dt.datetime
    body: msgspec.Raw


class TracesView(msgspec.Struct, frozen=True, kw_only=True):
    """One export of spans by an SDK (OTLP).

    ``body`` is JSON: for another content type, the body as base64 text.
    """

    received_at: dt.datetime
    content_type: str
    body: msgspec.Raw


class CallView(msgspec.Struct, frozen=True, kw_only=True, rename={"job_id": "id", "due_at": "at"}):
    """A call of a run: scheduled for ``due_at``, or under way if ``in_flight``.

    ``position`` is its place among the run's calls. ``step_id`` is the hashed id of the step it targets, or ``step``
    if it discovers steps. ``error`` is the error of the attempt before.
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


class InvokeReceipt(msgspec.Struct, frozen=True, kw_only=True, rename={"event_id": "id"}):
    """The result of an invocation.

    ``run_id`` is ``None`` if flow control starts no run, or not yet. ``status`` repeats the HTTP status.
    """

    event_id: str
    run_id: str | None
    status: int = 200


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

    ``step`` is the step's id as the user wrote it, ``None`` if it concerns the function's own code.
    ``attempt`` is the one that failed (from 0), ``due_at`` when the next is made, a sleep ends or a wait times
    out. ``output`` is JSON: of a step its memo, of a run what the function returned. ``error`` is ``"Name: message"``.
    ``created_at`` is when the run was triggered. The ends of runs have ``event_id``, the id of the event that did so.
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
    def started(cls, run: RunView) -> Self:
        """The update about the start of a run."""
        kind = UpdateKind.RUN_STARTED
        return cls(kind=kind, at=run.created_at, run_id=run.id, function_id=run.function_id, app_id=run.app_id)

    @classmethod
    def ended(cls, run: RunView) -> Self:
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


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def describe_error(encoded: bytes | msgspec.Raw) -> str:
    """The text ``Name: message`` for an error in JSON."""
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
