"""Fair sharing of a handler's threads between its sync functions.

A thread pool alone is first come, first served: a thousand calls of one function would delay another's single call.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from durably.engine.flow.fairness import FairQueue, may_have_another


class FairGate:
    """Lets ``room`` calls through at a time. Used on one event loop."""

    def __init__(self, room: int) -> None:
        self._free = room
        self._under_way: Counter[str] = Counter()
        self._waiting: FairQueue[tuple[str, asyncio.Future[None]]] = FairQueue()

    @asynccontextmanager
    async def through(self, function_id: str, priority: int) -> AsyncIterator[None]:
        """Wait for the function's turn. ``priority`` moves the call ahead of its other calls by milliseconds."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(function_id, time.monotonic_ns() // 1_000_000 - priority, (function_id, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._leave(function_id)

    def _admit(self) -> None:
        while (upcoming := self._waiting.take(self._may_enter)) is not None:
            function_id, turn = upcoming
            if not turn.done():
                self._free -= 1
                self._under_way[function_id] += 1
                turn.set_result(None)

    def _may_enter(self, function_id: str) -> bool:
        return may_have_another(self._under_way[function_id], self._free)

    def _leave(self, function_id: str) -> None:
        self._free += 1
        self._under_way[function_id] -= 1
        if not self._under_way[function_id]:
            del self._under_way[function_id]
        self._admit()
