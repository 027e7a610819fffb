"""Durations and timestamps of the wire (spec §1.3.2).

A duration is a string like Go's: ``1h30m``, ``500ms``, also ``d`` and ``w``. A timestamp is RFC 3339.
``parse_timestamp`` accepts either, as parts of the protocol do.
"""

import datetime as dt
import re

from .errors import Error, ErrorCode
from .text import UNITS, read_duration

_MILLISECOND = dt.timedelta(milliseconds=1)
_FORMAT_UNITS = tuple((unit, UNITS[unit]) for unit in ("w", "d", "h", "m", "s"))

Duration = int | str | dt.timedelta
"""A duration as users write it: a string like ``"1h30m"`` or ``"3d"``, a ``timedelta``, or milliseconds."""
DurationWithUnit = str | dt.timedelta
"""A duration in the calls of a web app, which has seconds in mind: a bare number is refused."""


class DurationInvalidError(Error, ValueError):
    code = ErrorCode.DURATION_INVALID
    is_retriable = False


def to_timedelta(value: Duration, setting: str | None = None) -> dt.timedelta:
    """A user's duration as a ``timedelta``.

    Raises ``DurationInvalidError`` for other types (``bool`` included) and for negative values. Its message begins with
    ``setting``, if that is given.
    """
    try:
        return _to_timedelta(value)
    except DurationInvalidError as error:
        if setting is None:
            raise
        raise DurationInvalidError(f"{setting}: {error}") from None


def to_seconds(value: DurationWithUnit, setting: str) -> float:
    """A user's duration in seconds. Raises ``DurationInvalidError`` as ``to_timedelta`` does, and for numbers."""
    if not isinstance(value, str | dt.timedelta):
        raise DurationInvalidError(
            f'{setting}: a duration has a unit, as "10s" and datetime.timedelta(seconds=10) have; {value!r} has none'
        )
    return to_timedelta(value, setting).total_seconds()


def _to_timedelta(value: Duration) -> dt.timedelta:
    if isinstance(value, bool) or not isinstance(value, int | str | dt.timedelta):
        raise DurationInvalidError(
            f'a duration is a string like "1h30m", a datetime.timedelta, or a number of milliseconds (int), not '
            f"{value!r}"
        )
    if isinstance(value, str):
        return parse_duration(value)
    try:
        delta = dt.timedelta(milliseconds=value) if isinstance(value, int) else value
    except OverflowError:
        raise DurationInvalidError(f"the duration of {value} ms is too long") from None
    if delta < dt.timedelta(0):
        raise DurationInvalidError(f"a duration cannot be negative: {value!r}")
    return delta


def format_duration(value: Duration) -> str:
    """A string in the largest unit that divides the duration exactly.

    The smallest unit is a millisecond: ``90s``, ``1500ms``. Fractions of a millisecond are rounded up, so that no
    duration ends early.
    """
    delta = to_timedelta(value)
    milliseconds = -(-delta // _MILLISECOND)
    if milliseconds == 0:
        return "0s"
    exact = dt.timedelta(milliseconds=milliseconds)
    for unit, length in _FORMAT_UNITS:
        if not exact % length:
            return f"{exact // length}{unit}"
    return f"{milliseconds}ms"


def parse_duration(text: str) -> dt.timedelta:
    """Parse the string of a duration.

    Raises ``DurationInvalidError`` for a string that is not a sequence of ``<number><unit>``, or that means too long a
    duration.
    """
    try:
        duration = read_duration(text)
    except OverflowError:
        raise DurationInvalidError(f"the duration {text!r} is too long") from None
    if duration is None:
        raise DurationInvalidError(f"invalid duration {text!r}: write it like 30s, 1h30m, 500ms, 7d or 2w")
    return duration


def format_timestamp(timestamp: dt.datetime) -> str:
    """RFC 3339 in UTC with milliseconds.

    A naive ``datetime`` is local time, as everywhere in Python.
    """
    utc = timestamp.astimezone(dt.UTC)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> dt.datetime | None:
    """The timestamp, in UTC if it has no offset; ``None`` for other strings."""
    try:
        timestamp = dt.datetime.fromisoformat(text.strip())
        return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None


def parse_timestamp(text: str, now: dt.datetime) -> dt.datetime:
    """Parse a time of the wire: a duration from ``now``, or an RFC 3339 timestamp.

    Raises ``DurationInvalidError``.
    """
    if len(text) >= 10 and (timestamp := parse_rfc3339(text)):
        return timestamp
    try:
        return now + parse_duration(text)
    except OverflowError:
        raise DurationInvalidError(f"the duration {text!r} is too long") from None


def parse_retry_after(text: str, now: dt.datetime) -> dt.datetime | None:
    """Read the ``retry-after`` header: seconds, RFC 3339, or an HTTP date.

    ``None`` for any other string.
    """
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text, re.ASCII):
        return now + dt.timedelta(seconds=float(text))
    if timestamp := parse_rfc3339(text):
        return timestamp
    import email.utils  # not at each start: most answers have seconds

    try:
        return email.utils.parsedate_to_datetime(text).astimezone(dt.UTC)
    except (ValueError, TypeError, OverflowError):
        return None
