"""Strings of durations: like Go's, ``1h30m``, ``500ms``, also ``d`` and ``w``."""

import datetime as dt
import re

UNITS = {
    "ns": dt.timedelta(microseconds=0.001),
    "us": dt.timedelta(microseconds=1),
    "µs": dt.timedelta(microseconds=1),
    "μs": dt.timedelta(microseconds=1),
    "ms": dt.timedelta(milliseconds=1),
    "s": dt.timedelta(seconds=1),
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
    "w": dt.timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def read_duration(text: str) -> dt.timedelta | None:
    """Read a sequence of ``<number><unit>``. ``None`` for any other string.

    Raises ``OverflowError``.
    """
    stripped = text.strip()
    if stripped == "0":
        return dt.timedelta(0)
    if not _WHOLE.fullmatch(stripped):
        return None
    return sum((float(n) * UNITS[unit] for n, unit in _PART.findall(stripped)), dt.timedelta(0))
