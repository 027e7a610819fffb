"""Dispatch of the engine's calls to the processes that serve its functions."""

import asyncio
import contextlib
import mmap
import os
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import msgspec

from durably.engine.core.calls import Answer, AttemptFailed, CallData, Unreached, failed
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import WorkerLostError
from durably.protocol.errors import Error, ErrorData
from durably.protocol.text import get_logger

UNSERVED_SECONDS = 5.0
"""Seconds from a call that finds no process to the warning."""

_logger = get_logger("durably.engine")


class CallReturnedError(Error):
    """A process that stops returns an unfinished call."""


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
    """A worker, and its slots for calls. ``is_local``: it is in this process."""

    def __init__(self, worker: Worker, capacity: Capacity, *, is_local: bool) -> None:
        self.worker = worker
        self.capacity = capacity
        self.is_local = is_local
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
        self._call_seconds = settings.call_timeout.total_seconds()
        self.running: RunningCalls | None = None
        self._workers: list[WorkerSlots] = []
        self._waiting: FairQueue[tuple[str, asyncio.Future[WorkerSlots | None]]] = FairQueue()
        self._under_way: Counter[str] = Counter()
        self._unserved: dict[str, asyncio.TimerHandle] = {}
        """Functions for which a call found no process, and the timers of their warnings, one for each function."""
        self._deadlines: dict[asyncio.Timeout, float] = {}
        """When calls under way time out, by the loop's time, the earliest first. They share a timer."""
        self._timer: asyncio.TimerHandle | None = None
        self.on_served: Callable[[Collection[str]], None] | None = None
        """Called with functions that no worker served, when one does."""

    def add(self, worker: Worker, capacity: Capacity, *, is_local: bool = False) -> WorkerSlots:
        slots = WorkerSlots(worker, Capacity(capacity.process_id), is_local=is_local)
        self._workers.append(slots)
        self.change(slots, capacity)
        return slots

    def change(self, slots: WorkerSlots, capacity: Capacity) -> None:
        unserved = [each for each in capacity.function_ids if self.on_served is not None and not self._is_served(each)]
        slots.capacity = capacity
        self._release_unserved()
        self._fill()
        if self.on_served is not None and unserved:
            self.on_served(unserved)

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
        key = f"{data.call.attempt} {data.run_id} {data.call.step_id}"
        if self.running is not None and self.running.take_lost(key):
            return self._lost(
                WorkerLostError("the process that ran the function has ended, or was silent for the lease")
            )
        slots = await self._take_slot(function.id, data.priority)
        if slots is None:
            self._note_unserved(function.id)
            return _unreached(f"no running process serves the function {function.id!r}")
        record = self.running.begin(key) if self.running is not None and slots.is_local else None
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._limit(timeout)
                return await slots.worker.run(function.app_id, data)
        except TimeoutError:
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        except CallReturnedError as error:
            return _unreached(error.message)
        except WorkerLostError as error:
            return self._lost(error)
        finally:
            self._deadlines.pop(timeout, None)
            if self.running is not None and record is not None:
                self.running.end(record)
            self._leave(slots, function.id)

    def _lost(self, error: WorkerLostError) -> Answer:
        """A failed attempt, as when an app over HTTP closes the connection.

        The call may have killed the process. The next attempt starts immediately.
        """
        lost = ErrorData(name=error.name, message=error.message)
        return AttemptFailed(lost, retry_at=self._settings.clock.now())

    def _limit(self, timeout: asyncio.Timeout) -> None:
        """Let ``timeout`` expire after ``call_timeout``."""
        loop = asyncio.get_running_loop()
        self._deadlines[timeout] = due = loop.time() + self._call_seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for timeout, due in list(self._deadlines.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._expire, loop)
                return
            del self._deadlines[timeout]
            timeout.reschedule(due)

    async def close(self) -> None:
        for timer in (self._timer, *self._unserved.values()):
            if timer is not None:
                timer.cancel()
        self._release_unserved(all_functions=True)

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

    def _is_served(self, function_id: str) -> bool:
        return any(slots.serves(function_id) for slots in self._workers)

    def _note_unserved(self, function_id: str) -> None:
        """Warn of a function whose runs wait, unless a process serves it soon: an app's processes start one by one."""

        def check() -> None:
            if self.takes_calls and not self._is_served(function_id):
                _logger.warning(
                    "no running process serves the function %r, so its runs wait. If it was renamed or removed, "
                    "serve it again under this id, with trigger=[], until its runs have ended; or cancel them: durably "
                    "runs cancel --function %s",
                    function_id,
                    function_id,
                )
            else:
                del self._unserved[function_id]

        if function_id not in self._unserved:
            self._unserved[function_id] = asyncio.get_running_loop().call_later(UNSERVED_SECONDS, check)

    def _release_unserved(self, *, all_functions: bool = False) -> None:
        """Stop waiting calls whose function no process serves any more."""
        for function_id in self._waiting.functions():
            if all_functions or not self._is_served(function_id):
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


