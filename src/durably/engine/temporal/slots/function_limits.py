"""The limits of functions, which processes read again while they have calls."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from durably.engine.logs import SparseLog
from durably.protocol.text import get_logger

from . import lease_time
from .function_slots import FunctionSlots

ReadLimit = Callable[[str], Awaitable[int | None]]
"""The present limit of a function; ``None`` if it has none."""

_log = SparseLog(get_logger("durably.engine"))


class FunctionLimits:
    """Reads the limits of functions.

    The server may take seconds to answer, so a lease is not renewed after a read, but beside it. ``on_read`` gets the
    slots of the function, and whether the limit has changed.
    """

    def __init__(self, read: ReadLimit, on_read: Callable[[FunctionSlots, bool], None]) -> None:
        self._read_limit = read
        self._on_read = on_read
        self._reading: dict[str, asyncio.Task[None]] = {}

    async def refresh(self, functions: Mapping[str, FunctionSlots]) -> None:
        """Read limits again.

        Waits for those that are not known, and for those that were read long ago.
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
            task.exception()  # The server is away. Requests report it.
