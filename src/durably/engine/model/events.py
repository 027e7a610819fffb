"""Events: their decoding, checks, names and ids, from senders and from the engine."""

import asyncio
import base64
import binascii
import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from ulid import ULID

from durably.engine.core.expressions import Equality, Expression
from durably.engine.core.run_state import Origin, RunStatus
from durably.protocol.call import NotUtf8Error, TooDeepError, check_nesting
from durably.protocol.engine_errors import EngineError, EventInvalidError, EventTooLargeError, JsonInvalidError
from durably.protocol.errors import ErrorData
from durably.protocol.events import INTERNAL_PREFIX, Event, InternalEvent, merge_sessions
from durably.protocol.limits import (
    MAX_DEV_EVENT_BYTES,
    MAX_EVENT_BYTES,
    MAX_EVENT_NAME_LENGTH,
    MAX_EVENTS_PER_POST,
    MAX_NESTING,
)
from durably.protocol.text import get_logger

_logger = get_logger("durably.engine")

_EARLIEST, _LATEST = 315_532_800_000, 4_102_444_800_000
"""1980 and 2100. A timestamp outside of them is in seconds or nanoseconds, or wrong."""

RUN_END_EVENTS = frozenset(
    {InternalEvent.FUNCTION_FINISHED, InternalEvent.FUNCTION_FAILED, InternalEvent.FUNCTION_CANCELLED}
)
_FINISHED = (InternalEvent.FUNCTION_FINISHED,)
_REPORTED: dict[RunStatus, tuple[InternalEvent, ...]] = {
    RunStatus.FAILED: (*_FINISHED, InternalEvent.FUNCTION_FAILED),
    RunStatus.CANCELLED: (*_FINISHED, InternalEvent.FUNCTION_CANCELLED),
}
"""The events about a run's end, by its status."""
_UNREPORTED: dict[str, frozenset[InternalEvent]] = {
    InternalEvent.FUNCTION_FINISHED: RUN_END_EVENTS,
    InternalEvent.FUNCTION_FAILED: RUN_END_EVENTS,
    InternalEvent.FUNCTION_CANCELLED: frozenset({InternalEvent.FUNCTION_CANCELLED}),
}
"""The events about a run's end that are not sent, by the name of its trigger.

Otherwise a run would trigger itself endlessly, or replace itself: a singleton that a cancelled run starts cancels the
one before it, all in one transaction.
"""


_RAISED = "invalid status code: 500"
"""The status text that official servers add to an app's own error."""


class ReceivedEvent(msgspec.Struct, eq=False, gc=False):
    """An event that is stored, or is being stored.

    ``body`` is JSON; ``decoded`` is its value, read at first use. ``origin`` describes the run that sent it, if any.
    ``traceparent`` is the trace context of its sender, if it has one.
    """

    id: str
    name: str
    body: bytes
    decoded: Mapping[str, Any] | None = None
    origin: Origin | None = None
    traceparent: str | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        decoded = self.decoded
        if decoded is None:
            decoded = self.decoded = msgspec.json.decode(self.body, type=dict[str, Any])
        return decoded


class CheckedEvent(msgspec.Struct, frozen=True):
    """A valid event.

    ``data`` is its data as JSON, so that the writer's thread need not encode it.
    """

    event: Event
    data: bytes


def check_event(event: Event, max_bytes: int, *, is_internal: bool = False) -> CheckedEvent:
    """Check an event, and encode its data.

    ``is_internal``: the event starts a function, which the caller's error names. Raises ``EventInvalidError``,
    ``EventTooLargeError``.
    """
    name = event.name
    if not name or not name.strip():
        raise EventInvalidError("an event has no name")
    if len(name) > MAX_EVENT_NAME_LENGTH:
        raise EventInvalidError(
            f"the event name {name[:40]!r}… has {len(name)} characters; at most {MAX_EVENT_NAME_LENGTH} are allowed"
        )
    if name.startswith(INTERNAL_PREFIX) and not is_internal:
        raise EventInvalidError(
            f"the event name {name!r} begins with {INTERNAL_PREFIX!r}, which is reserved for the engine's own events"
        )
    if event.ts and not _EARLIEST <= event.ts <= _LATEST:
        raise EventInvalidError(
            f"event {event.name!r} has the timestamp {event.ts}; it must be milliseconds since the epoch, between the "
            "years 1980 and 2100"
        )
    what = "its data" if is_internal else f"event {name!r}"
    try:
        data = msgspec.json.encode(event.data or {})
        encoded = msgspec.json.encode(msgspec.structs.replace(event, data=msgspec.Raw(data)))
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise EventInvalidError(f"{what} is not JSON: {error}") from error
    if len(encoded) > max_bytes:
        raise _too_large(encoded, max_bytes, what)
    try:
        merge_sessions(event.meta)
    except ValueError as error:
        raise EventInvalidError(f"{what}: {error}") from None
    if max_bytes == MAX_DEV_EVENT_BYTES and len(encoded) > MAX_EVENT_BYTES:
        _logger.warning(
            "%s is %d bytes. This development server accepts it; in production an event may have %d, or "
            "EngineSettings(max_event_bytes=…)",
            *(what, len(encoded), MAX_EVENT_BYTES),
        )
    return CheckedEvent(event, data)


