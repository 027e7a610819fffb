"""Keeping in sync with apps that run by themselves: at start, when they come up (again), and when they change."""

import asyncio
from collections.abc import Callable

from durably.engine.core.errors import EngineError
from durably.engine.http.discovery import AppDiscovery, AppUnreachedError
from durably.protocol.text import redact_url

UNREACHED_PAUSE_SECONDS = 1.0


async def keep_synced(
    url: str, discovery: AppDiscovery, *, interval: float, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Sync with the app at ``url`` every ``interval`` seconds; with 0, once it has succeeded, no more.

    Each problem is said once, and that it is over.
    """
    known: str | None = None
    while True:
        problem, pause = None, interval
        try:
            await discovery.sync(url)
        except EngineError as error:
            problem = error.message
            pause = UNREACHED_PAUSE_SECONDS if isinstance(error, AppUnreachedError) else interval
        if problem and problem != known:
            warn(f"{problem}; waiting for it")
        elif known and not problem:
            say(f"the app at {redact_url(url)} answers")
        known = problem
        if not problem and not interval:
            return
        await asyncio.sleep(pause or UNREACHED_PAUSE_SECONDS)
