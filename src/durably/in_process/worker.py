"""The functions that a process runs for the engine, and fair use of their threads."""

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
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.functions.checkpoints import Checkpoints
from durably.protocol.sync import SyncRequest

from .calls import HandedAnswer, HandedCall, answer_call, answer_call_sync, sync_of
from .dispatcher import Offer
from .errors import CallHandedBackError
from .heartbeat import Pulse
from .threads import AppLoop

_END_SECONDS = 1.0
"""Time for a cancelled function to end before its process stops without it."""


class LocalWorker:
    """This process. ``handlers`` are those of the apps by their ids. It takes ``max_calls`` calls at a time, until
    it is told to refuse them. ``pulse`` beats while it is in contact with the others."""

    def __init__(
        self,
        handlers: dict[str, CommHandler],
        max_calls: int,
        checkpoints: Checkpoints,
        pulse: Pulse,
        app_loop: AppLoop,
    ) -> None:
        self._app_loop = app_loop
        self.pulse = pulse
        self._handlers = handlers
        self._max_calls = max_calls
        self._checkpoints = checkpoints
        self._tasks: set[asyncio.Task[Any]] = set()
        self._late: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._gates: dict[str, FairGate] = {}

    def offer(self) -> Offer:
        function_ids = {function_id for handler in self._handlers.values() for function_id in handler.function_ids}
        max_calls = 0 if self._is_stopping or not function_ids else self._max_calls
        return Offer(os.getpid(), frozenset(function_ids), max_calls)

    def syncs(self) -> list[SyncRequest]:
        """What tells the engine the functions of each app."""
        return [sync_of(handler) for handler in self._handlers.values()]

    async def answer(self, call: HandedCall) -> HandedAnswer:
        """Raises ``CallHandedBackError``."""
        handler = self._handlers.get(call.app_id)
        if handler is None or self._is_stopping:
            raise CallHandedBackError(f"process {os.getpid()} does not serve the app {call.app_id!r}")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await self._run(call, handler)
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise  # given up by others, whatever else is the matter
            raise CallHandedBackError(f"process {os.getpid()} stops") from None
        finally:
            self._tasks.discard(task)
            self._late.discard(task)

    async def _run(self, call: HandedCall, handler: CommHandler) -> HandedAnswer:
        """No code of the app runs on this event loop, which is the engine's. Functions get no context variables,
        because those here may belong to any request that has sent an event."""
        if handler.threads is None or handler.is_async(call.function_id):
            return await self._app_loop.run(answer_call, call, handler, self._checkpoints)
        answer = partial(contextvars.Context().run, partial(answer_call_sync, call, handler, self._checkpoints))
        if handler.threads.size is None:  # The app passed its own thread pool.
            return await handler.threads.run(answer)
        gate = self._gates.setdefault(call.app_id, FairGate(handler.threads.size))
        async with gate.through(call.function_id, call.priority):
            return await handler.threads.run(answer)

    def refuse(self) -> None:
        """Take no more calls; what is offered from now on is none."""
        self._is_stopping = True

    async def finish(self, grace_seconds: float) -> None:
        """After ``refuse``: let calls under way end, and hand back those that have not by then."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=grace_seconds)
        self._late |= late & self._tasks
        for task in self._late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def wait_ended(self) -> None:
        """Wait for functions that were given up, except functions that block their event loop."""
        await self._app_loop.wait_ended(_END_SECONDS)


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