def make_received_event(
    event: Event,
    event_id: str,
    now: int,
    origin: Origin | None = None,
    data: bytes | None = None,
    traceparent: str | None = None,
) -> ReceivedEvent:
    """The event as functions receive it: with an id, a time and a user.

    Its form is that of official servers. ``data`` is the event's data as JSON, if already encoded.
    """
    fields: dict[str, Any] = {
        "data": event.data or {},
        "id": event.id or event_id,
        "name": event.name,
        "ts": event.ts or now,
        "user": event.user if event.user is not None else {},
    }
    if event.v:
        fields["v"] = event.v
    if sessions := merge_sessions(event.meta):
        fields["meta"] = {"sessions": sessions}
    encoded = fields if data is None else {**fields, "data": msgspec.Raw(data)}
    return ReceivedEvent(event_id, event.name, msgspec.json.encode(encoded), fields, origin, traceparent)


def invocation_event(payload: Mapping[str, Any]) -> Event:
    """The event of an app's invocation, without optional parts of a wrong type."""
    version, user, meta = payload.get("v"), payload.get("user"), payload.get("meta")
    return Event(
        name=InternalEvent.FUNCTION_INVOKED,
        data=payload.get("data") or {},
        user=user,
        v=version if isinstance(version, str) else None,
        meta=meta if isinstance(meta, dict) else None,
    )


class RunResult(msgspec.Struct, frozen=True):
    run_id: str
    function_id: str
    status: RunStatus
    output: bytes


def run_end_events(end: RunResult, triggers: Sequence[ReceivedEvent]) -> list[tuple[InternalEvent, bytes]]:
    """Names and data of the events about a run's end.

    A batch has several ``triggers``.
    """
    trigger = triggers[0]
    unreported = _UNREPORTED.get(trigger.name, ())
    names = [name for name in _REPORTED.get(end.status, _FINISHED) if name not in unreported]
    if not names:
        return []
    failed = end.status != RunStatus.COMPLETED
    data = {
        "_inngest": {"status": end.status},
        "error" if failed else "result": _reported_error(end.output) if failed else msgspec.Raw(end.output),
        "event": msgspec.Raw(trigger.body),
        "events": [msgspec.Raw(one.body) for one in triggers],
        "function_id": end.function_id,
        "run_id": end.run_id,
    }
    if trigger.name == InternalEvent.FUNCTION_INVOKED and (correlation := _correlation_of(trigger)) is not None:
        data["correlation_id"] = correlation
    encoded = msgspec.json.encode(data)
    return [(name, encoded) for name in names]


def _reported_error(output: bytes) -> dict[str, Any] | msgspec.Raw:
    """The error in the form of official servers.

    ``error`` states how the call ended, and there is no ``code``.
    """
    try:
        error = msgspec.json.decode(output, type=ErrorData)
    except msgspec.MsgspecError:  # the JSON that the app wrote
        return msgspec.Raw(output)
    was_raised = error.code is not None or error.stack is not None
    reported: dict[str, Any] = {
        "error": _RAISED if was_raised else error.message or "",
        "name": error.name or "Error",
        "message": error.message or "",
    }
    optional = (("stack", error.stack), ("cause", error.cause), ("data", error.data))
    return reported | {name: value for name, value in optional if value is not None}


def deferred_data(data: bytes, function_id: str, parent_id: str, parent_function_id: str) -> bytes:
    """The data of the event that starts a deferred function.

    The form is that of official servers.
    """
    parent = {"fn_slug": function_id, "parent_fn_slug": parent_function_id, "parent_run_id": parent_id}
    return msgspec.json.encode({**msgspec.json.decode(data), "_inngest": parent})


