"""Live progress of a workflow, as server-sent events (the ``EventSource`` of browsers).

Each event of the history becomes one, with its number as the id, so that a reader that was cut off goes on where it was
(``Last-Event-ID``). When there is none for a while, ``pending`` tells which activities are under way, with their
attempts, as often as that changes. The last one is ``result``, or ``problem`` for a workflow that did not complete.
While the server is away the stream stays open, with comments that browsers skip.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus

from pydantic import BaseModel
from temporalio.api.history.v1 import HistoryEvent as RawEvent

from .call import Call
from .history import Brief
from .messages import GatewayResponse
from .models import Pending
from .problems import to_problem
from .reading import pending_activities
from .results import wait_for_result

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


async def events(call: Call) -> GatewayResponse:
    description = await call.describe()
    last = call.request.headers.get("last-event-id", "")
    seen = int(last) if last.isdecimal() and len(last) < 10 else 0
    return GatewayResponse(
        status_code=HTTPStatus.OK,
        headers=dict(_HEADERS),
        stream=lambda: _held(call, _follow(call, description.run_id, seen)),
    )


async def _held(call: Call, messages: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    with call.waiting():
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message


async def _follow(call: Call, run_id: str, seen: int) -> AsyncGenerator[bytes, None]:
    """A server that goes away meanwhile is waited for: browsers give up for good when they connect again to a 503."""
    yield b"retry: 2000\n\n"
    stream = _Stream(call, run_id, seen, end=time.monotonic() + call.limits.stream_limit)
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
                yield b"event: problem\ndata: " + problem.response().body + b"\n\n"
                return
        yield b": the Temporal server does not answer\n\n"
        await asyncio.sleep(_PAUSE)


class _Stream:
    """What has been told and what is left to tell; ``messages`` can be asked for anew after an error."""

    def __init__(self, call: Call, run_id: str, seen: int, end: float) -> None:
        self._call, self._run_id, self._seen, self.end = call, run_id, seen, end
        self._told: Pending | None = None

    async def messages(self) -> AsyncGenerator[bytes, None]:
        brief = Brief(self._call.client.data_converter)
        async with contextlib.aclosing(_history(self._call, self._run_id, self.end)) as history:
            async for raw in history:
                if raw is None:
                    yield await self._pending()
                    continue
                event = await brief.event(raw)
                if event.id > self._seen and event.type not in _NOISE:
                    yield _message(event.type, event, event.id)
                    self._seen = event.id
        done = await wait_for_result(self._call, self._call.handle(self._run_id), self._call.limits.max_wait)
        if done is not None:
            yield _message("result", done)

    async def _pending(self) -> bytes:
        pending = await _pending(self._call, self._run_id)
        message = _message("pending", pending) if pending != self._told else b": still here\n\n"
        self._told = pending
        return message


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


def _message(kind: str, body: BaseModel, number: int | None = None) -> bytes:
    lines = [] if number is None else [f"id: {number}"]
    lines += [f"event: {kind}", f"data: {body.model_dump_json(fallback=str)}"]
    return ("\n".join(lines) + "\n\n").encode()
