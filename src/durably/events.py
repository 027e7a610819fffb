"""Events: types of events, and sending events to an engine.

A type of events has a model of their data. Events are sent in one request, which is repeated with backoff until its
answer is final. Sends of one event loop that would overlap share a request.
"""

import asyncio
import base64
import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import msgspec

from durably.functions.diagnostics import find_unserved, is_triggered_by, warn_of_unserved
from durably.functions.middleware import MiddlewareStack, SendEventsResult
from durably.io.http_client import IO, AsyncIO, Request, Response
from durably.protocol.engine_errors import EventInvalidError, EventTooLargeError
from durably.protocol.events import Event
from durably.protocol.headers import Header, ServerKind, trace_headers
from durably.protocol.options import TriggerEvent
from durably.protocol.text import printable
from durably.values.json_values import encode_checked

from .app import App
from .errors import Error, EventKeyUnspecifiedError, EventUnserializableError, SendEventsError, TransportError

_ENGINES_FIELD = "_inngest"

__all__ = ["Event", "EventType", "as_data"]


class Model(Protocol):
    """The methods of a pydantic model that are used. Durably does not import pydantic."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


M = TypeVar("M", bound=Model)


class EventType(Generic[M]):
    """An event name with the pydantic model of its data.

    Senders and functions that use it agree on the data. ``placed = EventType("shop/order.placed", Order)``, then
    ``placed(Order(...))`` makes an ``Event``, ``placed.trigger()`` a trigger, and ``placed.data(ctx.event)`` the
    validated model.
    """

    def __init__(self, name: str, model: type[M]) -> None:
        self.name = name
        self.model = model

    def __call__(self, data: M, *, id: str = "", ts: int = 0, user: Any = None, v: str | None = None) -> Event:
        return Event(name=self.name, data=as_data(data) or {}, id=id, ts=ts, user=user, v=v)

    def data(self, event: Event) -> M:
        """The event's data as the model. Raises pydantic's ``ValidationError``.

        The engine's own field in the data of some events (of an invoked function's, for example) is omitted.
        """
        return self.model.model_validate({name: value for name, value in event.data.items() if name != _ENGINES_FIELD})

    def trigger(self, if_exp: str | None = None, *, expression: str | None = None) -> Any:
        """The trigger; ``expression`` is another name of ``if_exp``."""
        return TriggerEvent(event=self.name, if_exp=if_exp, expression=expression)


def as_data(data: Mapping[str, Any] | Model | None) -> Mapping[str, Any] | None:
    """Event data as a mapping. Pydantic models are dumped in JSON mode.

    Raises ``TypeError`` for other types.
    """
    if data is None or isinstance(data, Mapping):
        return data
    if isinstance(data, Event) or not hasattr(data, "model_dump"):
        raise TypeError(f"data is a dictionary or a pydantic model, not {type(data).__name__}")
    return data.model_dump(mode="json")


# -- sending

sending_run: ContextVar[str | None] = ContextVar("durably_sending_run", default=None)
"""The id of the run whose function is executed.

