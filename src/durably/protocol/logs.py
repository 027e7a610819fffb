"""Lines of ``ctx.logger``, as apps in development hand them to their engine."""

import datetime as dt

import msgspec


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``ctx.logger``.

    ``level`` is a level's name, such as ``"INFO"``. ``step`` is the step's id as the user wrote it, if its handler
    logged. ``attempt`` counts from 0.
    """

    at: dt.datetime
    level: str
    message: str
    step: str | None = None
    attempt: int | None = None