class RunningCalls:
    """The calls that the leader's own process runs, in a file that the next leader reads.

    A call that was running when the leader ended uses up an attempt. So a step that kills its process runs a limited
    number of times. The calls of followers need no record: the leader notices their end. The file is never flushed to
    disk, because a power failure is not caused by a step. If it cannot be written or read, such calls do not count as
    attempts.
    """

    _BYTES = 160
    _FREE = b" " * _BYTES
    _GROWTH = 1024

    def __init__(self, directory: Path) -> None:
        """Each leader makes a new file, so that a former one cannot change it. Raises ``OSError``."""
        path, new = directory / "calls", directory / "calls.new"
        content = b""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            _logger.warning("the calls that an earlier leader ran cannot be read from %s: %s", path, error.strerror)
        keys = set[str]()
        for at in range(0, len(content), self._BYTES):
            with contextlib.suppress(UnicodeDecodeError):
                keys.add(content[at : at + self._BYTES].strip().decode())
        self._file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._records: mmap.mmap | None = None
        self._free: list[int] = []
        self._size = 0
        self._lost = {key: self.begin(key) for key in keys if key}
        new.replace(path)

    def take_lost(self, key: str) -> bool:
        """Whether the call was running when an earlier leader ended. Returns true once per call."""
        record = self._lost.pop(key, None)
        if record is None:
            return False
        self.end(record)
        return True

    def begin(self, key: str) -> int:
        """Record a call before it runs. Returns the index of its record."""
        if self._free:
            record = self._free.pop()
        else:
            record, self._size = self._size, self._size + 1
        self._write(record, key.encode().ljust(self._BYTES)[: self._BYTES])
        return record

    def end(self, record: int) -> None:
        """Remove the record of a call that has ended or was returned."""
        self._write(record, self._FREE)
        self._free.append(record)

    def close(self) -> None:
        """Stop recording calls."""
        records, self._records = self._records, None
        if records is not None:
            records.close()
        os.close(self._file)
        self._file = -1

    def _write(self, record: int, content: bytes) -> None:
        """Write to mapped memory. A system call would release Python's global lock to other threads."""
        at = record * self._BYTES
        if self._file >= 0 and (self._records is None or at >= len(self._records)):
            size = 0 if self._records is None else len(self._records)
            with contextlib.suppress(OSError):
                # Write first: a mapped page that a full disk cannot store ends the process (SIGBUS).
                os.pwrite(self._file, self._FREE * self._GROWTH, size)
                self._records = mmap.mmap(self._file, size + self._BYTES * self._GROWTH)
        if self._records is not None and at < len(self._records):
            self._records[at : at + self._BYTES] = content


def _unreached(message: str) -> Unreached:
    return Unreached(ErrorData(name="AppUnreachableError", message=message))
