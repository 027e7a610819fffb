"""The heartbeat of this process, and whether its view may be stale."""

import math
import time
from collections.abc import Callable


class Pulse:
    """Beats whenever an owner is alive, and another process hears from its owner. ``longest_gap`` is how many seconds
    may lie between two beats without anybody having been given up."""

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap = longest_gap
        self._clock = clock
        self._last_beat = clock()
        self._gap_ended = -math.inf

    def beat(self) -> None:
        """This process runs, and is in contact."""
        now = self._clock()
        if now - self._last_beat > self._longest_gap:
            self._gap_ended = now
        self._last_beat = now

    def lose_contact(self) -> None:
        """Whatever this process had to do with the others before now may be over."""
        self._gap_ended = self._clock()

    def certain_at_arrival(self) -> float:
        """From when on what arrives now has held for certain: just after a gap it may have been sent before."""
        return self._clock() - self._longest_gap

    def is_doubtful(self, since: float) -> bool:
        """Whether what held at ``since``, by the same clock, may not hold any more."""
        # In this order: ``beat``, in the engine's thread, notes a gap before it ends it.
        is_in_gap = self._clock() - self._last_beat > self._longest_gap
        return is_in_gap or since < self._gap_ended
