"""Bodies of the engine's HTTP API, as its server writes them and its clients read them.

Official clients read the fields of the public ``/v1`` API (``docs/openapi`` of inngest/inngest). Lists of
runs, a run's steps, and ``rerun`` are Durably's own additions in the same manner. Moments are RFC 3339 text
in UTC; ids are text; ``output``, ``data`` and ``error`` are any JSON.
"""

import datetime as dt
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class Metadata(msgspec.Struct, kw_only=True):
    fetched_at: dt.datetime
    cached_until: dt.datetime | None = None


class Envelope(msgspec.Struct, Generic[T], kw_only=True):
    """What every ``/v1`` answer is wrapped in."""

    data: T
    metadata: Metadata


class ErrorBody(msgspec.Struct, kw_only=True):
    """Every answer of status 400 and above. ``status`` repeats the HTTP status."""

    error: str
    status: int
    code: str | None = None
    data: Any = None


class AppSyncBody(msgspec.Struct, kw_only=True):
    """Answer of ``POST /v1/apps/sync``: an app's functions, and which of them a sync added, changed and removed.

    ``version`` is the ``app_version`` of the app's client; ``previous_version`` that of the previous sync.
    ``previous_url`` is the app's URL before, if it has changed. ``warning`` reports another app with the same id.
    """

    app_id: str
    url: str
    modified: bool
    functions: list[str]
    added: list[str]
    changed: list[str]
    removed: list[str]
    version: str | None = None
    previous_version: str | None = None
    previous_url: str | None = None
    warning: str | None = None


class SendBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of ``POST /e/{key}``: the ids of the events in the order in which they were sent. ``unmatched`` is an
    addition of Durably's: names of events that match nothing, each with the reason."""

    ids: list[str]
    status: int
    error: str | None = None
    unmatched: dict[str, str] = {}


class EventBody(msgspec.Struct, kw_only=True):
    """An event as it was received. ``internal_id`` is its id in this API, ``id`` the one it was sent with.
    ``notes`` are sentences on what it did besides starting runs, and on why it started none; lists omit them."""

    internal_id: str
    id: str
    name: str
    data: Any
    ts: int
    received_at: dt.datetime
    user: Any = None
    v: str | None = None
    notes: list[str] = []


class RunBody(msgspec.Struct, kw_only=True):
    """A run. ``run_started_at`` is when it was scheduled; a failed run's ``output`` is its error."""

    run_id: str
    function_id: str
    app_id: str
    status: str
    run_started_at: dt.datetime
    ended_at: dt.datetime | None = None
    output: Any = None
    attempt: int = 0
    event_id: str | None = None
    event_ids: list[str] = []
    original_run_id: str | None = None


class MetadataBody(msgspec.Struct, kw_only=True):
    """Metadata of a run from an SDK: ``{target, metadata: [{kind, op, values}]}``."""

    received_at: dt.datetime
    body: Any


class TracesBody(msgspec.Struct, kw_only=True):
    """Spans that an SDK has exported. ``body`` is JSON or, of another content type, base64."""

    received_at: dt.datetime
    content_type: str
    body: Any


class StepBody(msgspec.Struct, kw_only=True):
    """A step of a run. ``id`` is as the user wrote it, ``hashed_id`` the one on the wire.

    ``memo`` is null while the step is under way, and then what apps get: ``{"data": …}``, ``{"error": …}``, an
    event, or null. ``error`` is why the last attempt failed, ``due_at`` when the next is made, a sleep ends or a
    wait times out.
    """

    id: str
    hashed_id: str
    op: str
    status: str
    attempts: int
    created_at: dt.datetime
    ended_at: dt.datetime | None = None
    due_at: dt.datetime | None = None
    memo: Any = None
    error: str | None = None


class AttemptBody(msgspec.Struct, kw_only=True):
    """An attempt that failed and was repeated. ``attempt`` counts from 0; ``step`` is the step's id as the user wrote
    it, null for the function's own code. ``error`` is ``"Name: message"``."""

    attempt: int
    ended_at: dt.datetime
    error: str
    step: str | None = None


class JobBody(msgspec.Struct, kw_only=True):
    """A call of a run, under way or due ``at`` a time; ``step_id`` is the hashed id of the step it targets."""

    id: str
    at: dt.datetime
    position: int
    kind: str
    attempt: int
    step_id: str
    step_name: str | None = None
    in_flight: bool = False
    error: str | None = None


class FunctionBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function of an app; ``config`` is what the app synced. A function that ``is_paused`` starts no runs."""

    id: str
    name: str
    config: Any
    app_id: str = ""
    is_paused: bool = False


class CancellationBody(msgspec.Struct, kw_only=True, rename={"expression": "if"}):
    """A bulk cancellation of runs created in a range of time; ``cancelled`` is how many it has cancelled so far of
    those that there were, all of them once there is an ``ended_at``."""

    id: str
    function_id: str
    started_before: dt.datetime
    created_at: dt.datetime
    started_after: dt.datetime | None = None
    expression: str | None = None
    ended_at: dt.datetime | None = None
    cancelled: int = 0


class ReplayBody(msgspec.Struct, kw_only=True, rename={"expression": "if"}):
    """A bulk replay of runs created in a range of time; ``replayed`` is how many were started again so far, all of them
    once there is an ``ended_at``."""

    id: str
    function_id: str
    started_before: dt.datetime
    created_at: dt.datetime
    started_after: dt.datetime | None = None
    expression: str | None = None
    statuses: list[str] = []
    ended_at: dt.datetime | None = None
    replayed: int = 0


class SignalBody(msgspec.Struct, kw_only=True):
    """Answer of ``POST /v1/signals``: the run that the signal woke."""

    run_id: str


class InvokeBody(msgspec.Struct, kw_only=True):
    """Answer of ``POST /invoke/{function}``: ``id`` is the event's, ``run_id`` the run that it started, null where flow
    control starts none, or not yet."""

    id: str
    run_id: str | None = None
    status: int = 200
