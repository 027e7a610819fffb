"""Events as they are sent, stored and passed to functions (spec §1.3.4)."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    Data = Mapping[str, Any]
else:
    Data = Mapping[str, Any] | None
    """Reads the null that peers send for no data as an empty mapping."""


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something that happened.

    - ``name``: Triggers match it.
    - ``data``: Any JSON object.
    - ``id``: Makes sending idempotent for 24 hours. The engine sets it if it is empty.
    - ``ts``: Milliseconds since the epoch; 0 until it is sent.
    - ``user``, ``v``: Passed on unchanged.
    - ``meta``: ``{"sessions": {name: id}}`` names at most five sessions that the event belongs to, such as a
      conversation. Events that a run sends, invokes or defers inherit its sessions, unless they give another id, or
      ``None``, for the name.
    """

    name: str
    data: Data = None  # type: ignore[assignment]
    id: str = ""
    ts: int = 0
    user: Any = None
    v: str | None = None
    meta: Any = None

    def __post_init__(self) -> None:
        if self.data is None:
            self.data = {}

    # As pydantic defines them for events of the ``inngest`` package.

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The fields as a dictionary, with ``user``, ``v`` and ``meta`` if they are set.

        Of pydantic's options ``mode``, ``exclude_none`` and ``by_alias`` change nothing. Others raise ``TypeError``.
        """
        unknown = [name for name in options if name not in ("mode", "exclude_none", "by_alias")]
        if unknown:
            raise TypeError(f"Event.model_dump does not take {', '.join(unknown)}")
        dumped = {"name": self.name, "data": dict(self.data), "id": self.id, "ts": self.ts}
        return dumped | {name: value for name in ("user", "v", "meta") if (value := getattr(self, name)) is not None}

    def model_dump_json(self) -> str:
        """The fields as a JSON string."""
        return msgspec.json.encode(self.model_dump()).decode()

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """An event from a dictionary. Raises ``msgspec.ValidationError``."""
        return obj if isinstance(obj, cls) else msgspec.convert(obj, cls)

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy, with other values for some fields."""
        return msgspec.structs.replace(self, **(update or {}))


MAX_SESSIONS = 5


def shared_sessions(events: Sequence[Event]) -> dict[str, str]:
    """The sessions that a run passes on: those that all of its events have, with the same id."""
    first, *others = ({name: str(value) for name, value in _sessions_of(event).items()} for event in events)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _sessions_of(event: Event) -> Mapping[str, Any]:
    sessions = event.meta.get("sessions") if isinstance(event.meta, Mapping) else None
    return sessions if isinstance(sessions, Mapping) else {}


def inherit_sessions(meta: Any, sessions: Mapping[str, str]) -> Any:
    """The ``meta`` of an event that a run sends. The engine merges its two kinds of sessions."""
    if not sessions or (isinstance(meta, Mapping) and "propagated_sessions" in meta):
        return meta
    return {**(meta or {}), "propagated_sessions": dict(sessions)}


def merge_sessions(meta: Any) -> dict[str, str]:
    """The sessions of an event: those of the run that sent it, changed by the event's own.

    A ``null`` among its own removes one of the run's, or all of them. Raises ``ValueError``.
    """
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise ValueError(f"its meta is an object, not {meta!r}")
    merged: dict[str, str] = {}
    for layer in ("propagated_sessions", "sessions"):
        sessions = meta.get(layer, {})
        if sessions is None:
            merged.clear()
            continue
        if not isinstance(sessions, Mapping):
            raise ValueError(f"meta.{layer} is an object of names and ids, not {sessions!r}")
        for name, value in sessions.items():
            if value is None:
                merged.pop(name, None)
            elif not name or isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
                raise ValueError(f"meta.{layer} has {value!r} for {name!r}: give a name and an id, text or a number")
            else:
                merged[name] = str(value)
    if len(merged) > MAX_SESSIONS:
        raise ValueError(f"it belongs to {len(merged)} sessions; at most {MAX_SESSIONS} are allowed")
    return merged


def patterns_of(name: str) -> Iterator[str]:
    """The trigger names that match an event's name.

    They are the name itself, and ``a/*``, ``a/b.*`` for each of its prefixes that ends in a slash or a dot.
    """
    yield name
    for index, character in enumerate(name):
        if character in "/.":
            yield f"{name[: index + 1]}*"


class EventReceipt(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """An engine's answer to stored events.

    ``ids`` are in the events' order. ``unmatched`` has the names of events that match no trigger, each with the reason.
    """

    ids: list[str]
    unmatched: dict[str, str] = {}


INTERNAL_PREFIX = "inngest/"
"""The prefix of the names in ``InternalEvent``, which apps may not send."""


class RunStatus(StrEnum):
    """The status of a run."""

    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    SKIPPED = "Skipped"

    @classmethod
    def read(cls, name: str) -> "RunStatus":
        """The status of a name in any case. Raises ``ValueError``."""
        try:
            return cls(name.capitalize())
        except ValueError:
            raise ValueError(f"the status of a run is one of {', '.join(cls)}, not {name!r}") from None

    @property
    def has_ended(self) -> bool:
        return self not in (RunStatus.SCHEDULED, RunStatus.RUNNING)


class InternalEvent(StrEnum):
    """Events that engines themselves send."""

    FUNCTION_FAILED = "inngest/function.failed"
    FUNCTION_FINISHED = "inngest/function.finished"
    FUNCTION_CANCELLED = "inngest/function.cancelled"
    FUNCTION_INVOKED = "inngest/function.invoked"
    SCHEDULED_TIMER = "inngest/scheduled.timer"
    DEFERRED_SCHEDULE = "inngest/deferred.schedule"


T = TypeVar("T")
DEFAULT_PORT = 8288
"""The port of an engine, the same as that of the official development server."""


class Metadata(msgspec.Struct, kw_only=True):
    fetched_at: dt.datetime
    cached_until: dt.datetime | None = None


class Envelope(msgspec.Struct, Generic[T], kw_only=True):
    """The object that wraps every ``/v1`` answer."""

    data: T
    metadata: Metadata


class ErrorBody(msgspec.Struct, kw_only=True):
    """Every answer of status 400 and above. ``status`` repeats the HTTP status."""

    error: str
    status: int
    code: str | None = None
    data: Any = None


class AppSyncBody(msgspec.Struct, kw_only=True):
    """Answer of ``POST /v1/apps/sync``.

    It lists an app's functions, and the functions that a sync added, changed and removed.

    - ``version``: The ``app_version`` of the app's client.
    - ``previous_version``: The version of the previous sync.
    - ``previous_url``: The app's former URL, if it has changed.
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


class SendBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of ``POST /e/{key}``.

    ``ids`` are the events' ids, in the order in which the events were sent. ``unmatched`` is an addition of Durably:
    names of events that match no trigger, each with the reason.
    """

    ids: list[str]
    status: int
    error: str | None = None
    unmatched: dict[str, str] = {}
