"""Events as they are sent, stored and passed to functions (spec §1.3.4)."""

import datetime as dt
from collections.abc import Iterator, Mapping
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
    """

    name: str
    data: Data = None  # type: ignore[assignment]
    id: str = ""
    ts: int = 0
    user: Any = None
    v: str | None = None

    def __post_init__(self) -> None:
        if self.data is None:
            self.data = {}

    # As pydantic defines them for events of the ``inngest`` package.

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The fields as a dictionary, with ``user`` and ``v`` if they are set.

        Of pydantic's options ``mode``, ``exclude_none`` and ``by_alias`` change nothing. Others raise ``TypeError``.
        """
        unknown = [name for name in options if name not in ("mode", "exclude_none", "by_alias")]
        if unknown:
            raise TypeError(f"Event.model_dump does not take {', '.join(unknown)}")
        dumped = {"name": self.name, "data": dict(self.data), "id": self.id, "ts": self.ts}
        return dumped | {name: value for name in ("user", "v") if (value := getattr(self, name)) is not None}

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
