"""Reports of an engine, for the dashboard, the command line and metrics.

They are frozen, with aware UTC datetimes. ``views.py`` has the values of the API that SDKs and apps use.
"""

import datetime as dt
from enum import StrEnum

import msgspec

from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode

from .views import AppView, EventView, FunctionView, RunStatus, RunView, StepStatus


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


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt that was or will be followed by another.

    ``attempt`` counts from 0. ``is_unreached``: the call did not reach the app, so that the next call made the same
    attempt.
    """

    attempt: int
    ended_at: dt.datetime
    error: ErrorData
    is_unreached: bool = False


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
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
    failed_attempts: list[AttemptReport]
    input: msgspec.Raw | None = None
    output: msgspec.Raw | None = None
    error: ErrorData | None = None
    awaited: str | None = None
    child_run_id: str | None = None
    is_copied: bool = False


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

    run: RunView
    function_name: str
    app_version: str | None
    spans: list[Span]
    steps: list[StepReport]
    failed_attempts: list[AttemptReport]
    events: list[EventView]
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

    runs: list[RunView]
    cursor: str | None
    searched_until: dt.datetime | None = None


class EventReport(msgspec.Struct, frozen=True, kw_only=True):
    """An event and the runs that it started.

    ``runs`` are the first 50. ``ended`` is the number of waits that it ended and of runs that it cancelled; 0 on
    Temporal, where it is not known. ``is_unmatched``: the event had no effect, and its name triggers no function now.
    The engine's own events are never unmatched.
    """

    event: EventView
    runs: list[RunLink]
    is_unmatched: bool
    ended: int = 0


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events that a search found, newest first; see ``RunPage``."""

    events: list[EventReport]
    cursor: str | None
    searched_until: dt.datetime | None = None


class RunCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of runs in an interval that begins ``at``.

    ``created`` counts runs created in the interval, the other fields runs that ended in it. ``replayed``: failed runs
    with a completed rerun.
    """

    at: dt.datetime
    created: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    replayed: int = 0

    @property
    def open_failures(self) -> int:
        """Failed runs without a completed rerun."""
        return max(self.failed - self.replayed, 0)


class FunctionLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The current load of a function, and its runs in the interval of a report.

    - ``backlog``: The number of calls that wait for a slot or for the app.
    - ``queue_delay``: Seconds that the oldest of them has waited.
    - ``in_flight``: The number of calls under way.
    - ``live``: The number of runs that have not ended.

    The first three are ``None`` on Temporal, which does not count them.
    """

    function_id: str
    backlog: int | None
    queue_delay: float | None
    in_flight: int | None
    live: int
    counts: list[RunCounts]


class ConcernKind(StrEnum):
    FAILING_FUNCTION = "failing function"
    UNMATCHED_EVENTS = "unmatched events"
    UNREACHED_APP = "unreached app"
    STUCK_KEY = "stuck concurrency key"
    PAUSED_FUNCTION = "paused function"


class Concern(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that needs attention.

    ``subject`` is the id of the function or app, or the event's name. ``message`` is a sentence with the remedy.
    """

    kind: ConcernKind
    subject: str
    message: str
    count: int
    since: dt.datetime | None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state.

    ``counts`` are for intervals of ``interval_seconds`` from ``since`` to ``until``. ``live`` has the number of runs
    for each status of runs that have not ended. ``retrying`` is how many of them have failed with their last attempt
    since the engine's start, and are tried again; ``None`` on Temporal.
    """

    since: dt.datetime
    until: dt.datetime
    interval_seconds: int
    counts: list[RunCounts]
    live: dict[RunStatus, int]
    functions: list[FunctionLoad]
    concerns: list[Concern]
    retrying: int | None = None


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of a step in seconds, over the function's last runs."""

    step: str
    count: int
    failed: int
    p50: float
    p95: float


class FunctionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A function and its load.

    Durations are seconds, over its last ``sampled`` ended runs.
    """

    function: FunctionView
    load: FunctionLoad
    steps: list[StepTimes]
    sampled: int
    p50: float | None
    p95: float | None


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """A sync of an app.

    ``error`` is the reason of a failed sync. The other fields are ids of functions.
    """

    at: dt.datetime
    error: str | None
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class AppReport(msgspec.Struct, frozen=True, kw_only=True):
    """An app, its last sync, and the error if it does not answer.

    ``unreached_since`` may be ``None`` then: the time is unknown.
    """

    app: AppView
    last_sync: SyncReport | None
    unreached_since: dt.datetime | None
    unreached_error: str | None


class ScheduleView(msgspec.Struct, frozen=True, kw_only=True):
    """A cron schedule of a function.

    ``next_ticks`` are the next scheduled times; ``last_runs`` the newest first.
    """

    function_id: str
    schedule: str
    next_ticks: list[dt.datetime]
    last_runs: list[RunLink]
    is_paused: bool


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


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of an engine.

    - ``notes``: Sentences on the limits of its lists.
    - ``unsupported``: See ``Engine.unsupported``.
    - ``ui_url``: The URL of the engine's own UI, if it has one and its address is configured.
    - ``run_url``: The URL of a run in that UI, with ``{run_id}``.
    """

    kind: str
    notes: list[str] = []
    unsupported: frozenset[str] = frozenset()
    ui_url: str | None = None
    run_url: str | None = None

    def offers(self, name: str) -> bool:
        """Whether the engine supports an operation, an argument or a value."""
        parts = name.split(".")
        return not any(".".join(parts[: count + 1]) in self.unsupported for count in range(len(parts)))


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The position up to which a client knows the engine's changes."""

    position: int
