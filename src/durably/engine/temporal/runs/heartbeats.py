"""Heartbeats of activities."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity


@asynccontextmanager
async def heartbeats() -> AsyncIterator[None]:
    """Send a heartbeat after each half of the activity's time-out.

    Heartbeats are billed, and most calls are shorter.
    """
    timeout = activity.info().heartbeat_timeout
    assert timeout is not None
    task = asyncio.create_task(_send(timeout.total_seconds() / 2))
    try:
        yield
    finally:
        task.cancel()


async def _send(seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        activity.heartbeat()
