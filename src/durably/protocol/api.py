"""Answers of the engine's HTTP API that are not results of operations.

They are the envelope, errors, syncs and sent events.

Official clients read the fields of the public ``/v1`` API (``docs/openapi`` of inngest/inngest). Results of operations
are in ``durably.engine.views``. Times are RFC 3339 text in UTC; ids are text; ``data`` is any JSON.
"""

import datetime as dt
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
DEFAULT_PORT = 8288
"""The port of an engine, as of the official development server."""


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

    It lists an app's functions, and those that a sync added, changed and removed.

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
    """Answer of ``POST /e/{key}``.

    ``ids`` are those of the events, in the order in which they were sent. ``unmatched`` is an addition of Durably's:
    names of events that match nothing, each with the reason.
    """

    ids: list[str]
    status: int
    error: str | None = None
    unmatched: dict[str, str] = {}
