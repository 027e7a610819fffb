"""Streams of changes, by which pages stay up to date: server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator

from durably.protocol.errors import Error

from .messages import DashboardResponse
from .routing import Route
from .visit import Visit

_RETRY_MILLISECONDS = 2_000
_POLL_MILLISECONDS = 5_000
_HEADERS = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # nginx would keep the events back
]


async def answer_live(visit: Visit) -> DashboardResponse:
    """Report each change after the position ``after``, of the run ``run`` or of all.

    The data of an event is its position. A comment shows that the stream is alive. If the server's worker may not wait,
    the stream ends at once, and the browser opens another after some seconds.
    """
    given = visit.request.headers.get("last-event-id") or visit.query.get("after", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else None
    run_id, engine = visit.query.get("run"), visit.engine

    async def stream() -> AsyncGenerator[bytes, None]:
        position, ends = after, time.monotonic() + visit.request.stream_seconds
        yield f"retry: {_RETRY_MILLISECONDS}\n\n".encode()
        while (seconds := ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(seconds):
                    changes = await engine.wait_for_changes(after=position, run_id=run_id)
            except (TimeoutError, Error):  # It is closing, or has too many clients: the browser asks again.
                return
            yield _describe(position, changes.position)
            position = changes.position

    async def poll() -> AsyncGenerator[bytes, None]:
        changes = await engine.wait_for_changes(after=None, run_id=run_id)
        yield f"retry: {_POLL_MILLISECONDS}\n\n".encode() + _describe(after, changes.position)

    return DashboardResponse(status_code=200, headers=list(_HEADERS), stream=stream if visit.request.may_wait else poll)


def _describe(before: int | None, position: int) -> bytes:
    return b": no change\n\n" if before == position else f"id: {position}\ndata: {position}\n\n".encode()


ROUTES = (Route("GET", "/live", answer_live),)
