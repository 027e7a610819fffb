"""Decoding of received JSON.

Errors name line and column of malformed JSON, or the path of a wrong value.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from durably.protocol.call import NotUtf8Error, TooDeepError, check_nesting
from durably.protocol.engine_errors import EngineError, EventInvalidError, EventTooLargeError, JsonInvalidError
from durably.protocol.events import Event
from durably.protocol.limits import MAX_EVENTS_PER_POST, MAX_NESTING

T = TypeVar("T")
_BYTE = re.compile(r"^(?:JSON is malformed: )?(.*) \(byte (\d+)\)$")
_PORTION_BYTES = 256 * 1024
"""Number of events that are decoded at a time, which takes about 2 ms."""


class _LenientEvent(msgspec.Struct):
    """An event as other SDKs send it: any field but the name may be null."""

    name: str
    data: dict[str, Any] | None = None
    id: str | None = None
    ts: int | None = None
    user: Any = None
    v: str | None = None

    def to_event(self) -> Event:
        return Event(name=self.name, data=self.data or {}, id=self.id or "", ts=self.ts or 0, user=self.user, v=self.v)


_event = msgspec.json.Decoder(Event)
_lenient_event = msgspec.json.Decoder(_LenientEvent)
_lenient_events = msgspec.json.Decoder(list[_LenientEvent])
_raw_events: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


async def decode_events(body: bytes, max_event_bytes: int) -> list[Event]:
    """Decode one event or a list of events.

    Raises ``EventInvalidError`` for malformed or too many events, ``EventTooLargeError``.
    """
    if not body.lstrip().startswith(b"["):
        if len(body) > max_event_bytes:
            raise _too_large(body, max_event_bytes, "the event")
        try:
            check_nesting(body)
            return [_event.decode(body)]
        except (ValueError, RecursionError):
            return [decode_json(body, _lenient_event.decode, EventInvalidError).to_event()]
    if len(body) <= max_event_bytes:
        events = [each.to_event() for each in decode_json(body, _lenient_events.decode, EventInvalidError)]
    else:
        events = await _decode_large(body, max_event_bytes)
    if len(events) > MAX_EVENTS_PER_POST:
        raise EventInvalidError(
            f"{len(events)} events are too many for one request; send at most {MAX_EVENTS_PER_POST}"
        )
    return events


async def _decode_large(body: bytes, max_event_bytes: int) -> list[Event]:
    """Decode many events, and let the event loop do other work between portions."""
    unread = decode_json(body, _raw_events.decode, EventInvalidError)
    for index, raw in enumerate(unread):
        if len(bytes(raw)) > max_event_bytes:
            raise _too_large(bytes(raw), max_event_bytes, f"the event at index {index}")
    events, size = [], 0
    for raw in unread:
        try:
            events.append(_lenient_event.decode(raw).to_event())
        except (ValueError, RecursionError):
            decode_json(
                body, _lenient_events.decode, EventInvalidError
            )  # raises the error with its position in the body
        size += len(bytes(raw))
        if size > _PORTION_BYTES:
            await asyncio.sleep(0)
            size = 0
    return events


def _too_large(encoded: bytes, most: int, what: str) -> EventTooLargeError:
    return EventTooLargeError(f"{what} is {len(encoded)} bytes, more than the {most} that an event may have")


def decode_json(body: bytes, decode: Callable[[bytes], T], kind: type[EngineError] = JsonInvalidError) -> T:
    """Decode JSON.

    Raises an error of ``kind`` that names line and column of malformed JSON, or the path of a wrong value.
    """
    try:
        check_nesting(body)
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise kind(explain_json_error(body, error)) from None


def explain_json_error(body: bytes, error: Exception) -> str:
    """Explain the error of a body from its decoder's error."""
    match error:
        case msgspec.ValidationError():
            return f"the body has the wrong shape: {error}"
        case NotUtf8Error() | UnicodeDecodeError():
            return "the body is not valid JSON: it is not encoded in UTF-8"
        case TooDeepError() | RecursionError():
            return f"the body is nested too deeply: at most {MAX_NESTING} levels are allowed"
    return describe_malformed(body, str(error))


def describe_malformed(body: bytes, fault: str) -> str:
    """The message of an error for malformed JSON, with line and column, from 1.

    ``fault`` is msgspec's message, which counts bytes.
    """
    if not body.strip():
        return "the body is empty; send JSON"
    if found := _BYTE.match(fault):
        reason, offset = found[1], int(found[2])
    else:
        reason, offset = "it ends too early", len(body)
    before = body[:offset].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return f"the body is not valid JSON: {reason} at line {line}, column {column}"
