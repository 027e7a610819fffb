"""Values as text on pages and in forms, and text of forms as values. Pure.

Pages have durations, times, numbers, sizes and ids. Forms have JSON that a person typed, and times.
"""

import datetime as dt
import math
import re
from typing import Any

import msgspec

from durably.engine.model.runs import StoredEvent
from durably.protocol.durations import parse_rfc3339

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


_NAMED_RUN = re.compile(r"\bthe run ([0-9A-HJKMNP-TV-Z]{26})\b")


def split_run_ids(text: str) -> list[tuple[str, str | None]]:
    """Parts of a sentence that names runs, each with the id that follows it.

    The last part has none.
    """
    parts, end = list[tuple[str, str | None]](), 0
    for found in _NAMED_RUN.finditer(text):
        parts.append((text[end : found.start(1)], found[1]))
        end = found.end()
    return [*parts, (text[end:], None)]


_MOST_CHARACTERS = 20_000
"""Of the last event's data in a form; more of it would make the page slow."""


class FormError(ValueError):
    """A field of a form is not valid. The message is for the person."""


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text. Raises ``FormError``."""
    try:
        value = msgspec.json.decode(text.encode(errors="replace") or b"{}")
    except msgspec.DecodeError as error:
        raise FormError(f"The data is not valid JSON: {error}") from None
    except RecursionError:
        raise FormError("The data is nested too deeply.") from None
    if not isinstance(value, dict):
        raise FormError('The data must be a JSON object, such as {"id": 1}.')
    return value


def write_object(data: Any) -> str:
    """A value as indented JSON, for a form to begin with."""
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()


def write_last(event: StoredEvent) -> str:
    """An event's data for a form to begin with, without the engine's part.

    ``{}`` for a tick of a schedule, and for data of more than 20,000 characters.
    """
    data = event.data if isinstance(event.data, dict) else {}
    if event.name == "inngest/scheduled.timer":
        return "{}"
    text = write_object({name: value for name, value in data.items() if name != "_inngest"})
    return text if len(text) <= _MOST_CHARACTERS else "{}"


def read_time(name: str, text: str | None) -> dt.datetime | None:
    """A time in UTC, as a ``datetime-local`` field or RFC 3339 has it.

    Raises ``FormError``.
    """
    if text is None:
        return None
    if (time := parse_rfc3339(text)) is None:
        raise FormError(f"{name} must be a time like 2026-01-31T12:00, not {text[:40]!r}.")
    return time


def write_time(time: dt.datetime | None) -> str:
    """A time in UTC for a field of the type ``datetime-local``."""
    return "" if time is None else time.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="seconds")
