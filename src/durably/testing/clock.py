"""A virtual clock, which stands still until a test advances it.

It then jumps from timer to timer. An engine registers its timers with the clock, and reports its work, which stops the
clock.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """An engine's ``Clock``, for one event loop.

    Times are milliseconds since the epoch.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._timers: list[tuple[int, int, _Timer]] = []
        self._order = itertools.count()
        self._held = 0
        self._at_rest: asyncio.Future[None] | None = None

    def now(self) -> int:
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> "_Timer":
        timer = _Timer(self, callback)
        if when <= self._now:
            timer.start()
        else:
            heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def begin_work(self) -> None:
        self._held += 1

    def end_work(self) -> None:
        self._held -= 1
        if not self._held and self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    async def rest(self) -> None:
        """Wait until no work is under way."""
        while self._held:
            if self._at_rest is None or self._at_rest.done():
                self._at_rest = asyncio.get_running_loop().create_future()
            await self._at_rest

    def next_due(self) -> int | None:
        """The time of the next timer."""
        while self._timers and self._timers[0][2].is_over:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    async def advance(self, until: int | None = None) -> bool:
        """Advance to the next timer, and wait until the work that it starts is done.

        If no timer is due by ``until``, advance to ``until`` and return ``False``.
        """
        await self.rest()
        due = self.next_due()
        if due is None or (until is not None and due > until):
            self._now = max(self._now, until or self._now)
            return False
        self._now = due
        while self.next_due() == due:
            heapq.heappop(self._timers)[2].start()
        await self.rest()
        return True


class _Timer:
    """Counts as work from its due time until the event loop has run its callback."""

    def __init__(self, clock: VirtualClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self.is_over = False

    def start(self) -> None:
        self._clock.begin_work()
        self._handle = asyncio.get_running_loop().call_soon(self._fire)

    def cancel(self) -> None:
        if not self.is_over and self._handle is not None:
            self._handle.cancel()
            self._clock.end_work()
        self.is_over = True

    def _fire(self) -> None:
        self.is_over = True
        try:
            self._callback()
        finally:
            self._clock.end_work()