def _correlation_of(trigger: ReceivedEvent) -> str | None:
    metadata = trigger.fields["data"].get("_inngest")
    return metadata.get("correlation_id") if isinstance(metadata, dict) else None


def make_internal_event(
    name: InternalEvent,
    data: bytes,
    event_id: str,
    now: int,
    origin: Origin | None = None,
    traceparent: str | None = None,
    sessions: Mapping[str, str] | None = None,
) -> ReceivedEvent:
    """One of the engine's own events. ``data`` is JSON."""
    fields: dict[str, Any] = {"data": msgspec.Raw(data), "id": event_id, "name": name.value, "ts": now, "user": {}}
    if sessions:
        fields["meta"] = {"sessions": sessions}
    return ReceivedEvent(event_id, name, msgspec.json.encode(fields), origin=origin, traceparent=traceparent)


def tick_data(cron: str, at: int, due: int) -> bytes:
    """The data of the event of a cron tick, scheduled ``at``, fired at ``due``."""
    return msgspec.json.encode({"cron": cron, "fireAt": _to_text(due), "scheduledAt": _to_text(at)})


def _to_text(time: int) -> str:
    return dt.datetime.fromtimestamp(time / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ENTROPY_BYTES = 10
Entropy = Callable[[int], bytes]
"""Returns that many random bytes; in tests, reproducible ones."""
_COUNTER_BYTES = 4
_MAX_MILLISECONDS = 2**48 - 1


def make_id(milliseconds: int, entropy: Entropy) -> str:
    """A ULID. Ids sort by their time."""
    return str(ULID.from_bytes(milliseconds.to_bytes(6) + entropy(ENTROPY_BYTES)))


class IdSeed:
    """The value of ``x-inngest-event-id-seed``.

    Its form is ``<milliseconds>,<base64 of 10 bytes>``. The n-th event of a request adds n to the last four bytes, so
    that one seed makes many ids.
    """

    def __init__(self, text: str) -> None:
        """Parse the seed. Raises ``EventInvalidError``."""
        milliseconds, _, encoded = text.partition(",")
        try:
            self._milliseconds = int(milliseconds)
            self._entropy = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            self._entropy = b""
        if len(self._entropy) != ENTROPY_BYTES or not 0 < self._milliseconds <= _MAX_MILLISECONDS:
            raise EventInvalidError(
                "the event id seed is malformed; it must be <milliseconds since the epoch>,<base64 of 10 bytes>"
            )

    def id_of(self, index: int) -> str:
        first, last = self._entropy[:-_COUNTER_BYTES], self._entropy[-_COUNTER_BYTES:]
        counter = (int.from_bytes(last) + index) % 2 ** (8 * _COUNTER_BYTES)
        return make_id(self._milliseconds, lambda _: first + counter.to_bytes(_COUNTER_BYTES))


_path_decoder = msgspec.json.Decoder(tuple[str | int, ...])


def index_key(expression: Expression | None, trigger: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The path in a new event, and the value that the wait requires there, as stored.

    Both are ``None`` if the expression requires none. ``trigger`` is the event of the waiting run.
    """
    equality = None if expression is None else _most_selective(expression.equalities())
    if equality is None:
        return None, None
    return msgspec.json.encode(equality.async_path).decode(), equality.wanted_key(trigger)


def value_at(path: str | None, later: Mapping[str, Any]) -> str | None:
    """The value that an event has at a path that ``index_key`` returned."""
    return None if path is None else Equality(_path_decoder.decode(path)).found_key(later)


def _most_selective(equalities: list[Equality]) -> Equality | None:
    """The equality that leaves the fewest waits.

    One with the trigger's own data leaves fewer than one with a constant.
    """
    with_trigger = (equality for equality in equalities if equality.event_path is not None)
    return next(with_trigger, None) or next(iter(equalities), None)


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
    meta: Any = None

    def to_event(self) -> Event:
        return Event(
            name=self.name,
            data=self.data or {},
            id=self.id or "",
            ts=self.ts or 0,
            user=self.user,
            v=self.v,
            meta=self.meta,
        )


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
    return EventTooLargeError(
        f"{what} is {len(encoded)} bytes, more than the {most} that an event may have: send less, and where the rest "
        "is stored, or raise the engine's limit (EngineSettings(max_event_bytes=…), durably start --max-event-bytes)"
    )


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
