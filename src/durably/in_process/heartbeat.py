"""The heartbeat of this process, and whether its view may be stale."""

import math
import time
from collections.abc import Callable


class Heartbeat:
    """Records beats: of the engine's loop in the leader, of data from the leader in a follower.

    ``longest_gap`` is the longest time between two beats, in seconds, after which no process has treated another as
    dead.
    """

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap = longest_gap
        self._clock = clock
        self._last_beat = clock()
        self._gap_ended = -math.inf

    def beat(self) -> None:
        """Record that this process runs and is in contact."""
        now = self._clock()
        if now - self._last_beat > self._longest_gap:
            self._gap_ended = now
        self._last_beat = now

    def lose_contact(self) -> None:
        """Record that everything that this process knew before now may be stale."""
        self._gap_ended = self._clock()

    def certain_at_arrival(self) -> float:
        """The time since which data that arrives now is certainly valid.

        Just after a gap, it may have been sent before the gap.
        """
        return self._clock() - self._longest_gap

    def may_be_stale(self, since: float) -> bool:
        """Whether something that was true at ``since``, by the same clock, may have changed without notice."""
        # In this order: ``beat``, in the engine's thread, notes a gap before it ends it.
        is_in_gap = self._clock() - self._last_beat > self._longest_gap
        return is_in_gap or since < self._gap_ended
