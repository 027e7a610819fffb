"""Dispatch of the engine's calls to the processes that serve its functions."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from durably.comm import CommHandler
from durably.engine.core.answers import Answer, AttemptFailed, Unreached, failed
from durably.engine.core.call_body import CallData
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.scheduling.registry import Function
from durably.engine.settings import EngineSettings
from durably.execution import StandIn
from durably.functions.checkpoints import Checkpoints
from durably.protocol.errors import ErrorData

from .calls import HandedAnswer, HandedCall, answer_call, hand_over, read_handed
from .errors import CallHandedBackError, WorkerLostError
from .in_flight import CallKey, InFlightCalls, identity_of


class Offer(msgspec.Struct, frozen=True):
    """What a process offers to do: which functions it serves, and how many calls it takes at a time."""

    process_id: int
    function_ids: frozenset[str] = frozenset()
    max_calls: int = 0


class Worker(Protocol):
    async def answer(self, call: HandedCall) -> HandedAnswer:
        """Raises ``WorkerLostError``, and ``CallHandedBackError`` where it stops before the call has ended."""
        ...


class Seat:
    """A worker on the roster."""

    def __init__(self, worker: Worker, offer: Offer) -> None:
        self.worker = worker
        self.offer = offer
        self.process = identity_of(offer.process_id)
        self.under_way = 0

    def serves(self, function_id: str) -> bool:
        return self.offer.max_calls > 0 and function_id in self.offer.function_ids

    @property
    def room(self) -> int:
        return max(0, self.offer.max_calls - self.under_way)

    @property
    def load(self) -> float:
        return self.under_way / self.offer.max_calls


class Roster:
    """The engine's ``Caller``. Functions share the capacity fairly (``flow.fairness``)."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.in_flight: InFlightCalls | None = None
        self._deadlines = Deadlines(settings.call_timeout.total_seconds())
        self._seats: list[Seat] = []
        self._waiting: FairQueue[tuple[str, asyncio.Future[Seat | None]]] = FairQueue()
        self._under_way: Counter[str] = Counter()

    def add(self, worker: Worker, offer: Offer) -> Seat:
        seat = Seat(worker, offer)
        self._seats.append(seat)
        self._fill()
        return seat

    def change(self, seat: Seat, offer: Offer) -> None:
        seat.offer = offer
        self._release_unserved()
        self._fill()

    def remove(self, seat: Seat) -> None:
        """Calls that it has under way end by themselves."""
        if seat in self._seats:
            self._seats.remove(seat)
        self._release_unserved()

    @property
    def takes_calls(self) -> bool:
        """Whether a process takes calls."""
        return any(seat.offer.max_calls > 0 for seat in self._seats)

    # Caller

    async def call(self, function: Function, data: CallData, body: bytes) -> Answer:
        key = CallKey.of(data)
        if self.in_flight is not None and self.in_flight.take_lost(key):
            return self._lost(WorkerLostError("the process that ran the function was lost, or silent for too long"))
        seat = await self._take_seat(function.id, data.priority)
        if seat is None:
            return _unreached(f"no process that is running serves the function {function.id!r}")
        slot = None if self.in_flight is None else self.in_flight.begin(seat.process, key)
        handed = hand_over(function, data, body, self._settings)
        task = asyncio.current_task()
        assert task is not None
        self._deadlines.begin(task)
        try:
            return read_handed(await seat.worker.answer(handed), self._settings)
        except asyncio.CancelledError:
            if not self._deadlines.end(task):
                raise
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        except CallHandedBackError as error:
            return _unreached(error.message)
        except WorkerLostError as error:
            return self._lost(error)
        finally:
            if self.in_flight is not None and slot is not None:
                self.in_flight.end(slot)
            self._deadlines.end(task)
            self._leave(seat, function.id)

    def _lost(self, error: WorkerLostError) -> Answer:
        """Use up an attempt, as if an app over HTTP breaks the connection: the call may have killed the process.
        The next attempt need not wait."""
        lost = ErrorData(name=error.name, message=error.message)
        return AttemptFailed(lost, retry_at=self._settings.clock.now())

    async def close(self) -> None:
        self._deadlines.close()
        for function_id in self._waiting.functions():
            self._release(function_id)

    async def _take_seat(self, function_id: str, priority: int) -> Seat | None:
        if (seat := self._best(function_id)) is not None:
            return self._enter(seat, function_id)
        if not any(seat.serves(function_id) for seat in self._seats):
            return None
        waiting: asyncio.Future[Seat | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(function_id, self._settings.clock.now() - priority, (function_id, waiting))
        try:
            return await waiting
        except asyncio.CancelledError:
            # The call was given up on while it waited, or just as it was given a seat.
            if not waiting.cancelled() and (seat := waiting.result()) is not None:
                self._leave(seat, function_id)
            raise

    def _enter(self, seat: Seat, function_id: str) -> Seat:
        seat.under_way += 1
        self._under_way[function_id] += 1
        return seat

    def _leave(self, seat: Seat, function_id: str) -> None:
        seat.under_way -= 1
        self._under_way[function_id] -= 1
        if not self._under_way[function_id]:
            del self._under_way[function_id]
        self._fill()

    def _fill(self) -> None:
        """Give waiting calls the free capacity."""
        while (next_call := self._waiting.take(lambda function_id: self._best(function_id) is not None)) is not None:
            function_id, waiting = next_call
            if not waiting.done() and (seat := self._best(function_id)) is not None:
                waiting.set_result(self._enter(seat, function_id))

    def _release_unserved(self) -> None:
        """End the wait of calls that no process can take any more."""
        for function_id in self._waiting.functions():
            if not any(seat.serves(function_id) for seat in self._seats):
                self._release(function_id)

    def _release(self, function_id: str) -> None:
        for _, waiting in self._waiting.remove(function_id):
            if not waiting.done():
                waiting.set_result(None)

    def _best(self, function_id: str) -> Seat | None:
        """The least busy process that may take another call of the function."""
        serving = [seat for seat in self._seats if seat.serves(function_id)]
        if not may_have_another(self._under_way[function_id], sum(seat.room for seat in serving)):
            return None
        return min((seat for seat in serving if seat.room), key=lambda seat: seat.load, default=None)


def _unreached(message: str) -> Unreached:
    return Unreached(ErrorData(name="AppUnreachableError", message=message))


class LocalCaller:
    """A ``Caller``. ``handlers`` are those of the apps by their ids, and may come to be more while it is used.
    ``checkpoints`` is how finished steps reach the engine. ``stand_ins`` tells, for tests, what takes the place of a
    function's steps."""

    def __init__(
        self,
        handlers: Mapping[str, CommHandler],
        settings: EngineSettings,
        checkpoints: Checkpoints,
        stand_ins: Callable[[str], StandIn | None] | None = None,
    ) -> None:
        self._handlers = handlers
        self._settings = settings
        self._checkpoints = checkpoints
        self._stand_ins = stand_ins

    async def call(self, function: Function, data: CallData, body: bytes) -> Answer:
        handler = self._handlers.get(function.app_id)
        if handler is None:
            message = f"this process does not serve the app {function.app_id!r}"
            return Unreached(ErrorData(name="AppUnreachableError", message=message))
        handed = hand_over(function, data, body, self._settings)
        stand_in = self._stand_ins(function.id) if self._stand_ins is not None else None
        try:
            async with asyncio.timeout(self._settings.call_timeout.total_seconds()):
                answer = await answer_call(handed, handler, self._checkpoints, stand_in)
        except TimeoutError:
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        return read_handed(answer, self._settings)

    async def close(self) -> None:
        """Nothing is kept open."""


AnyTask = asyncio.Task[Any]


class Deadlines:
    """Cancels tasks that have not ended ``seconds`` after they began."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[AnyTask, float] = {}  # by the loop's time; those that began first come first
        self._late: set[AnyTask] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: AnyTask) -> None:
        """Let the task, which is the running one, take so long from now on."""
        loop = task.get_loop()
        self._due[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)

    def end(self, task: AnyTask) -> bool:
        """Whether the task was cancelled for this alone, and goes on."""
        self._due.pop(task, None)
        if task not in self._late:
            return False
        self._late.remove(task)
        return task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()
