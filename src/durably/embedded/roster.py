"""Handing the engine's calls out to the processes that serve its functions: to the least busy of them first."""

import asyncio
from collections import Counter
from typing import Protocol

import msgspec

from durably.engine.answers import Answer, AttemptFailed, Unreached, failed
from durably.engine.embedded.bodies import CallData
from durably.engine.embedded.registry import Function
from durably.engine.embedded.settings import EngineSettings
from durably.engine.flow.fairness import FairQueue, may_have_another
from durably.protocol.errors import ErrorData

from .calls import HandedAnswer, HandedCall, hand_over, read_handed
from .deadlines import Deadlines
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