Engines get the id of the run that sends an event, to stop runs that start each other endlessly.
"""

MAX_ATTEMPTS = 5
BASE_DELAY = 0.1
"""Seconds before the second attempt, doubled before each later one."""
_FINAL_STATUSES = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
"""Of answers to events that no attempt can send: they are invalid, or too large."""
_DEV_ADVICE = " (is `durably dev` running?)"
_DEV_EVENT_KEY = "NO_EVENT_KEY_SET"
_ENTROPY_BYTES = 10
_MOST_WARNED = 1000
_SHARE_SECONDS = 0.005
"""The longest time for which a send waits for a request that is under way, to share the next one with others."""
_MAX_SHARED_SENDS, _MAX_SHARED_BYTES = 100, 256 * 1024


class _Answer(msgspec.Struct):
    """The fields of an engine's answer that are read.

    ``error`` is set if not all events were accepted, ``refusal`` is the status if the engine will never accept them.
    """

    ids: list[str] | None = None
    error: str | None = None
    unmatched: Any = None
    refusal: int | None = None


async def send_events(
    app: App,
    events: Event | Sequence[Event],
    io: IO,
    middleware: MiddlewareStack | None,
    seed: str | None = None,
) -> list[str]:
    """Send events and return their ids, in the events' order.

    Network errors and 5xx are retried. All attempts have one event-id seed, so that the engine stores the events only
    once. ``seed`` is a step's seed (``step_seed``). Raises ``SendEventsError``, ``EngineNotConfiguredError``,
    ``EventKeyUnspecifiedError``.
    """
    batch = [events] if isinstance(events, Event | str | bytes) or not isinstance(events, Sequence) else list(events)
    if app.tracing is None:
        return await _send_through(middleware, app, batch, io, seed, None)
    with app.tracing.sending(batch) as span:
        ids = await _send_through(middleware, app, batch, io, seed, span.traceparent)
        span.sent(ids)
        return ids


async def _send_through(
    middleware: MiddlewareStack | None, app: App, batch: list[Event], io: IO, seed: str | None, traceparent: str | None
) -> list[str]:
    if middleware is None:
        return await _send(app, batch, io, seed, traceparent)
    await middleware.call("before_send_events", batch)
    result = SendEventsResult()
    try:
        result.ids = await _send(app, batch, io, seed, traceparent)
        return result.ids
    except SendEventsError as error:
        result.ids, result.error = error.ids, str(error)
        raise
    except Exception as error:
        result.error = str(error)
        raise
    finally:
        await middleware.call("after_send_events", result)


async def _send(app: App, events: list[Event], io: IO, seed: str | None, traceparent: str | None) -> list[str]:
    if not events:
        return []
    # The engine knows the run and the trace of a whole request, and a step's seed is for its events alone.
    may_share = isinstance(io, AsyncIO) and seed is None and traceparent is None and sending_run.get() is None
    seed = seed or new_seed()
    if app.in_process is not None:
        # The engine adds the time to the events, by its own clock. It repeats the send while it moves from one process
        # to another.
        body = _encode(events, now=0)
        try:
            receipt = await io.resolve(
                app.in_process.send_events(body, seed, app.request_timeout, sending_run.get(), traceparent)
            )
        except Error as error:
            status = 413 if isinstance(error, EventTooLargeError) else 400
            raise SendEventsError(error.message, [], status if isinstance(error, EventInvalidError) else None) from None
        _warn(app, receipt.unmatched)
        return receipt.ids
    request = _build_request(app, _encode(events, now=time.time_ns() // 1_000_000), seed, traceparent)
    attempt = partial(_attempt, io=io, advice=_DEV_ADVICE if app.mode is ServerKind.DEV else "")
    answer = await (_shared_sends_of(app).send(request, len(events), attempt) if may_share else attempt(request))
    if answer.error is not None:
        # An engine may quote the requested path.
        message = answer.error.replace(app.event_key, "***") if app.event_key else answer.error
        raise SendEventsError(message, answer.ids or [], answer.refusal)
    _warn(app, answer.unmatched if isinstance(answer.unmatched, dict) else {})
    return answer.ids or []


def _warn(app: App, unmatched: Mapping[str, str]) -> None:
    """Warn of events that matched no function, and of functions that are not served.

    An event's name is reported once, because it is probably misspelt. A function of this process is certainly not
    served if the process serves other functions of the app, or if the engine knows no function for an event that
    triggers it.
    """
    for name, reason in unmatched.items():
        if name not in app.warned_events and len(app.warned_events) < _MOST_WARNED:
            app.warned_events.add(name)
            app.logger.warning("the event %r was sent, but %s", name, printable(reason))

    unserved = find_unserved(app_id=app.app_id)
    if not app.is_served:
        unserved = [function for function in unserved if is_triggered_by(function, unmatched)]
    warn_of_unserved(unserved, app.logger)


class _WaitingSend(msgspec.Struct, eq=False):
    """``count`` events of one caller that wait for a shared request.

    ``outcome`` is their answer, and the seed of their ids. Without an answer they are sent alone.
    """

    request: Request
    count: int
    outcome: asyncio.Future[tuple[str, _Answer | None]]


class _SharedSends:
    """Sends of one client on one event loop. Those that would overlap share a request.

    A send goes at once, unless another is under way. Then it shares the next request, which begins when that one has
    ended, or after ``_SHARE_SECONDS``. If a shared request fails, each send is repeated alone, with the same ids, so
    that none fails because of another, and events that have been stored are not stored again.
    """

    def __init__(self) -> None:
        self._waiting: list[_WaitingSend] = []
        self._bytes = self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, request: Request, count: int, attempt: Callable[[Request], Awaitable[_Answer]]) -> _Answer:
        """``attempt`` sends a request alone."""
        if self._under_way:
            seed, answer = await self._wait_for_others(request, count)
            if answer is not None:
                return answer
            request = _with_seed(request, seed)
        self._under_way += 1
        try:
            return await attempt(request)
        finally:
            self._ended()

    def _wait_for_others(self, request: Request, count: int) -> asyncio.Future[tuple[str, _Answer | None]]:
        loop, size = asyncio.get_running_loop(), len(request.body or b"")
        if len(self._waiting) == _MAX_SHARED_SENDS or self._bytes + size > _MAX_SHARED_BYTES:
            self._send_waiting()
        send = _WaitingSend(request, count, loop.create_future())
        self._waiting.append(send)
        self._bytes += size
        if self._timer is None:
            self._timer = loop.call_later(_SHARE_SECONDS, self._send_waiting)
        return send.outcome

    def _send_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sends = [send for send in self._waiting if not send.outcome.cancelled()]
        self._waiting, self._bytes, self._timer = [], 0, None
        if sends:
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._send_together(sends))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _ended(self) -> None:
        self._under_way -= 1
        self._send_waiting()

    async def _send_together(self, sends: list[_WaitingSend]) -> None:
        answer, first, seed = _Answer(), sends[0].request, new_seed()
        try:
            if len(sends) > 1:
                body = b"[" + b",".join([(send.request.body or b"")[1:-1] for send in sends]) + b"]"
                answer = _read(await AsyncIO().request(_with_seed(replace(first, body=body), seed)))
        except TransportError:
            pass
        finally:
            ids, place = answer.ids or [], 0
            is_sent = answer.error is None and len(ids) == sum([send.count for send in sends])
            for send in sends:
                own = _Answer(ids[place : place + send.count], unmatched=answer.unmatched) if is_sent else None
                if not send.outcome.done():
                    send.outcome.set_result((_shift(seed, place), own))
                place += send.count
            self._ended()


_shared_sends: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakKeyDictionary[App, _SharedSends]] = WeakKeyDictionary()


def _shared_sends_of(app: App) -> _SharedSends:
    of_apps = _shared_sends.setdefault(asyncio.get_running_loop(), WeakKeyDictionary())
    return of_apps.setdefault(app, _SharedSends())


def _with_seed(request: Request, seed: str) -> Request:
    return replace(request, headers={**request.headers, Header.EVENT_ID_SEED.value: seed})


async def _attempt(request: Request, io: IO, *, advice: str) -> _Answer:
    """Attempt a send. ``advice`` is added to the error of an unreachable engine."""
    answer = _Answer()
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            await io.sleep(BASE_DELAY * 2 ** (attempt - 1) + random.random() * BASE_DELAY)
        try:
            response = await io.request(request)
        except TransportError as error:
            answer = _Answer(error=f"{error}{advice}")
            continue
        answer = _read(response)
        answer.refusal = response.status if response.status in _FINAL_STATUSES else None
        if response.status < 500:
            return answer
    answer.error = f"events not sent after {MAX_ATTEMPTS} attempts: {answer.error}"
    return answer


def encode_event(event: Event, *, now: int) -> bytes:
    """An event as JSON. ``now``, in ms since the epoch, is its time, if it has none.

    Raises ``EventUnserializableError``.
    """
    return _encode_wire(_to_wire(event, now))


def _encode(events: list[Event], *, now: int) -> bytes:
    return _encode_wire([_to_wire(event, now) for event in events])


def _encode_wire(wire: Any) -> bytes:
    try:
        return encode_checked(wire)[0]
    except ValueError as error:
        raise EventUnserializableError(f"an event's data cannot be expressed in JSON: {error}") from None


def _build_request(app: App, body: bytes, seed: str, traceparent: str | None) -> Request:
    origin, key = app.event_api_origin, app.event_key
    if not key:
        if app.mode is not ServerKind.DEV:
            raise EventKeyUnspecifiedError
        key = _DEV_EVENT_KEY
    headers = app.headers()
    headers[Header.EVENT_ID_SEED.value] = seed
    if (run_id := sending_run.get()) is not None:
        headers[Header.RUN_ID.value] = run_id
    headers |= trace_headers(traceparent)
    url = f"{origin}/e/{quote(key, safe='')}"
    return Request("POST", url, headers, body, app.request_timeout)


def _to_wire(event: Event, now: int) -> Mapping[str, Any]:
    if not isinstance(event, Event):
        raise EventUnserializableError(f"events are durably.Event objects, not {type(event).__name__}")
    try:
        data = as_data(event.data)
    except TypeError as error:
        raise EventUnserializableError(f"event {event.name!r}: {error}") from None
    wire = {"name": event.name, "data": data, "ts": event.ts or now}
    optional = {"id": event.id, "user": event.user, "v": event.v, "meta": event.meta}
    return wire | {name: value for name, value in optional.items() if value}


def _read(response: Response) -> _Answer:
    try:
        answer = msgspec.json.decode(response.body, type=_Answer)
    except msgspec.MsgspecError:
        return _Answer(error=f"the engine answered {response.status}, which is not an answer to events")
    if response.status >= 300 and not answer.error:
        answer.error = f"the engine answered {response.status}"
    return answer


def new_seed() -> str:
    """A seed for a request, with which it can be repeated."""
    return _seed(time.time_ns() // 1_000_000, secrets.token_bytes(_ENTROPY_BYTES))


def step_seed(run_id: str, hashed_step_id: str, began: int) -> str:
    """The seed with which a step sends. It is the same each time the step runs.

    So events are stored once, even if the app dies between sending them and reporting the step. ``began`` is the start
    of the run, in ms since the epoch.
    """
    digest = hashlib.sha256(f"{run_id}:{hashed_step_id}".encode()).digest()
    return _seed(max(began, 1), digest[:_ENTROPY_BYTES])


ID_SEED_PREFIX = "1,"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def id_seed(id: str) -> str:
    """The seed of an event that each process finds by an id of the app's own (``seeded_id``)."""
    return step_seed("", id, 1)


def seeded_id(seed: str) -> str:
    """The engine's id of the first event of a request with a seed: a ULID."""
    milliseconds, _, encoded = seed.partition(",")
    number = int.from_bytes(int(milliseconds).to_bytes(6) + base64.b64decode(encoded))
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def _seed(milliseconds: int, entropy: bytes) -> str:
    """The seed of event ids: ``<ms>,<base64 of ten bytes>``.

    The engine adds each event's index to the last four bytes.
    """
    room = bytearray(entropy)
    room[6] &= 0x7F  # leaves room for the addition
    return f"{milliseconds},{base64.b64encode(bytes(room)).decode()}"


def _shift(seed: str, index: int) -> str:
    """The seed whose first event has the id of the event at this index of another."""
    milliseconds, _, encoded = seed.partition(",")
    entropy = base64.b64decode(encoded)
    last = int.from_bytes(entropy[6:]) + index
    return f"{milliseconds},{base64.b64encode(entropy[:6] + last.to_bytes(4)).decode()}"
