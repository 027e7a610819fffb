"""Execution of the engine's calls in this process, and fair use of its threads."""

import asyncio
import contextvars
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from durably.comm import CommHandler
from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.settings import Clock
from durably.protocol.sync import SyncRequest

from .app_loop import AppLoop
from .calls import EngineCheckpoints, run_call, run_call_sync, sync_of
from .dispatcher import Capacity
from .errors import CallReturnedError
from .link import Heartbeat

_END_SECONDS = 1.0
"""Time for a cancelled function to end before its process stops without it."""


class LocalWorker:
    """Runs calls in this process: ``max_calls`` at a time, until ``refuse``. ``handlers`` are by app id."""

    def __init__(
        self,
        handlers: dict[str, CommHandler],
        max_calls: int,
        checkpoints: EngineCheckpoints,
        heartbeat: Heartbeat,
        app_loop: AppLoop,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._app_loop = app_loop
        self.heartbeat = heartbeat
        self._handlers = handlers
        self._max_calls = max_calls
        self.checkpoints = checkpoints
        self._tasks: set[asyncio.Task[Any]] = set()
        self._late: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._limits: dict[str, FairLimit] = {}

    def capacity(self) -> Capacity:
        function_ids = {function_id for handler in self._handlers.values() for function_id in handler.function_ids}
        max_calls = 0 if self._is_stopping or not function_ids else self._max_calls
        return Capacity(os.getpid(), frozenset(function_ids), max_calls)

    def syncs(self) -> list[SyncRequest]:
        """The sync requests with the functions of each app."""
        return [sync_of(handler) for handler in self._handlers.values()]

    async def run(self, app_id: str, data: CallData) -> Answer:
        """Raises ``CallReturnedError``."""
        handler = self._handlers.get(app_id)
        if handler is None or self._is_stopping:
            raise CallReturnedError(f"process {os.getpid()} does not serve the app {app_id!r}")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await self._run(app_id, data, handler)
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise  # The engine has cancelled it, even if ``finish`` did too.
            raise CallReturnedError(f"process {os.getpid()} stops") from None
        finally:
            self._tasks.discard(task)
            self._late.discard(task)

    async def _run(self, app_id: str, data: CallData, handler: CommHandler) -> Answer:
        """No code of the app runs on this event loop, which is the engine's. Functions get no context variables,
        because those here may belong to any request that has sent an event."""
        if handler.threads is None or handler.is_async(data.function_id):
            return await self._app_loop.run(run_call, handler, data, self.checkpoints, self._clock)
        work = partial(run_call_sync, handler, data, self.checkpoints, self._clock)
        answer = partial(contextvars.Context().run, work)
        if handler.threads.size is None:  # The app passed its own thread pool.
            return await handler.threads.run(answer)
        limit = self._limits.setdefault(app_id, FairLimit(handler.threads.size))
        async with limit.slot(data.function_id, data.priority):
            return await handler.threads.run(answer)

    def refuse(self) -> None:
        """Take no more calls. The capacity is 0 from now on."""
        self._is_stopping = True

    async def finish(self, grace_seconds: float) -> None:
        """After ``refuse``: wait up to ``grace_seconds`` for calls under way, and return the others."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=grace_seconds)
        self._late |= late & self._tasks
        for task in self._late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def wait_ended(self) -> None:
        """Wait for cancelled functions, except functions that block their event loop."""
        await self._app_loop.wait_ended(_END_SECONDS)


class FairLimit:
    """Limits concurrent calls to ``slots``, shared fairly by functions. Belongs to one event loop."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._under_way: Counter[str] = Counter()
        self._waiting: FairQueue[tuple[str, asyncio.Future[None]]] = FairQueue()

    @asynccontextmanager
    async def slot(self, function_id: str, priority: int) -> AsyncIterator[None]:
        """Wait for a slot. ``priority`` moves the call ahead of the function's other calls, by milliseconds."""
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
        while (upcoming := self._waiting.take(self._may_start)) is not None:
            function_id, turn = upcoming
            if not turn.done():
                self._free -= 1
                self._under_way[function_id] += 1
                turn.set_result(None)

    def _may_start(self, function_id: str) -> bool:
        return may_have_another(self._under_way[function_id], self._free)

    def _leave(self, function_id: str) -> None:
        self._free += 1
        self._under_way[function_id] -= 1
        if not self._under_way[function_id]:
            del self._under_way[function_id]
        self._admit()
