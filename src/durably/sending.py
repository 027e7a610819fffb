"""Sending events to an engine: one request, repeated with backoff until it is answered for good."""

import base64
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from durably.errors import EventKeyUnspecifiedError, SendEventsError, TransportError
from durably.events import as_data
from durably.middleware import MiddlewareStack, SendEventsResult
from durably.protocol.events import Event
from durably.protocol.headers import Header, ServerKind
from durably.transport import IO, Request, Response

if TYPE_CHECKING:
    from durably.client import Client

MAX_ATTEMPTS = 5
_BASE_DELAY = 0.1
_DEV_EVENT_KEY = "NO_EVENT_KEY_SET"


class _Answer(msgspec.Struct):
    ids: list[str] | None = None
    error: str | None = None
    status: int | None = None


async def send_events(
    client: "Client", events: Event | Sequence[Event], io: IO, middleware: MiddlewareStack | None
) -> list[str]:
    """Send and return the events' ids, in the events' order.

    Network errors and 5xx are repeated, all attempts with one event-id seed, so that the engine takes the
    events once however often they arrive. Raises ``SendEventsError``, ``EventKeyUnspecifiedError``.
    """
    batch = list(events) if isinstance(events, Sequence) else [events]
    if middleware is None:
        return await _send(client, batch, io)
    await middleware.call("before_send_events", batch)
    result = SendEventsResult()
    try:
        result.ids = await _send(client, batch, io)
        return result.ids
    except SendEventsError as error:
        result.ids, result.error = error.ids, str(error)
        raise
    except Exception as error:
        result.error = str(error)
        raise
    finally:
        await middleware.call("after_send_events", result)


async def _send(client: "Client", events: list[Event], io: IO) -> list[str]:
    if not events:
        return []
    request = _build_request(client, events)
    last_error = "no answer"
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            await io.sleep(_BASE_DELAY * 2 ** (attempt - 1) + random.random() * _BASE_DELAY)
        try:
            response = await io.request(request)
        except TransportError as error:
            last_error = str(error)
            continue
        if response.status < 500:
            return _ids_of(response)
        last_error = _decode(response).error or f"the engine answered {response.status}"
    raise SendEventsError(f"events not sent after {MAX_ATTEMPTS} attempts: {last_error}", [])


def _build_request(client: "Client", events: list[Event]) -> Request:
    key = client.event_key
    if not key:
        if client.mode is not ServerKind.DEV:
            raise EventKeyUnspecifiedError
        key = _DEV_EVENT_KEY
    headers = client.headers()
    headers[Header.EVENT_ID_SEED.value] = _seed()
    try:
        body = msgspec.json.encode([_to_wire(event) for event in events])
    except (TypeError, OverflowError) as error:
        raise SendEventsError(f"an event's data cannot be expressed in JSON: {error}", []) from None
    url = f"{client.event_api_origin}/e/{quote(key, safe='')}"
    return Request("POST", url, headers, body, client.request_timeout)


def _to_wire(event: Event) -> Mapping[str, Any]:
    if not isinstance(event, Event):
        raise SendEventsError(f"events are durably.Event objects, not {type(event).__name__}", [])
    wire = {"name": event.name, "data": as_data(event.data), "ts": event.ts or time.time_ns() // 1_000_000}
    optional = {"id": event.id, "user": event.user, "v": event.v}
    return wire | {name: value for name, value in optional.items() if value}


def _ids_of(response: Response) -> list[str]:
    answer = _decode(response)
    ids = answer.ids or []
    if answer.error or response.status >= 300:
        raise SendEventsError(answer.error or f"the engine answered {response.status}", ids)
    return ids


def _decode(response: Response) -> _Answer:
    try:
        return msgspec.json.decode(response.body, type=_Answer)
    except msgspec.MsgspecError:
        return _Answer(error=f"the engine answered {response.status} with something else than JSON")


def _seed() -> str:
    """``<ms>,<base64 of ten random bytes>``; the engine adds each event's index to its last four bytes."""
    entropy = bytearray(secrets.token_bytes(10))
    entropy[6] &= 0x7F  # leaves room to add
    return f"{time.time_ns() // 1_000_000},{base64.b64encode(bytes(entropy)).decode()}"
