"""The slots of a function that this process holds, and their division."""

import asyncio
import math
from collections import deque

from durably.engine.temporal.call_slots import CallSlots
from durably.protocol.limits import MAX_COUNT


class FunctionSlots:
    """The slots of a function under one lease."""

    def __init__(self, calls: CallSlots, most: int) -> None:
        self.calls = calls
        self.most = most
        self.held = 0
        self.in_use = 0
        self.most_used = 0
        self.cancelled_at_stop = 0
        """Calls whose steps may go on in a thread."""
        self.share: int | None = None
        """The slots that other processes leave to this one."""
        self.local_share: int | None = None
        """The slots that other functions of this process leave to this one."""
        self.last_end = 0.0
        self.limit: int | None = MAX_COUNT
        self.limit_read_at = -math.inf
        self.unlimited_until = 0.0
        self.waiting: deque[asyncio.Future[None]] = deque()

    @property
    def usable(self) -> int:
        return min(each for each in (self.held, self.share, self.local_share) if each is not None)

    @property
    def has_to_return(self) -> bool:
        return self.held > max(self.in_use, self.usable)

    @property
    def demand(self) -> int:
        """The slots that the present calls can use."""
        calls = self.in_use + len(self.waiting)
        return calls if self.limit is None else min(calls, self.limit)

    @property
    def needed(self) -> int:
        """Slots to ask for.

        They are as many as are in use, so that a process under load doubles what it has.
        """
        if not self.waiting or self.in_use < self.usable or self.held > self.usable:
            return 0
        needed = max(len(self.waiting), self.in_use)
        most = min(each for each in (MAX_COUNT, self.limit, self.local_share) if each is not None)
        return min(needed, max(0, most - self.held))

    def wake(self) -> None:
        """Let waiting calls look whether they may start."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)

    def resize(self) -> None:
        """Ask the server for as many calls as there are slots, and one more."""
        self.calls.resize(self.most if self.unlimited_until else min(self.most, max(self.held, self.in_use) + 1))


def fair_shares(pools: list[FunctionSlots], most: int) -> dict[FunctionSlots, int]:
    """Equal shares of ``most`` slots, but none without a use.

    A pool gets no more than it has calls for, or holds while others need none. If there are more pools than slots,
    those without calls take turns.
    """
    waiting = [pool for pool in pools if pool.demand]
    if len(waiting) > most:
        waiting = sorted(waiting, key=lambda pool: (pool.in_use == 0, pool.last_end))[:most]
    shares = dict.fromkeys(pools, 0)
    left = most
    for index, pool in enumerate(sorted(waiting, key=lambda pool: pool.demand)):
        shares[pool] = min(pool.demand, left // (len(waiting) - index))
        left -= shares[pool]
    for pool in pools:
        kept = min(left, max(0, pool.held - shares[pool]))
        shares[pool] += kept
        left -= kept
    return shares
