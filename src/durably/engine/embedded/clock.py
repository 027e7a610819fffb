"""Time, as the embedded engine sees it, so that tests can put their own in its place."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """``now`` is milliseconds since the epoch; ``call_at`` runs a callback on the event loop once then.

    ``hold`` says that something is under way which needs no time to come, and ``release`` that it has ended: for a
    clock that skips time, which must not skip it meanwhile. Whatever follows from it holds before it is released,
    so that nothing is under way where nothing holds. Both are called on the event loop.
    """

    def now(self) -> int: ...

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer: ...

    def hold(self) -> None: ...

    def release(self) -> None: ...


class SystemClock:
    """The wall clock. Timers follow it only at the granularity of a minute: a machine that slept, or whose
    clock was set, notices within that time."""

    _LONGEST_NAP_SECONDS = 60.0

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        seconds = min(max(when - self.now(), 0) / 1000, self._LONGEST_NAP_SECONDS)
        return asyncio.get_running_loop().call_later(seconds, callback)

    def hold(self) -> None:
        """Real time passes whatever is under way."""

    def release(self) -> None:
        """See ``hold``."""
