"""Slots for concurrent calls of a worker."""

import asyncio
import contextlib
import threading
import time

from temporalio.worker import (
    CustomSlotSupplier,
    FixedSizeSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    WorkerTuner,
)

_OTHER_SLOTS = FixedSizeSlotSupplier(100)
"""Temporal's default."""

_RETURN_SECONDS = 2.0
"""Seconds for the server to give a returned call to another poll."""


class CallSlots(CustomSlotSupplier):
    """``size`` slots, until ``close``.

    Temporal's runtime uses them from its own threads.
    """

    def __init__(self, size: int) -> None:
        self.is_closed = False
        self._size = size
        self._free = size
        self._used = 0
        self._last_return = 0.0
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Give out no more slots.

        A running poll has a slot, and may still return a call.
        """
        with self._lock:
            self.is_closed = True

    async def wait_until_unused(self) -> None:
        """Wait for the end of running calls."""
        while self._used:
            await self._wait_for_change()

    async def wait_until_polls_are_quiet(self) -> None:
        """Wait until other workers have taken the returned calls.

        The server may give a returned call to a running poll of this worker. If the worker is shut down at that time,
        the call is lost until its heartbeat timeout.
        """
        while self._has_polls and (left := self._last_return + _RETURN_SECONDS - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wait_for_change(), left)

    @property
    def _has_polls(self) -> bool:
        return self._size - self._free > self._used

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        while (permit := self.try_reserve_slot(ctx)) is None:
            await self._wait_for_change()
        return permit

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        with self._lock:
            if self.is_closed or self._free <= 0:
                return None
            self._free -= 1
        return SlotPermit()

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        with self._lock:
            self._used += 1

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        with self._lock:
            self._free += 1
            if ctx.slot_info is not None:
                self._used -= 1
                if self.is_closed:
                    self._last_return = time.monotonic()
        with contextlib.suppress(RuntimeError):  # The event loop is closed.
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def tuner_of(slots: CallSlots) -> WorkerTuner:
    return WorkerTuner.create_composite(
        workflow_supplier=_OTHER_SLOTS,
        activity_supplier=slots,
        local_activity_supplier=_OTHER_SLOTS,
        nexus_supplier=_OTHER_SLOTS,
    )
