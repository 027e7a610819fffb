"""Live progress of a workflow, as server-sent events (the ``EventSource`` of browsers).

Each event of the history becomes one. Its id names the run and the event, so that a reader that was cut off continues
there (``Last-Event-ID``). ``run`` announces a run; the stream follows continue-as-new, retries, cron and resets. When
nothing has happened for a while, ``pending`` tells which activities are under way, with their attempts, as often as
that changes. The last event is ``result``, or ``problem`` for a workflow that did not complete. A reader that comes
back after it gets 204, by which browsers stop. While the server is away the stream stays open, with comments that
browsers skip.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from http import HTTPStatus

from pydantic import BaseModel
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent as RawEvent

from .call import Call
from .history import Brief
from .messages import GatewayResponse
from .models import Pending, Run
from .problems import to_problem
from .reading import pending_activities
from .results import wait_for_result
from .runs import NextRun, Position, find_run, next_run, parse_position
from .stream_slots import StreamSlot

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    # Proxies that collect an answer before they pass it on would keep events back.
    "X-Accel-Buffering": "no",
}
_PAUSE = 1.0
"""Seconds after which a server that did not answer is asked again; each question itself is repeated for some."""

_NOISE = frozenset({"workflow_task_scheduled", "workflow_task_started", "workflow_task_completed"})
"""How a worker goes about its work, which tells nobody anything."""
_STILL_HERE = b": still here\n\n"
_UNKNOWN_POSITION = b": Last-Event-ID is not of this workflow; this is the beginning\n\n"


async def events(call: Call) -> GatewayResponse:
    """The stream, which counts among those of the principal until it ends. Raises the problem 429 for one too many."""
    slot = call.take_stream()
    try:
        response = await _open(call)
    except BaseException:
        slot.release()
        raise
    if (stream := response.stream) is None:
        slot.release()
        return response
    return replace(response, stream=lambda: _held(call, stream(), slot))


async def _open(call: Call) -> GatewayResponse:
    """A reader with an unknown ``Last-Event-ID`` begins at the beginning: browsers would give up at an error."""
    run_id = (await call.describe()).run_id
    last = call.request.headers.get("last-event-id", "")
    seen = parse_position(last)
    if seen is not None and await find_run(call, seen) is None:
        seen = None
    if seen is None:
        first = [b"retry: 2000\n\n", *([_UNKNOWN_POSITION] if last else [])]
        return _stream(call, _Stream(call, Position(run_id), Run(run_id=run_id)), first)
    if not seen.is_end:
        return _stream(call, _Stream(call, seen, None), [b"retry: 2000\n\n"])
    following = await next_run(call, seen.run_id, None)
    if following is None:
        return GatewayResponse(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})
    return _stream(call, _Stream(call, following.position, _run(seen, following)), [b"retry: 2000\n\n"])


def _stream(call: Call, stream: "_Stream", first: list[bytes]) -> GatewayResponse:
    return GatewayResponse(
        status_code=HTTPStatus.OK,
        headers=dict(_HEADERS),
        stream=lambda: _follow(stream, first),
    )


async def _held(call: Call, messages: AsyncGenerator[bytes, None], slot: StreamSlot) -> AsyncGenerator[bytes, None]:
    try:
        with call.waiting():
            async with contextlib.aclosing(messages):
                async for message in messages:
                    yield message
    finally:
        slot.release()


async def _follow(stream: "_Stream", first: list[bytes]) -> AsyncGenerator[bytes, None]:
    """A server that goes away meanwhile is waited for: browsers give up for good when they connect again to a 503."""
    for message in first:
        yield message
    stream.start()
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
                yield stream.last_id() + b"event: problem\ndata: " + problem.response().body + b"\n\n"
                return
        yield b": the Temporal server does not answer\n\n"
        await asyncio.sleep(_PAUSE)


class _Stream:
    """What has been told and what is left to tell; ``messages`` can be asked for again after an error."""

    def __init__(self, call: Call, seen: Position, announced: Run | None) -> None:
        self._call, self._seen, self._announced = call, seen, announced
        self._told: Pending | None = None
        self.end = self._last_time = 0.0

    def start(self) -> None:
        self._last_time = time.monotonic()
        self.end = self._last_time + self._call.limits.stream_limit

    def last_id(self) -> bytes:
        """The id of the last message, whatever it is: after a problem a reader need not come back."""
        return f"id: {Position(self._seen.run_id, is_end=True)}\n".encode()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        while True:
            if self._announced is not None:
                yield _message("run", self._announced, self._seen)
                self._announced = None
            last: RawEvent | None = None
            async with contextlib.aclosing(self._events_of_run()) as messages:
                async for event, message in messages:
                    last = event
                    if message:
                        self._last_time = time.monotonic()
                        yield message
            following = await next_run(self._call, self._seen.run_id, last)
            if following is None:
                break
            self._announced, self._seen, self._told = _run(self._seen, following), following.position, None
        run_id = self._seen.run_id
        done = await wait_for_result(self._call, run_id, self._call.limits.max_wait)
        if done is not None:
            yield _message("result", done, Position(run_id, is_end=True))

    async def _events_of_run(self) -> AsyncGenerator[tuple[RawEvent | None, bytes], None]:
        """Each event with its message, which may be empty."""
        brief = Brief(self._call.client.data_converter)
        last: RawEvent | None = None
        async with contextlib.aclosing(_history(self._call, self._seen.run_id, self.end)) as history:
            async for raw in history:
                if raw is None:
                    yield last, await self._pending()
                    continue
                if raw.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES:
                    # It may have been handed over: what follows is perhaps another's.
                    await self._call.describe_run(self._seen.run_id)
                last, event = raw, await brief.event(raw)
                if event.id > self._seen.event_id and event.type not in _NOISE:
                    self._seen = Position(self._seen.run_id, event.id)
                    yield last, _message(event.type, event, self._seen)
                else:
                    is_silent = time.monotonic() - self._last_time > self._call.limits.keep_alive
                    yield last, _STILL_HERE if is_silent else b""

    async def _pending(self) -> bytes:
        pending = await _pending(self._call, self._seen.run_id)
        message = _message("pending", pending) if pending != self._told else _STILL_HERE
        self._told = pending
        return message


def _run(previous: Position, following: NextRun) -> Run:
    return Run(run_id=following.position.run_id, previous_run_id=previous.run_id, cause=following.cause)


async def _pending(call: Call, run_id: str) -> Pending:
    description = await call.handle(run_id).describe(rpc_timeout=call.rpc_timeout)
    return Pending(pending_activities=await pending_activities(description))


class _LimitReached(Exception):
    """The stream has been open for long enough: the reader connects again."""


async def _history(call: Call, run_id: str, end: float) -> AsyncGenerator[RawEvent | None, None]:
    """Events up to the workflow's end, as they come; ``None`` when there was none for a while."""
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
    lines = [] if position is None else [f"id: {position}"]
    lines += [f"event: {kind}", f"data: {body.model_dump_json(fallback=str)}"]
    return ("\n".join(lines) + "\n\n").encode()
