"""The slots that this process leases for the functions of one app."""

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from durably.engine.model.subscriptions import SparseLog
from durably.protocol.text import get_logger

from . import lease_time
from .call_slots import CallSlots
from .function_slots import FunctionLimits, FunctionSlots, ReadLimit, fair_shares
from .slot_pools import LeaseAnswer, LeaseRequest, WantedSlots

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
"""Seconds between requests without an answer."""
_RELEASE_SECONDS = 2.0

_ANSWER_SECONDS = 1.0
"""Minimum seconds that a request waits for slots that other functions could use. It is longer if answers are slow."""

_SILENT_SECONDS = 3.0
"""Seconds of failed requests before a log line."""

_log = SparseLog(get_logger("durably.engine"))

Send = Callable[[LeaseRequest], Awaitable[LeaseAnswer]]
"""Sends a request to the workflow of the app's slots."""


class SlotLostError(Exception):
    """The lease of a call's slot has ended."""


class SlotsClosedError(Exception):
    """The process stops, or a call has waited too long.

    The call's function was not started.
    """


class _Lease:
    """A lease of this process. Times are those of ``lease_time.now``."""

    def __init__(self) -> None:
        self.process = str(uuid.uuid4())
        self.number = 0
        self.end = 0.0
        self.next_renewal = 0.0
        self.next_return = 0.0
        """Next time to return unused slots."""
        self.may_get_slots = False
        """Whether a request for slots has no answer yet."""
        self.scopes: set[asyncio.Timeout] = set()
        """The calls with slots."""


