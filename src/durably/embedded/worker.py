"""Execution of the engine's calls in this process, and fair use of its threads."""

import asyncio
import contextlib
import contextvars
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from durably.comm import CommHandler
from durably.engine.core.calls import Answer, CallData
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.model.dispatcher import CallReturnedError, Capacity
from durably.engine.model.settings import Clock
from durably.io.background_loop import get_background_loop
from durably.io.worker_threads import WorkerThreads
from durably.protocol.sync import SyncRequest

from .calls import EngineCheckpoints, Heartbeat, failed_call, run_call, run_call_sync, sync_of

T = TypeVar("T")
P = ParamSpec("P")

_END_SECONDS = 1.0
"""Seconds for a cancelled function to end before its process stops without it."""


class LocalWorker:
    """Runs up to ``max_calls`` concurrent calls in this process, until ``refuse``.

    ``handlers`` are by app id.
    """

    def __init__(
        self,
        handlers: dict[str, CommHandler],
        max_calls: int,
        checkpoints: EngineCheckpoints,
        heartbeat: Heartbeat,
        app_loop: "AppLoop",
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

    def serves(self, function_id: str) -> bool:
        return any(function_id in handler.function_ids for handler in self._handlers.values())

    def syncs(self) -> list[SyncRequest]:
        """The sync requests with the functions of each app."""
        return [sync_of(handler) for handler in self._handlers.values()]

    async def run(self, app_id: str, data: CallData) -> Answer:
        """Run a call on the app's event loop, or in a thread.

        Raises ``CallReturnedError``.

        No code of the app runs on this event loop, which is the engine's. Functions run in an empty context: the
        current one may belong to an unrelated request.
        """
        handler = self._handlers.get(app_id)
        if handler is None or self._is_stopping:
            raise CallReturnedError(f"process {os.getpid()} does not serve the app {app_id!r}")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if handler.threads is None or handler.is_async(data.function_id):
                return await self._app_loop.run(run_call, handler, data, self.checkpoints, self._clock)
            return await self._run_in_thread(app_id, data, handler, handler.threads)
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise  # The engine has cancelled it, even if ``finish`` did too.
            raise CallReturnedError(f"process {os.getpid()} stops") from None
        except CallReturnedError:
            raise
        except Exception as error:  # Such as a thread pool of the app that is shut down.
            if self._is_stopping:
                raise CallReturnedError(f"process {os.getpid()} stops") from error
            return failed_call(data, error, self._clock)
        finally:
            self._tasks.discard(task)
            self._late.discard(task)

    async def _run_in_thread(self, app_id: str, data: CallData, handler: CommHandler, threads: WorkerThreads) -> Answer:
        work = partial(run_call_sync, handler, data, self.checkpoints, self._clock)
        answer = partial(contextvars.Context().run, work)
        if threads.size is None:  # The app passed its own thread pool.
            return await threads.run(answer)
        limit = self._limits.setdefault(app_id, FairLimit(threads.size))
        async with limit.slot(data.function_id, data.priority):
            return await threads.run(answer)

    def refuse(self) -> None:
        """Accept no more calls. The capacity is 0 from now on."""
        self._is_stopping = True

    async def finish(self, grace_seconds: float) -> None:
        """Wait for running calls. Call it after ``refuse``.

        The wait is at most ``grace_seconds``. Calls that have not ended by then are returned.
        """
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
    """Limits concurrent calls to ``slots``, shared fairly by functions.

    Belongs to one event loop.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._under_way: Counter[str] = Counter()
        self._waiting: FairQueue[tuple[str, asyncio.Future[None]]] = FairQueue()

    @asynccontextmanager
    async def slot(self, function_id: str, priority: int) -> AsyncIterator[None]:
        """Wait for a slot.

        ``priority`` moves the call ahead of the function's other calls, by milliseconds.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(function_id, time.monotonic_ns() // 1_000_000 - priority, (function_id, waiter))
        self._admit()
        try:
            await waiter
            yield
        finally:
            if waiter.done() and not waiter.cancelled():
                self._leave(function_id)

    def _admit(self) -> None:
        while (upcoming := self._waiting.take(self._may_start)) is not None:
            function_id, waiter = upcoming
            if not waiter.done():
                self._free -= 1
                self._under_way[function_id] += 1
                waiter.set_result(None)

    def _may_start(self, function_id: str) -> bool:
        return may_have_another(self._under_way[function_id], self._free)

    def _leave(self, function_id: str) -> None:
        self._free += 1
        self._under_way[function_id] -= 1
        if not self._under_way[function_id]:
            del self._under_way[function_id]
        self._admit()


class AppLoop:
    """Runs async functions on the app's event loop.

    While ``loop`` is ``None``, they run on the process's background event loop.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[_Call[Any]] = set()
        self._to_app: _Callbacks | None = None
        self._to_engine: _Callbacks | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the loop is known and runs."""
        return self.loop is not None and self.loop.is_running()

    async def run(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function on the app's loop, and wait for it.

        It waits on the running loop, the engine's. The coroutine has no context variables. If this is cancelled, it
        cancels the coroutine and does not wait for its end: see ``wait_ended``. Raises the coroutine's exception,
        ``RuntimeError`` if the coroutine is cancelled by itself, and ``CallReturnedError`` if the app's loop does not
        run any more.
        """
        to_app = self._to_app = _callbacks_on(self.loop or get_background_loop().loop, self._to_app)
        to_engine = self._to_engine = _callbacks_on(asyncio.get_running_loop(), self._to_engine)
        call = _Call(function(*args, **kwargs), to_app.loop, to_engine, self._under_way)
        try:
            to_app.add(call.begin)
        except RuntimeError:
            call.coroutine.close()
            raise CallReturnedError("the app's event loop is closed") from None
        self._under_way.add(call)
        try:
            await call.ended
        except asyncio.CancelledError:
            call.ended = to_engine.loop.create_future()  # for ``wait_ended``
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                to_app.add(call.cancel)
            raise
        assert call.task is not None
        if call.task.cancelled():
            # Otherwise the attempt would never end, and its run would wait forever.
            raise RuntimeError("the call was cancelled by the app's own code (asyncio.CancelledError)")
        return call.task.result()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until all coroutines have ended, including cancelled ones.

        The wait is at most ``seconds``.
        """
        if self._under_way:
            await asyncio.wait({call.ended for call in self._under_way}, timeout=seconds)


class _Call(Generic[T]):
    """A coroutine on the app's loop, and ``ended``, which belongs to the engine's loop.

    The garbage collector visits whatever calls under way hold, hence few objects and no closures.
    """

    __slots__ = ("_app_loop", "_to_engine", "_under_way", "coroutine", "ended", "task")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        app_loop: asyncio.AbstractEventLoop,
        to_engine: "_Callbacks",
        under_way: "set[_Call[Any]]",
    ) -> None:
        self.coroutine = coroutine
        self.ended: asyncio.Future[None] = to_engine.loop.create_future()
        self.task: asyncio.Task[T] | None = None
        self._app_loop, self._to_engine, self._under_way = app_loop, to_engine, under_way

    def begin(self) -> None:  # on the app's loop
        self.task = self._app_loop.create_task(self.coroutine, context=contextvars.Context())
        self.task.add_done_callback(self._report_end)

    def cancel(self) -> None:  # on the app's loop
        if self.task is not None:
            self.task.cancel()

    def _report_end(self, _: object) -> None:
        self._to_engine.add(self._end)

    def _end(self) -> None:
        self._under_way.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)


class _Callbacks:
    """Calls callbacks of another thread on ``loop``, in their order.

    Several waiting callbacks wake it once.

    ``add`` appends before it reads ``_is_woken``, and ``_call`` clears that before it reads the queue. So no callback
    is missed.
    """

    __slots__ = ("_is_woken", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_woken = False

    def add(self, callback: Callable[[], None]) -> None:
        """Raises ``RuntimeError`` if the loop is closed."""
        self._waiting.append(callback)
        if not self._is_woken or self.loop.is_closed():
            self._wake()

    def _wake(self) -> None:
        self._is_woken = True
        self.loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        self._is_woken = False
        number = len(self._waiting)
        try:
            while number:
                number -= 1
                self._waiting.popleft()()
        finally:
            if number:  # A callback raised, which the loop logs.
                self._wake()


def _callbacks_on(loop: asyncio.AbstractEventLoop, before: _Callbacks | None) -> _Callbacks:
    return before if before is not None and before.loop is loop else _Callbacks(loop)
