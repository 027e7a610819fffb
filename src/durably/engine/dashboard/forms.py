"""Reading of forms: JSON that a person typed, and times. Pure functions."""

import datetime as dt
from typing import Any

import msgspec

from durably.engine.views import EventView
from durably.protocol.durations import parse_rfc3339

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


def write_last(event: EventView) -> str:
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