class ProcessSlots:
    """Divides the slots of a process, at most ``most``, among its apps."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.leases: list[SlotLeases] = []

    def room_of(self, leases: "SlotLeases") -> int:
        """The number of slots that an app may have.

        They are the slots that no other app has, and at least an equal share.
        """
        others = sum(each.held for each in self.leases if each is not leases)
        return max(self.most // len(self.leases), self.most - others, 1)


class SlotLeases:
    """The slots of the functions of an app, for calls of one event loop.

    ``most`` is the maximum number of slots of the process. ``shared`` divides them among the apps of the process.
    """

    def __init__(
        self,
        send: Send,
        read_limit: ReadLimit,
        most: int,
        shared: "ProcessSlots | None" = None,
    ) -> None:
        self._send = send
        self._limits = FunctionLimits(read_limit, self._note_limit)
        self._most = most
        self._shared = shared or ProcessSlots(most)
        self._shared.leases.append(self)
        self._lease = _Lease()
        self._pools: dict[str, FunctionSlots] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Future[LeaseAnswer]] = set()
        self._failing_since: float | None = None
        self._is_closed = False
        self._is_short = False
        """Whether functions need more slots than the process may have."""
        self._answer_timeout = _ANSWER_SECONDS

    def add(self, function_id: str) -> CallSlots:
        """The slots of a temporalio worker that makes the calls of a function."""
        pool = FunctionSlots(CallSlots(1, on_close=self._stop_waiting), self._most)
        self._pools[function_id] = pool
        return pool.calls

    @asynccontextmanager
    async def slot(self, function_id: str, timeout: float) -> AsyncIterator[None]:
        """A slot for a call, while its lease lasts.

        Raises ``SlotLostError`` if the lease ends before the call, even if the process notices it later. Raises
        ``SlotsClosedError`` after ``timeout`` seconds without a slot.
        """
        pool = self._pools[function_id]
        await self._wait(pool, timeout)
        if pool.unlimited_until:
            yield
            return
        lease, is_cut_off = self._lease, False
        pool.begin_call(lease_time.now())
        scope = asyncio.timeout_at(_loop_time(lease.end))
        lease.scopes.add(scope)
        try:
            async with scope:
                yield
                if lease_time.now() >= lease.end:
                    raise SlotLostError
        except TimeoutError:
            if scope.expired():
                raise SlotLostError from None
            raise
        except BaseException:  # The call was cancelled, or returned.
            is_cut_off = pool.calls.is_closed
            raise
        finally:
            lease.scopes.discard(scope)
            if lease is self._lease and not is_cut_off:
                pool.end_call(lease_time.now())
                if pool.local_share is not None:
                    self._divide()
                pool.wake()
                if pool.has_to_return:
                    self._changed.set()

    async def close(self) -> None:
        """Return the slots, except those that steps may still use.

        These are free at the end of the lease.
        """
        self._is_closed = True
        self._stop_waiting()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for asking in self._asking:
            asking.cancel()
        self._limits.close()
        if self._has_lease or self._lease.may_get_slots:
            kept = {}
            for function_id, pool in self._pools.items():
                pool.held = min(pool.held, pool.in_use)
                if pool.held:
                    kept[function_id] = WantedSlots(pool.held, 0, pool.limit or pool.held)
            self._lease.may_get_slots = False
            self._lease.number += 1
            request = LeaseRequest(
                self._lease.process, self._lease.number, round(lease_time.LEASE_SECONDS * 1000), kept
            )
            with contextlib.suppress(Exception):  # Otherwise the slots are free at the end of the lease.
                await asyncio.wait_for(self._send(request), _RELEASE_SECONDS)

    # calls

    async def _wait(self, pool: FunctionSlots, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not (self._is_closed or pool.calls.is_closed):
                    if self._may_start(pool):
                        return
                    await self._wait_for_change(pool)
        except TimeoutError:
            pass
        raise SlotsClosedError

    async def _wait_for_change(self, pool: FunctionSlots) -> None:
        future = asyncio.get_running_loop().create_future()
        pool.waiting.append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._changed.set()
        try:
            await future
        finally:
            pool.waiting.remove(future)
            if self._needs_no_slots:
                self._changed.set()

    def _may_start(self, pool: FunctionSlots) -> bool:
        now = lease_time.now()
        if now < pool.unlimited_until:
            return True
        pool.unlimited_until = 0.0
        return now < self._lease.end and pool.in_use < pool.usable

    def _stop_waiting(self) -> None:
        for pool in self._pools.values():
            pool.wake()

    # requests

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._wait_until_due()
            has_progress = await self._request()
            if has_progress:
                pause = _FIRST_PAUSE_SECONDS
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _wait_until_due(self) -> None:
        while not self._is_due():
            self._changed.clear()
            now = lease_time.now()
            times = [pool.next_request for pool in self._pools.values() if pool.waiting and pool.next_request > now]
            if self._has_lease:
                times.append(self._lease.next_renewal)
            timeout = min(times) - now if times else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)

    @property
    def _has_lease(self) -> bool:
        return any(pool.held for pool in self._pools.values())

    @property
    def _needs_no_slots(self) -> bool:
        """Whether no call needs the slots that were requested."""
        is_waiting = any(pool.waiting for pool in self._pools.values())
        return self._lease.may_get_slots and not self._has_lease and not is_waiting

    def _is_due(self, asked: LeaseRequest | None = None) -> bool:
        """Whether another request is due while one has no answer yet."""
        if self._has_lease and lease_time.now() >= self._lease.next_renewal:
            return True
        if self._needs_no_slots and (asked is None or _asks_for_any(asked)):
            return True
        room, now = self._divide(), lease_time.now()
        return any(
            pool.has_to_return
            or (room and pool.needed and now >= pool.next_request and not _asks_for(asked, function_id))
            for function_id, pool in self._pools.items()
        )

    def _divide(self) -> int:
        """Divide the slots among functions that need more than the process may have.

        Returns the number of slots that it may still request.
        """
        pools, most = [pool for pool in self._pools.values() if pool.demand or pool.held], self._shared.room_of(self)
        self._is_short = sum(max(pool.demand, pool.held) for pool in pools) > most
        shares = fair_shares(pools, most, lease_time.now()) if self._is_short else {}
        for pool in pools:
            usable, pool.local_share = pool.usable, shares.get(pool)
            if pool.usable > usable:
                pool.wake()
        return max(most - self.held, 0)

    @property
    def held(self) -> int:
        return sum(pool.held for pool in self._pools.values())

    async def _request(self) -> bool:
        """Send a request. Returns whether anything changed."""
        if self._lease.end and lease_time.now() >= self._lease.end:
            if self._has_lease or self._lease.scopes:
                message = "process %d has lost its slots, which it could not renew for %.0f s: their calls are repeated"
                _log.log(logging.WARNING, message, os.getpid(), lease_time.USE_SECONDS)
                self._lose()
            else:
                self._lease.end = 0.0  # The process had returned all slots.
        try:
            await self._limits.refresh({each: pool for each, pool in self._pools.items() if pool.held or pool.waiting})
            sent_at = lease_time.now()
            request = self._make_request(sent_at)
            if not (request.functions or self._lease.end or self._lease.may_get_slots):
                return True
            answer = await self._answer_of(request, sent_at)
        except Exception as error:  # The server is unreachable, or the workflow continues in another execution.
            self._lease.next_renewal = 0.0
            self._note_error(error)
            return False
        self._failing_since = None
        return answer is None or self._apply(answer, request, sent_at)

    def _note_error(self, error: Exception) -> None:
        """Log an error that lasts: calls of functions with a limit wait."""
        now = lease_time.now()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > _SILENT_SECONDS:
            message = "process %d gets no slots for functions with a concurrency limit, and tries again: %s"
            _log.log(logging.WARNING, message, os.getpid(), error)

    def _note_limit(self, pool: FunctionSlots, has_changed: bool) -> None:
        if pool.limit is None:
            pool.resize()
            pool.wake()
        if has_changed:
            self._lease.next_renewal = 0.0  # Report the number to the workflow immediately.
            self._changed.set()

    def _make_request(self, now: float) -> LeaseRequest:
        """The next request. Slots that it returns are not used from now on."""
        lease = self._lease
        returns_unused = now >= lease.next_return
        if returns_unused:
            lease.next_return = now + lease_time.USE_SECONDS / 3
        for pool in self._pools.values():
            pool.held = max(pool.in_use, pool.usable)
            if returns_unused:
                pool.held = max(pool.in_use, min(pool.held, pool.most_used))
                pool.most_used = pool.in_use
            pool.share = None
        functions = {}
        room = self._divide()
        for function_id, pool in self._pools.items():
            wanted = 0 if pool.limit is None else min(pool.needed, room)
            room -= wanted
            pool.resize()
            if pool.held or wanted:
                functions[function_id] = WantedSlots(pool.held, wanted, pool.limit or pool.held)
        lease.number += 1
        lease.next_renewal = now + lease_time.USE_SECONDS / 3
        return LeaseRequest(lease.process, lease.number, round(lease_time.LEASE_SECONDS * 1000), functions)

    async def _answer_of(self, request: LeaseRequest, sent_at: float) -> LeaseAnswer | None:
        """The answer, or ``None`` if another request is due before it arrives.

        The workflow answers a request that waits for slots when the next one arrives. Both answers renew the lease.
        """
        self._lease.may_get_slots |= _asks_for_any(request)
        asking = asyncio.ensure_future(self._send(request))
        self._asking.add(asking)
        asking.add_done_callback(self._forget)
        unanswered_at, is_noted = sent_at + self._answer_timeout, False
        while not asking.done():
            next_at = self._lease.next_renewal if self._has_lease else sent_at + lease_time.USE_SECONDS / 2
            if self._is_due(request) or lease_time.now() >= next_at:
                asking.add_done_callback(partial(self._renew_late, self._lease, sent_at))
                return None
            if self._is_short and not is_noted and lease_time.now() >= unanswered_at:
                is_noted = True
                self._answer_timeout = min(2 * self._answer_timeout, lease_time.USE_SECONDS / 3)
                self._note_slots(request)
                continue
            self._changed.clear()
            change = asyncio.ensure_future(self._changed.wait())
            now = lease_time.now()
            timeout = (min(next_at, unanswered_at) if now < unanswered_at else next_at) - now
            try:
                await asyncio.wait({asking, change}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
        self._answer_timeout = min(max(_ANSWER_SECONDS, 2 * (lease_time.now() - sent_at)), lease_time.USE_SECONDS / 3)
        return asking.result()

    def _renew_late(self, lease: _Lease, sent_at: float, asking: asyncio.Future[LeaseAnswer]) -> None:
        """Renew the lease from an outdated answer.

        The newer request decides the slots.
        """
        if asking.cancelled() or asking.exception() is not None or lease is not self._lease:
            return
        held = asking.result().functions
        is_held = all(
            function_id in held and held[function_id].slots >= pool.held
            for function_id, pool in self._pools.items()
            if pool.held
        )
        if is_held and self._has_lease and lease_time.now() < lease.end:
            self._extend(sent_at + lease_time.USE_SECONDS)

    def _extend(self, end: float) -> None:
        """Extend the lease, and the deadlines of its calls."""
        lease = self._lease
        if end <= lease.end:
            return
        lease.end = end
        for scope in lease.scopes:
            if not scope.expired():
                scope.reschedule(_loop_time(end))

    def _forget(self, asking: asyncio.Future[LeaseAnswer]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()

    def _apply(self, answer: LeaseAnswer, request: LeaseRequest, sent_at: float) -> bool:
        end = sent_at + lease_time.USE_SECONDS
        if answer.is_lost or lease_time.now() >= end or (self._lease.end and lease_time.now() >= self._lease.end):
            self._lose()
            return False
        lease = self._lease
        lease.may_get_slots = False
        for function_id, pool in self._pools.items():
            held = answer.functions.get(function_id)
            pool.held = 0 if held is None else held.slots
            pool.share = None if held is None else held.share
            pool.resize()
            pool.wake()
        if self._has_lease:
            self._extend(end)
        else:
            lease.end = 0.0
        self._note_slots(request)
        return True

    def _note_slots(self, request: LeaseRequest) -> None:
        """Record the functions for which a request got slots."""
        wanted = {each: wanted.kept for each, wanted in request.functions.items() if wanted.wanted}
        given = [each for each, kept in wanted.items() if self._pools[each].held > kept]
        for function_id in given or wanted:
            self._pools[function_id].note_request(lease_time.now(), has_slots=bool(given))

    def _lose(self) -> None:
        """Use no slot any more. The calls of the lease are cancelled by their scopes."""
        self._lease.end = min(self._lease.end, lease_time.now())
        for scope in self._lease.scopes:
            if not scope.expired():
                scope.reschedule(_loop_time(self._lease.end))
        self._lease = _Lease()
        for pool in self._pools.values():
            pool.held, pool.in_use, pool.most_used, pool.share, pool.local_share = 0, 0, 0, None, None
            pool.next_request = 0.0
            pool.resize()
            pool.wake()


def _asks_for(request: LeaseRequest | None, function_id: str) -> bool:
    wanted = None if request is None else request.functions.get(function_id)
    return wanted is not None and wanted.wanted > 0


def _asks_for_any(request: LeaseRequest) -> bool:
    return any(wanted.wanted > 0 for wanted in request.functions.values())


def _loop_time(time_: float) -> float:
    return asyncio.get_running_loop().time() + time_ - lease_time.now()
