"""Dispatch of the engine's calls to the processes that serve its functions."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from durably.engine.core.calls import Answer, AttemptFailed, CallData, Unreached, failed
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.model.registry import SyncedFunction
from durably.engine.model.settings import EngineSettings
from durably.protocol.errors import Error, ErrorData
from durably.protocol.text import get_logger

from .nodes.in_flight import CallKey, InFlightCalls, identity_of

UNSERVED_SECONDS = 5.0
"""Seconds from a call that finds no process to the warning."""

_logger = get_logger("durably.engine")


class CallReturnedError(Error):
    """A process that stops returns an unfinished call."""


class WorkerLostError(Error):
    """The process of the call has ended, or has sent no heartbeat for the lease."""


class Capacity(msgspec.Struct, frozen=True):
    """The functions that a process serves, and the limit of its calls.

    ``max_calls`` is the maximum number of concurrent calls.
    """

    process_id: int
    function_ids: frozenset[str] = frozenset()
    max_calls: int = 0


class Worker(Protocol):
    async def run(self, app_id: str, data: CallData) -> Answer:
        """Run a call.

        Raises ``WorkerLostError``, and ``CallReturnedError`` if the worker stops before the call has ended.
        """
        ...


class WorkerSlots:
    """A worker, and its slots for calls."""

    def __init__(self, worker: Worker, capacity: Capacity) -> None:
        self.worker = worker
        self.capacity = capacity
        self.process = identity_of(capacity.process_id)
        self.under_way = 0

    def serves(self, function_id: str) -> bool:
        return self.capacity.max_calls > 0 and function_id in self.capacity.function_ids

    @property
    def load(self) -> float:
        return self.under_way / self.capacity.max_calls


class Dispatcher:
    """The engine's ``Caller``, for functions in the app's processes.

    Functions share the capacity fairly (``flow.fairness``).
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.in_flight: InFlightCalls | None = None
        self._deadlines = Deadlines(settings.call_timeout.total_seconds())
        self._workers: list[WorkerSlots] = []
        self._waiting: FairQueue[tuple[str, asyncio.Future[WorkerSlots | None]]] = FairQueue()
        self._under_way: Counter[str] = Counter()
        self._unserved = UnservedFunctions(lambda function_id: self.takes_calls and not self._is_served(function_id))

    def add(self, worker: Worker, capacity: Capacity) -> WorkerSlots:
        slots = WorkerSlots(worker, capacity)
        self._workers.append(slots)
        self._fill()
        return slots

    def change(self, slots: WorkerSlots, capacity: Capacity) -> None:
        slots.capacity = capacity
        self._release_unserved()
        self._fill()

    def remove(self, slots: WorkerSlots) -> None:
        """Give the worker no more calls. Running calls end on their own."""
        if slots in self._workers:
            self._workers.remove(slots)
        self._release_unserved()

    @property
    def takes_calls(self) -> bool:
        """Whether any process accepts calls."""
        return any(slots.capacity.max_calls > 0 for slots in self._workers)

    # Caller

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        key = CallKey.of(data)
        if self.in_flight is not None and self.in_flight.take_lost(key):
            return self._lost(
                WorkerLostError("the process that ran the function has ended, or was silent for the lease")
            )
        slots = await self._take_slot(function.id, data.priority)
        if slots is None:
            self._unserved.note(function.id)
            return _unreached(f"no running process serves the function {function.id!r}")
        index = None if self.in_flight is None else self.in_flight.begin(slots.process, key)
        task = asyncio.current_task()
        assert task is not None
        self._deadlines.begin(task)
        try:
            return await slots.worker.run(function.app_id, data)
        except asyncio.CancelledError:
            if not self._deadlines.end(task):
                raise
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        except CallReturnedError as error:
            return _unreached(error.message)
        except WorkerLostError as error:
            return self._lost(error)
        finally:
            if self.in_flight is not None and index is not None:
                self.in_flight.end(index)
            self._deadlines.end(task)
            self._leave(slots, function.id)

    def _lost(self, error: WorkerLostError) -> Answer:
        """A failed attempt, as when an app over HTTP closes the connection.

        The call may have killed the process. The next attempt starts immediately.
        """
        lost = ErrorData(name=error.name, message=error.message)
        return AttemptFailed(lost, retry_at=self._settings.clock.now())

    async def close(self) -> None:
        self._deadlines.close()
        self._unserved.close()
        for function_id in self._waiting.functions():
            self._release(function_id)

    async def _take_slot(self, function_id: str, priority: int) -> WorkerSlots | None:
        if (slots := self._best(function_id)) is not None:
            return self._enter(slots, function_id)
        if not self._is_served(function_id):
            return None
        waiting: asyncio.Future[WorkerSlots | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(function_id, self._settings.clock.now() - priority, (function_id, waiting))
        try:
            return await waiting
        except asyncio.CancelledError:
            # The call was cancelled while it waited, or just when it got a slot.
            if not waiting.cancelled() and (slots := waiting.result()) is not None:
                self._leave(slots, function_id)
            raise

    def _enter(self, slots: WorkerSlots, function_id: str) -> WorkerSlots:
        slots.under_way += 1
        self._under_way[function_id] += 1
        return slots

    def _leave(self, slots: WorkerSlots, function_id: str) -> None:
        slots.under_way -= 1
        self._under_way[function_id] -= 1
        if not self._under_way[function_id]:
            del self._under_way[function_id]
        self._fill()

    def _fill(self) -> None:
        """Give free slots to waiting calls."""
        while (next_call := self._waiting.take(lambda function_id: self._best(function_id) is not None)) is not None:
            function_id, waiting = next_call
            if not waiting.done() and (slots := self._best(function_id)) is not None:
                waiting.set_result(self._enter(slots, function_id))

    def _release_unserved(self) -> None:
        """Stop waiting calls whose function no process serves any more."""
        for function_id in self._waiting.functions():
            if not self._is_served(function_id):
                self._release(function_id)

    def _is_served(self, function_id: str) -> bool:
        return any(slots.serves(function_id) for slots in self._workers)

    def _release(self, function_id: str) -> None:
        for _, waiting in self._waiting.remove(function_id):
            if not waiting.done():
                waiting.set_result(None)

    def _best(self, function_id: str) -> WorkerSlots | None:
        """The least busy worker that may take another call of the function."""
        best, free = None, 0
        for slots in self._workers:
            own_free = slots.capacity.max_calls - slots.under_way
            if own_free > 0 and function_id in slots.capacity.function_ids:
                free += own_free
                if best is None or slots.load < best.load:
                    best = slots
        return best if may_have_another(self._under_way[function_id], free) else None


class UnservedFunctions:
    """Warns of functions whose runs wait, because no process serves them.

    It warns once for each function. ``is_unserved`` returns whether processes run functions, and none runs this one. It
    is asked a few seconds after a
    call, because the processes of an app do not start at the same time.
    """

    def __init__(self, is_unserved: Callable[[str], bool]) -> None:
        self._is_unserved = is_unserved
        self._warned: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def note(self, function_id: str) -> None:
        """Record that a call of the function found no process."""
        if function_id not in self._warned and function_id not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[function_id] = loop.call_later(UNSERVED_SECONDS, self._check, function_id)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _check(self, function_id: str) -> None:
        del self._timers[function_id]
        if self._is_unserved(function_id):
            self._warned.add(function_id)
            _logger.warning(
                "no running process serves the function %r, so its runs wait. If it was renamed or removed, "
                "serve it again under this id, with trigger=[], until its runs have ended; or cancel them: durably "
                "runs cancel --function %s",
                function_id,
                function_id,
            )


def _unreached(message: str) -> Unreached:
    return Unreached(ErrorData(name="AppUnreachableError", message=message))


AnyTask = asyncio.Task[Any]


class Deadlines:
    """Cancels tasks that have not ended ``seconds`` after they began."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[AnyTask, float] = {}  # the loop's time, in order of start
        self._late: set[AnyTask] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: AnyTask) -> None:
        """Start the timeout of ``task``, which must be the running task."""
        loop = task.get_loop()
        self._due[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._check, loop)

    def end(self, task: AnyTask) -> bool:
        """Cancel the timeout. Returns whether only the timeout cancelled the task.

        If so, the task continues.
        """
        self._due.pop(task, None)
        if task not in self._late:
            return False
        self._late.remove(task)
        return task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._check, loop)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()
