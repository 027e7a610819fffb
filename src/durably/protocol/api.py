"""Answers of the engine's HTTP API that are not results of operations.

They are the envelope, errors, syncs and sent events.

Official clients read the fields of the public ``/v1`` API (``docs/openapi`` of inngest/inngest). Results of operations
are in ``durably.engine.views``. Times are RFC 3339 strings in UTC; ids are strings; ``data`` is any JSON.
"""

import datetime as dt
from typing import Any, Generic, TypeVar

import msgspec

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
    - ``warning``: Reports another app with the same id.
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

    ``ids`` are the events' ids, in the order in which the events were sent. ``unmatched`` is an addition of Durably:
    names of events that match no trigger, each with the reason.
    """

    ids: list[str]
    status: int
    error: str | None = None
    unmatched: dict[str, str] = {}
