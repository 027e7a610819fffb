"""The slots of a function in this process: their division and their limit."""

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from durably.engine.model.subscriptions import SparseLog
from durably.protocol.limits import MAX_COUNT
from durably.protocol.text import get_logger

from . import lease_time
from .call_slots import CallSlots

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 5.0
"""Seconds between requests for slots while other processes have them."""
_RENEWAL_SECONDS = 10.0
"""The same for a process that has slots. It requests more when it renews them."""
_MIN_SHARE_SECONDS = 2.0
"""Minimum time a function keeps its slots. Without it, slots would move at each call."""
ReadLimit = Callable[[str], Awaitable[int | None]]
"""Reads the current limit of a function; ``None`` if it has none."""

_log = SparseLog(get_logger("durably.engine"))


class FunctionSlots:
    """The slots of a function under one lease."""

    def __init__(self, calls: CallSlots, most: int) -> None:
        self.calls = calls
        self.most = most
        self.held = 0
        self.in_use = 0
        """Calls with a slot. During a stop, cancelled and returned calls still count: their steps may continue."""
        self.most_used = 0
        self.share: int | None = None
        """The slots that other processes leave to this one."""
        self.local_share: int | None = None
        """The slots that other functions of this process leave to this one."""
        self.last_share_at = 0.0
        """The time at which its last call ended, or a request got no slot."""
        self.share_ends_at = 0.0
        self.limit: int | None = MAX_COUNT
        self.limit_read_at = -math.inf
        self.unlimited_until = 0.0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.next_request = 0.0
        """The time of the next request for slots, if the last one got none."""
        self._pause = 0.0

    @property
    def usable(self) -> int:
        return min(each for each in (self.held, self.share, self.local_share) if each is not None)

    @property
    def has_to_return(self) -> bool:
        return self.held > max(self.in_use, self.usable)

    @property
    def demand(self) -> int:
        """The slots that the current calls can use."""
        calls = self.in_use + len(self.waiting)
        return calls if self.limit is None else min(calls, self.limit)

    def demand_at(self, now: float) -> int:
        """The slots that it can use, unless it waits for other processes."""
        return self.demand if now >= self.next_request else self.in_use

    @property
    def needed(self) -> int:
        """The number of slots to request.

        It is the number in use, so that a process under load doubles its slots.
        """
        if not self.waiting or self.in_use < self.usable or self.held > self.usable:
            return 0
        needed = max(len(self.waiting), self.in_use)
        most = min(each for each in (MAX_COUNT, self.limit, self.local_share) if each is not None)
        return min(needed, max(0, most - self.held))

    def begin_call(self, now: float) -> None:
        if now >= self.share_ends_at:
            self.share_ends_at = now + _MIN_SHARE_SECONDS
        self.in_use += 1
        self.most_used = max(self.most_used, self.in_use)

    def end_call(self, now: float) -> None:
        self.in_use -= 1
        self.last_share_at = now

    def note_request(self, now: float, *, has_slots: bool) -> None:
        """Record whether a request for slots got any."""
        if has_slots:
            self._pause = self.next_request = 0.0
            self.most_used = max(self.most_used, self.held)  # Their calls start now.
        else:
            self._pause = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause), _LONGEST_PAUSE_SECONDS)
            self.next_request = now + (_RENEWAL_SECONDS if self.held else self._pause)
            self.last_share_at = now

    def wake(self) -> None:
        """Make waiting calls check whether they may start."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)

    def resize(self) -> None:
        """Request one more call from the server than there are slots."""
        self.calls.resize(self.most if self.unlimited_until else min(self.most, max(self.held, self.in_use) + 1))


def fair_shares(pools: list[FunctionSlots], most: int, now: float) -> dict[FunctionSlots, int]:
    """Divide ``most`` slots equally among the pools that need them.

    A pool gets at most as many as it has calls. Left-over slots stay with the pools that have them. If there are more
    pools than slots, they alternate.
    """
    demands = {pool: demand for pool in pools if (demand := pool.demand_at(now))}
    if len(demands) > most:
        served = sorted(demands, key=lambda pool: (pool.in_use == 0 and now >= pool.share_ends_at, pool.last_share_at))[
            :most
        ]
        demands = {pool: demands[pool] for pool in served}
    shares = dict.fromkeys(pools, 0)
    left = most
    for index, pool in enumerate(sorted(demands, key=demands.__getitem__)):
        shares[pool] = min(demands[pool], left // (len(demands) - index))
        left -= shares[pool]
    for pool in pools:
        kept = min(left, max(0, pool.held - shares[pool]))
        shares[pool] += kept
        left -= kept
    return shares


class FunctionLimits:
    """Reads the limits of functions.

    The server may take seconds to answer, so leases are renewed during a read, not after it. ``on_read`` gets the slots
    of the function, and whether the limit has changed.
    """

    def __init__(self, read: ReadLimit, on_read: Callable[[FunctionSlots, bool], None]) -> None:
        self._read_limit = read
        self._on_read = on_read
        self._reading: dict[str, asyncio.Task[None]] = {}

    async def refresh(self, functions: Mapping[str, FunctionSlots]) -> None:
        """Read limits again.

        Waits for limits that are unknown or were read long ago.
        """
        now, unknown = lease_time.now(), []
        for function_id, pool in functions.items():
            age = now - pool.limit_read_at
            is_known = pool.limit is not None and age < lease_time.USE_SECONDS
            if is_known and age < lease_time.USE_SECONDS / 20:
                continue
            task = self._reading.get(function_id) or self._begin(function_id, pool)
            if not is_known:
                unknown.append(task)
        await asyncio.gather(*unknown)

    def close(self) -> None:
        for task in self._reading.values():
            task.cancel()

    def _begin(self, function_id: str, pool: FunctionSlots) -> "asyncio.Task[None]":
        task = self._reading[function_id] = asyncio.create_task(self._read(function_id, pool))
        task.add_done_callback(partial(self._end, function_id))
        return task

    async def _read(self, function_id: str, pool: FunctionSlots) -> None:
        began = lease_time.now()
        limit = await self._read_limit(function_id)
        now = lease_time.now()
        if now - began > lease_time.USE_SECONDS / 3:
            message = "Temporal answered process %d after %.1f s: calls of functions with a concurrency limit may wait"
            _log.log(logging.WARNING, message, os.getpid(), now - began)
        has_changed = limit != pool.limit
        pool.limit, pool.limit_read_at = limit, began
        pool.unlimited_until = 0.0 if limit is not None else now + lease_time.USE_SECONDS / 3
        self._on_read(pool, has_changed)

    def _end(self, function_id: str, task: "asyncio.Task[None]") -> None:
        del self._reading[function_id]
        if not task.cancelled():
            task.exception()  # The server is unreachable. Requests report it.
