"""Receiving events (spec §4.2.2) and reading those that were received."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from durably.engine.views import EventView
from durably.protocol.api import EventBody, SendBody
from durably.protocol.events import Event
from durably.protocol.headers import Header
from durably.protocol.limits import MAX_EVENTS_PER_POST

from .bodies import decode_json, header_parameter, id_suffix_parameter, limit_parameter, moment_parameter, read_body
from .responses import ApiError, data_response, json_response
from .runs import run_body
from .state import engine_of

DEFAULT_EVENTS = 20
_PORTION_BYTES = 256 * 1024
"""Events that are decoded at a time: about 2 ms."""
MAX_LISTED = 100


class PostedEvent(msgspec.Struct):
    """An event as peers send it: anything but the name may be absent or null."""

    name: str
    data: dict[str, Any] | None = None
    id: str | None = None
    ts: int | None = None
    user: Any = None
    v: str | None = None

    def to_event(self) -> Event:
        return Event(name=self.name, data=self.data or {}, id=self.id or "", ts=self.ts or 0, user=self.user, v=self.v)


_one = msgspec.json.Decoder(PostedEvent)
_many = msgspec.json.Decoder(list[PostedEvent])
_unread_many: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


async def receive_events(request: web.Request) -> web.Response:
    """``POST /e/{key}``: one event or a list of them, all or none of which are accepted."""
    engine = engine_of(request)
    events = await decode_events(await read_body(request), engine.max_event_bytes)
    receipt = await engine.accept_events(
        events, seed=header_parameter(request, Header.EVENT_ID_SEED), sender=header_parameter(request, Header.RUN_ID)
    )
    return json_response(SendBody(ids=receipt.ids, status=200, unmatched=receipt.unmatched))


async def decode_events(body: bytes, max_event_bytes: int) -> list[Event]:
    """Raises ``ApiError``: 400 for malformed or too many events, 413 for one that is too large."""
    if not body.lstrip().startswith(b"["):
        _check_size(body, max_event_bytes, "the event")
        return [decode_json(body, _one.decode).to_event()]
    if len(body) <= max_event_bytes:
        posted = decode_json(body, _many.decode)
    else:
        posted = await _decode_large(body, max_event_bytes)
    if len(posted) > MAX_EVENTS_PER_POST:
        raise ApiError(400, f"{len(posted)} events are too many for one request; send at most {MAX_EVENTS_PER_POST}")
    return [event.to_event() for event in posted]


async def _decode_large(body: bytes, max_event_bytes: int) -> list[PostedEvent]:
    """Many events. Between portions of them the event loop does other work."""
    unread = decode_json(body, _unread_many.decode)
    for index, raw in enumerate(unread):
        _check_size(bytes(raw), max_event_bytes, f"the event at index {index}")
    posted, size = [], 0
    for raw in unread:
        try:
            posted.append(_one.decode(raw))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return decode_json(body, _many.decode)  # raises the error with its place in the body
        size += len(bytes(raw))
        if size > _PORTION_BYTES:
            await asyncio.sleep(0)
            size = 0
    return posted


def _check_size(encoded: bytes, most: int, what: str) -> None:
    if len(encoded) > most:
        raise ApiError(413, f"{what} is {len(encoded)} bytes, more than the {most} that an event may have")


async def list_events(request: web.Request) -> web.Response:
    """``GET /v1/events``, newest first; ``cursor`` is the ``internal_id`` after which to go on."""
    events = await engine_of(request).list_events(
        name=request.query.get("name") or None,
        received_after=moment_parameter(request, "received_after"),
        received_before=moment_parameter(request, "received_before"),
        limit=limit_parameter(request, default=DEFAULT_EVENTS, most=MAX_LISTED),
        cursor=request.query.get("cursor") or None,
        id_suffix=id_suffix_parameter(request),
    )
    return data_response([event_body(event) for event in events])


def event_body(view: EventView) -> EventBody:
    event = view.event
    return EventBody(
        internal_id=view.id,
        id=event.id or view.id,
        name=event.name,
        data=event.data,
        ts=event.ts,
        received_at=view.received_at,
        user=event.user,
        v=event.v,
    )


async def get_event(request: web.Request) -> web.Response:
    """``GET /v1/events/{event_id}``."""
    event = await _find_event(request)
    body = event_body(event)
    body.notes = await engine_of(request).explain_event(event)
    return data_response(body)


async def list_event_runs(request: web.Request) -> web.Response:
    """``GET /v1/events/{event_id}/runs``: the runs that the event triggered."""
    event = await _find_event(request)
    runs = await engine_of(request).event_runs(event.id)
    return data_response([run_body(run) for run in runs])


async def _find_event(request: web.Request) -> EventView:
    event_id = request.match_info["event_id"]
    event = await engine_of(request).get_event(event_id)
    if event is None:
        raise ApiError(404, f"no event has the id {event_id!r}")
    return event
