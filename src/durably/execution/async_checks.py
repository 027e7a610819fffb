"""Mistakes that only async functions can make.

They are a step that is not awaited, and one of asyncio's clocks around a step.
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
"""The number of Durably's frames between user code and the coroutine of a step, and one of user code."""

Place = tuple[str, int, str]
"""A file's name, a line in it, and the name of the function."""


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

_Awaitable = tuple[str, Collection[Place], weakref.ref[Any]]
"""The name of a step or group, the frames in which user code made it, and the coroutine."""


class Unawaited:
    """The coroutines of one call, for steps and groups, that have not begun.

    ``awaitables`` has them by their ``id()``. A coroutine that begins removes itself. ``lost`` has one to
    which nothing refers, and whose ``id()`` a later coroutine has.
    """

    __slots__ = ("awaitables", "lost")

    def __init__(self) -> None:
        self.awaitables: dict[int, _Awaitable] = {}
        self.lost: _Awaitable | None = None

    def create(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """The coroutine of a step or group. It records where user code made it."""
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
        """Leave a coroutine's awaitable to the task that was made of the coroutine.

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
        """The error of a coroutine that can no longer be awaited.

        Nothing refers to the coroutine.
        """
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
    place = next((place for place in origin if not place[0].startswith(_OWN_CODE)), None)
    where = "" if place is None else f" (at {place[0]}:{place[1]})"
    return StepNotAwaitedError(
        f"{name} was created but not awaited, so it did not run{where}: write `await` before it, "
        "or give it to asyncio.gather or a task that the function awaits"
    )


def find_clock(tasks: Iterable[AnyTask], ignored: Collection[AnyTask] = ()) -> str | None:
    """The name of an asyncio clock that runs around what the tasks wait for.

    ``None`` if there is no such clock.

    ``asyncio.timeout``, ``wait_for`` and ``wait(timeout=)`` count from the start of the call, and every call
    starts again: around a step that sleeps for a day they would either never fire or fire each time. Clocks of
    ``ignored`` tasks, and around those alone, do not concern the steps.
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
