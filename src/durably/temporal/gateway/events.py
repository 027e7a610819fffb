"""The events of a workflow: pages of its history, and a live stream.

A brief history has names of activities, timers and signals, and reasons of failures, but no contents. The raw history
is that of the server.

A stream (server-sent events, ``EventSource`` of browsers) sends each event of the history.

- The event id consists of the run and the event. A client continues from it after a disconnect (``Last-Event-ID``).
- ``run`` announces a run; the stream follows continue-as-new, retries, cron and resets.
- ``pending``, after a silence, lists the activities with their attempts, at each change.
- ``result`` is the last event, or ``problem`` for a workflow that did not complete. A client that connects after it
  gets 204, after which browsers stop.

While the server is down the stream stays open, with comments that browsers skip.
"""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Any

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.converter import DataConverter

from .call import Call
from .lists import pending_activities
from .messages import GatewayResponse, HistoryEvent, HistoryPage, Pending, RawHistoryPage, Run, answer, to_json
from .problems import causes, to_problem
from .runs import NextRun, Position, find_run, next_run, parse_position, wait_for_result
from .services import StreamSlot

_AT_A_TIME = 50
"""Number of events that are converted to JSON before other requests continue: two milliseconds."""


async def history(call: Call) -> GatewayResponse:
    events, next_page = await _fetch(call)
    brief = Brief(call.client.data_converter)
    return answer(HistoryPage(events=[await brief.event(event) for event in events], next_page=next_page))


async def raw_history(call: Call) -> GatewayResponse:
    """Encrypted payloads stay encrypted."""
    events, next_page = await _fetch(call)
    page = RawHistoryPage(events=[], next_page=next_page)
    for start in range(0, len(events), _AT_A_TIME):
        page.events += [MessageToDict(event) for event in events[start : start + _AT_A_TIME]]
        await asyncio.sleep(0)
    return answer(page)


async def _fetch(call: Call) -> tuple[Sequence[RawEvent], str | None]:
    """The requested page, and the token of the next one.

    The token names the run: all pages are of one run, even if the workflow continues in another run.
    """
    pages = call.pages(call.workflow_id, call.params["run_id"] or "")
    run_id, _, token = (pages.take(call.params["page"]) or call.run_id.encode()).partition(b" ")
    if run_id.decode() != call.run_id:
        # The owner may have changed since the previous page.
        await call.describe_run(run_id.decode())
    events = call.handle(run_id.decode()).fetch_history_events(
        page_size=call.params["page_size"], next_page_token=token or None, rpc_timeout=call.rpc_timeout
    )
    await events.fetch_next_page()
    following = events.next_page_token
    return events.current_page or (), pages.give(run_id + b" " + following if following else None)


class Brief:
    """Converts events in order: only the first event of an activity has a name.

    The first event may be on an earlier page. Then the name is missing; ``begun_by`` is the event's id.
    """

    def __init__(self, converter: DataConverter) -> None:
        self._converter = converter
        self._names: dict[int, str] = {}

    async def event(self, raw: RawEvent) -> HistoryEvent:
        attributes: Any = getattr(raw, raw.WhichOneof("attributes") or "", None)

        def value(*fields: str) -> Any:
            """The first of these fields that is set."""
            return next((found for field in fields if (found := getattr(attributes, field, None))), None)

        begun_by = value("scheduled_event_id", "initiated_event_id", "accepted_event_id")
        named = value("activity_type", "workflow_type", "signal_name", "timer_id", "marker_name")
        name = getattr(named, "name", named)
        if raw.HasField("workflow_execution_update_accepted_event_attributes"):
            name = attributes.accepted_request.input.name
        if name:
            self._names[raw.event_id] = name
        has_failure = "failure" in getattr(attributes, "DESCRIPTOR", RawEvent.DESCRIPTOR).fields_by_name
        failure = None
        if has_failure and attributes.HasField("failure"):
            failure = causes(await self._converter.decode_failure(attributes.failure))
        return HistoryEvent(
            id=raw.event_id,
            time=raw.event_time.ToDatetime(dt.UTC),
            type=EventType.Name(raw.event_type).removeprefix("EVENT_TYPE_").lower(),
            name=name or self._names.get(begun_by),
            begun_by=begun_by,
            attempt=value("attempt"),
            failure=failure,
        )


_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    # Proxies that buffer an answer would delay events.
    "X-Accel-Buffering": "no",
}

_PAUSE = 1.0
"""Seconds until a server that did not answer is called again. The client also repeats each request itself."""

_NOISE = frozenset({"workflow_task_scheduled", "workflow_task_started", "workflow_task_completed"})
"""Events about the work of workers, not about the workflow."""

_STILL_HERE = b": still here\n\n"

_UNKNOWN_POSITION = b": Last-Event-ID is not of this workflow; this is the beginning\n\n"


