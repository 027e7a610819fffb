"""Handing the engine's calls out to the processes that serve its functions: to the least busy of them first."""

import asyncio
from collections import deque
from typing import Protocol

import msgspec

from durably.engine.answers import Answer, AttemptFailed, Unreached, failed
from durably.engine.embedded.bodies import CallData
from durably.engine.embedded.registry import Function
from durably.engine.embedded.settings import EngineSettings
from durably.protocol.errors import ErrorData

from .calls import HandedAnswer, HandedCall, hand_over, read_handed
from .deadlines import Deadlines
from .errors import CallHandedBackError, WorkerLostError


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
        self.under_way = 0

    def serves(self, function_id: str) -> bool:
        return self.offer.max_calls > 0 and function_id in self.offer.function_ids

    @property
    def has_room(self) -> bool:
        return self.under_way < self.offer.max_calls

    @property
    def load(self) -> float:
        return self.under_way / self.offer.max_calls


class _Waiting(msgspec.Struct, frozen=True):
    function_id: str
    seat: asyncio.Future[Seat | None]


class Roster:
    """The engine's ``Caller``."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._deadlines = Deadlines(settings.call_timeout.total_seconds())
        self._seats: list[Seat] = []
        self._waiting: deque[_Waiting] = deque()

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

    # Caller

    async def call(self, function: Function, data: CallData, body: bytes) -> Answer:
        seat = await self._take_seat(function.id)
        if seat is None:
            return _unreached(f"no process that is running serves the function {function.id!r}")
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
            # As with an app over HTTP that breaks off, this uses up an attempt: the call may be what brought the
            # process down. There is no reason to wait with the next.
            lost = ErrorData(name=error.name, message=error.message)
            return AttemptFailed(lost, retry_at=self._settings.clock.now())
        finally:
            self._deadlines.end(task)
            seat.under_way -= 1
            self._fill()

    async def close(self) -> None:
        self._deadlines.close()
        for waiting in self._waiting:
            if not waiting.seat.done():
                waiting.seat.set_result(None)

    async def _take_seat(self, function_id: str) -> Seat | None:
        if (seat := self._best(function_id)) is not None:
            seat.under_way += 1
            return seat
        if not any(seat.serves(function_id) for seat in self._seats):
            return None
        waiting = _Waiting(function_id, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            return await waiting.seat
        except asyncio.CancelledError:
            self._give_back(waiting)
            raise

    def _give_back(self, waiting: _Waiting) -> None:
        """A call was given up on while it waited, or just as it was given a seat."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif not waiting.seat.cancelled() and (seat := waiting.seat.result()) is not None:
            seat.under_way -= 1
            self._fill()

    def _fill(self) -> None:
        """Let those who wait have what room there is, in the order in which they came."""
        passed_over: deque[_Waiting] = deque()
        while self._waiting and any(seat.has_room for seat in self._seats):
            waiting = self._waiting.popleft()
            if waiting.seat.done():
                continue
            seat = self._best(waiting.function_id)
            if seat is None:
                passed_over.append(waiting)
            else:
                seat.under_way += 1
                waiting.seat.set_result(seat)
        self._waiting.extendleft(reversed(passed_over))

    def _release_unserved(self) -> None:
        """Nobody is left to do what these wait for."""
        for waiting in self._waiting:
            if not waiting.seat.done() and not any(seat.serves(waiting.function_id) for seat in self._seats):
                waiting.seat.set_result(None)

    def _best(self, function_id: str) -> Seat | None:
        with_room = [seat for seat in self._seats if seat.has_room and seat.serves(function_id)]
        return min(with_room, key=lambda seat: seat.load, default=None)


def _unreached(message: str) -> Unreached:
    return Unreached(ErrorData(name="AppUnreachableError", message=message))
