"""Detection of mistakes that only async functions can make.

These are a step that is not awaited, and an asyncio clock around a step.
"""

import inspect
import os.path
import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

from durably.protocol.errors import Error, ErrorCode

from .asyncio_compat import AnyTask, RunTask, running_clock, waits_only_for

T = TypeVar("T")

_OWN_CODE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_ORIGIN_FRAMES = 6
"""Durably's frames between user code and the coroutine of a step, plus one of user code."""

CodeLocation = tuple[str, int, str]
"""A file's name, a line in it, and the function's name."""


class StepNotAwaitedError(Error):
    """An async function made a step or group of steps, but did not use it.

    It neither awaited it nor gave it to a task.
    """

    code = ErrorCode.STEP_NOT_AWAITED
    is_retriable = False
    include_stack = False


class ClockUnsupportedError(Error):
    """A step is inside one of asyncio's clocks, which are not durable."""

    code = ErrorCode.CLOCK_UNSUPPORTED
    is_retriable = False
    include_stack = False


# Python's own warning about such a coroutine has Durably's internal names, and comes before the error that names the
# step. The filter is for the coroutines that ``Unawaited.create`` makes.
for _name in ("_result_of", "group"):
    warnings.filterwarnings("ignore", rf"coroutine 'AsyncCall\.{_name}\b.*' was never awaited", RuntimeWarning)

_Awaitable = tuple[str, Collection[CodeLocation], weakref.ref[Any]]
"""The name of a step or group, the frames of user code that made it, and the coroutine."""


class Unawaited:
    """The coroutines of one call's steps and groups that have not begun.

    ``awaitables`` has them by their ``id()``. A coroutine that begins removes itself. ``lost`` is a coroutine without
    references whose ``id()`` was reused.
    """

    __slots__ = ("awaitables", "lost")

    def __init__(self) -> None:
        self.awaitables: dict[int, _Awaitable] = {}
        self.lost: _Awaitable | None = None

    def create(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """Create the coroutine of a step or group, and record where user code made it."""
        depth = sys.get_coroutine_origin_tracking_depth()
        sys.set_coroutine_origin_tracking_depth(_ORIGIN_FRAMES)
        try:
            coroutine = make()
        finally:
            sys.set_coroutine_origin_tracking_depth(depth)
        number = id(coroutine)
        if number in self.awaitables:
            self.lost = self.lost or self.awaitables[number]
        self.awaitables[number] = (name, coroutine.cr_origin or (), weakref.ref(coroutine))  # type: ignore[attr-defined]
        return coroutine

    def leave_to_task(self, coroutine: Any) -> None:
        """Remove a coroutine's awaitable when a task is created from the coroutine.

        The coroutine is the awaitable itself, or has it as an argument. The task may be cancelled before it begins,
        which is not an error.
        """
        if not self._leave(coroutine) and inspect.iscoroutine(coroutine):
            for value in inspect.getcoroutinelocals(coroutine).values():
                self._leave(value)

    def _leave(self, value: Any) -> bool:
        found = self.awaitables.get(id(value))
        if found is None or found[2]() is not value:
            return False
        del self.awaitables[id(value)]
        return True

    def dropped(self) -> StepNotAwaitedError | None:
        """The error of a coroutine that can no longer be awaited, as it has no references."""
        if self.lost is not None:
            return _not_awaited(self.lost)
        for awaitable in self.awaitables.values():
            if awaitable[2]() is None:
                return _not_awaited(awaitable)
        return None

    def any(self) -> StepNotAwaitedError | None:
        """The error of a coroutine that has not begun."""
        first = self.lost or next(iter(self.awaitables.values()), None)
        return None if first is None else _not_awaited(first)


def _not_awaited(awaitable: _Awaitable) -> StepNotAwaitedError:
    name, origin, _ = awaitable
    location = next((location for location in origin if not location[0].startswith(_OWN_CODE)), None)
    where = "" if location is None else f" (at {location[0]}:{location[1]})"
    return StepNotAwaitedError(
        f"{name} was created but not awaited, so it did not run{where}: write `await` before it, "
        "or give it to asyncio.gather or a task that the function awaits"
    )


def find_clock(tasks: Iterable[AnyTask], ignored: Collection[AnyTask] = ()) -> str | None:
    """The name of an asyncio clock around what the tasks wait for, or ``None``.

    ``asyncio.timeout``, ``wait_for`` and ``wait(timeout=)`` count from the start of the call, and every call starts
    again: around a step that sleeps for a day they would either never fire or fire each time. Clocks around ``ignored``
    tasks alone do not concern the steps.
    """
    for task in tasks:
        if ignored and (task in ignored or waits_only_for(task, ignored)):
            continue
        if (clock := running_clock(task, may_be_timed=not isinstance(task, RunTask) or task.may_be_timed)) is not None:
            return clock
    return None


def clock_refusal(clock: str, step_ids: Iterable[str]) -> ClockUnsupportedError:
    steps = ", ".join(f'"{step_id}"' for step_id in step_ids)
    return ClockUnsupportedError(
        f"{clock} around step {steps}: asyncio's clocks start again at each call and are not durable. "
        "Use `async with ctx.group.timeout(id, duration)`, or wait_for_event(timeout=) for an event."
    )
