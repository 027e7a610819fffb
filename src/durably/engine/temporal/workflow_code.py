"""Parts of workflow code: clock, timer, packed states, long histories.

Everything but ``wall_clock`` is for workflow code only.
"""

import asyncio
import time
import zlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
from temporalio import workflow


def now() -> int:
    """Milliseconds since the epoch, the same in each replay."""
    return int(workflow.now().timestamp() * 1000)


def wall_clock() -> int:
    """Milliseconds since the epoch, by this process. Workflow code uses ``now``."""
    return time.time_ns() // 1_000_000


class EarliestTimer:
    """One timer, set to the earliest of the requested times.

    ``on_due`` gets the time that the timer was set to.
    """

    def __init__(self, on_due: Callable[[int], None]) -> None:
        self._on_due = on_due
        self._task: asyncio.Task[None] | None = None
        self._due = 0

    def set(self, due: int | None) -> None:
        """Set the timer, unless an earlier one is set: this costs less than replacing it.

        ``due`` is milliseconds since the epoch; ``None`` changes nothing.
        """
        if due is None or (self._task is not None and self._due <= due):
            return
        if self._task is not None:
            self._task.cancel()
        self._due = due
        self._task = asyncio.create_task(self._sleep(due))

    async def _sleep(self, due: int) -> None:
        await workflow.sleep(max(due - now(), 1) / 1000)
        self._task = None
        self._on_due(due)


def history_is_long() -> bool:
    return workflow.info().is_continue_as_new_suggested()


async def wait_for_long_history() -> None:
    """Wait until the history is long, and no Update is running."""
    await workflow.wait_condition(history_is_long)
    await workflow.wait_condition(workflow.all_handlers_finished)


class PackableState(Protocol):
    """A state with one field that has all other fields, compressed."""

    @property
    def packed(self) -> bytes: ...


S = TypeVar("S", bound=PackableState)


def pack(state: S) -> S:
    """The state for the next execution of a workflow, whose input has at most 2 MB."""
    return type(state)(packed=zlib.compress(msgspec.json.encode(state)))  # type: ignore[call-arg]


def unpack(state: S) -> S:
    return msgspec.json.decode(zlib.decompress(state.packed), type=type(state)) if state.packed else state
