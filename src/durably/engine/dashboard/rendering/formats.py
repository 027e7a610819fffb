"""Text of durations, times, numbers, sizes and ids on pages. Pure functions."""

import datetime as dt
import math

_SHORT_ID = 6
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))
_SIZES = ("kB", "MB", "GB")


def format_duration(seconds: float) -> str:
    """A duration with two or three significant digits.

    ``3 ms``, ``1.24 s``, ``4m 10s``, ``2d 3h``.
    """
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = list[str]()
    for unit, length in _UNITS:
        count, whole = divmod(whole, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    parts.append(f"{whole}s")
    return " ".join([each for each in parts[:2] if not each.startswith("0")])


def format_utc(time: dt.datetime) -> str:
    """A time for people, in UTC."""
    return time.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_exact(time: dt.datetime) -> str:
    """A time to the millisecond, in UTC."""
    utc = time.astimezone(dt.UTC)
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d} UTC"


def format_iso(time: dt.datetime) -> str:
    """A time for machines: RFC 3339 in UTC to the millisecond."""
    return time.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_count(number: float) -> str:
    """A number with separators between thousands."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"


def format_size(size: int) -> str:
    """A number of bytes: ``812 B``, ``4.2 kB``."""
    if size < 1000:
        return f"{size} B"
    power = min(int(math.log10(size)) // 3, len(_SIZES))
    shown = size / 1000**power
    return f"{shown:.1f} {_SIZES[power - 1]}" if shown < 99.95 else f"{shown:.0f} {_SIZES[power - 1]}"


def format_share(part: int, whole: int) -> str:
    """A share in percent; ``–`` of nothing."""
    if not whole:
        return "–"
    share = 100 * part / whole
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"


def short_id(id: str) -> str:
    """The end of an id, in which ids differ."""
    return id[-_SHORT_ID:]