async def events(call: Call) -> GatewayResponse:
    """The stream (server-sent events). Raises the problem 429 for one too many.

    It starts at ``Last-Event-ID``, or at the first event if the id is unknown.
    """
    slots = call.services.stream_slots
    slot = None if slots is None else slots.take(call.principal_key)
    last = call.request.headers.get("last-event-id", "")
    seen = parse_position(last)
    first = [b"retry: 2000\n\n"]
    if seen is not None and await find_run(call, seen) is None:
        seen = None
    if seen is None:
        stream = _Stream(call, Position(call.run_id), Run(run_id=call.run_id))
        first += [_UNKNOWN_POSITION] if last else []
    elif not seen.is_end:
        stream = _Stream(call, seen, None)
    else:
        following = await next_run(call, seen.run_id, None)
        if following is None:
            return GatewayResponse(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})
        stream = _Stream(call, Position(following.run_id), _run(seen, following))
    messages = _follow(call, stream, first, slot)
    return GatewayResponse(status_code=HTTPStatus.OK, headers=dict(_HEADERS), stream=lambda: messages)


async def _follow(
    call: Call, stream: "_Stream", first: list[bytes], slot: StreamSlot | None
) -> AsyncGenerator[bytes, None]:
    """The messages, counted as an open stream until it ends or is collected.

    It waits for a server that is down: a 503 would stop browsers permanently.
    """
    try:
        with call.waiting():
            for message in first:
                yield message
            while True:
                try:
                    async with contextlib.aclosing(stream.messages()) as messages:
                        async for message in messages:
                            yield message
                    return
                except _LimitReached:
                    return
                except Exception as error:
                    problem = to_problem(error)
                    if not problem.passes or time.monotonic() > stream.end:
                        # With an id, so that the client need not reconnect.
                        end = Position(stream.run_id, is_end=True)
                        yield f"id: {end}\nevent: problem\ndata: ".encode() + problem.response().body + b"\n\n"
                        return
                yield b": the Temporal server does not answer\n\n"
                await asyncio.sleep(_PAUSE)
    finally:
        if slot is not None and call.services.stream_slots is not None:
            call.services.stream_slots.release(slot)


class _Stream:
    """The position of a client. ``messages`` can be called again after an error."""

    def __init__(self, call: Call, seen: Position, announced: Run | None) -> None:
        self._call, self._seen, self._announced = call, seen, announced
        self._pending: Pending | None = None
        self._last_time = time.monotonic()
        self.end = self._last_time + call.limits.stream_limit

    @property
    def run_id(self) -> str:
        return self._seen.run_id

    async def messages(self) -> AsyncGenerator[bytes, None]:
        while True:
            if self._announced is not None:
                yield _message("run", self._announced, self._seen)
                self._announced = None
            brief, last = Brief(self._call.client.data_converter), None
            async with contextlib.aclosing(_history(self._call, self._seen.run_id, self.end)) as history:
                async for raw in history:
                    last = raw or last
                    message = await (self._still_pending() if raw is None else self._message_of(raw, brief))
                    if message:
                        self._last_time = time.monotonic()
                        yield message
            following = await next_run(self._call, self._seen.run_id, last)
            if following is None:
                break
            self._announced = _run(self._seen, following)
            self._seen, self._pending = Position(following.run_id), None
        run_id = self._seen.run_id
        done = await wait_for_result(self._call, run_id, self._call.limits.max_wait)
        if done is not None:
            yield _message("result", done, Position(run_id, is_end=True))

    async def _message_of(self, raw: RawEvent, brief: Brief) -> bytes:
        """The message of an event, which may be empty."""
        if raw.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES:
            # The workflow may have another owner now.
            await self._call.describe_run(self._seen.run_id)
        event = await brief.event(raw)
        if event.id > self._seen.event_id and event.type not in _NOISE:
            self._seen = Position(self._seen.run_id, event.id)
            return _message(event.type, event, self._seen)
        return _STILL_HERE if time.monotonic() - self._last_time > self._call.limits.keep_alive else b""

    async def _still_pending(self) -> bytes:
        description = await self._call.handle(self._seen.run_id).describe(rpc_timeout=self._call.rpc_timeout)
        before, self._pending = self._pending, Pending(pending_activities=await pending_activities(description))
        return _message("pending", self._pending) if self._pending != before else _STILL_HERE


def _run(previous: Position, following: NextRun) -> Run:
    return Run(run_id=following.run_id, previous_run_id=previous.run_id, cause=following.cause)


class _LimitReached(Exception):
    """The stream was open for ``Limits.stream_limit``. The client connects again."""


async def _history(call: Call, run_id: str, end: float) -> AsyncGenerator[RawEvent | None, None]:
    """New events until the end of the run; ``None`` after a silence."""
    events = call.handle(run_id).fetch_history_events(wait_new_event=True, skip_archival=True)
    taking: asyncio.Task[RawEvent | None] | None = None
    try:
        while True:
            taking = taking or asyncio.create_task(anext(events, None))
            left = end - time.monotonic()
            if left <= 0:
                raise _LimitReached
            done, _ = await asyncio.wait({taking}, timeout=min(call.limits.keep_alive, left))
            if not done:
                if left <= call.limits.keep_alive:
                    raise _LimitReached
                yield None
                continue
            event, taking = taking.result(), None
            if event is None:
                return
            yield event
    finally:
        if taking is not None:
            taking.cancel()


def _message(kind: str, body: BaseModel, position: Position | None = None) -> bytes:
    id = b"" if position is None else f"id: {position}\n".encode()
    return id + f"event: {kind}\ndata: ".encode() + to_json(body) + b"\n\n"
