"""Times and values in few characters, for timelines and assertion messages."""

import datetime as dt
from typing import Any

import msgspec

from durably.protocol.text import printable

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_WIDTH = 100


def format_span(span: dt.timedelta) -> str:
    """``0s``, ``15s``, ``3d 4h 15s``, ``1s 500ms``: all of it, since on a virtual clock times are exact."""
    rest = round(span / dt.timedelta(milliseconds=1))
    parts = []
    for unit, length in _UNITS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def format_value(value: Any) -> str:
    return shorten(msgspec.json.encode(value).decode())


def shorten(text: str, width: int = _WIDTH) -> str:
    """One line of at most ``width`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"
