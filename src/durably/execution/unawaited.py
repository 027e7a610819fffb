"""Steps and groups that an async function has made and not awaited."""

import inspect
import os.path
import weakref
from types import FrameType
from typing import Any

from durably.protocol.errors import Error, ErrorCode

_Place = tuple[str, int]
"""A file's name, and a line in it."""
_OWN_CODE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class StepNotAwaitedError(Error):
    """An async function made a step, or a group of steps, and neither awaited it nor gave it to a task."""

    code = ErrorCode.STEP_NOT_AWAITED
    is_retriable = False
    include_stack = False


class Unawaited:
    """The awaitables of one call that have not begun, by a number of the caller's choice."""

    __slots__ = ("_awaitables", "_numbers")

    def __init__(self) -> None:
        self._awaitables: dict[int, tuple[str, _Place | None, weakref.ref[Any]]] = {}
        self._numbers: dict[int, int] = {}  # by id(), which a later awaitable may reuse

    def __bool__(self) -> bool:
        return bool(self._awaitables)

    def add(self, number: int, name: str, awaitable: Any) -> None:
        self._awaitables[number] = (name, _place(), weakref.ref(awaitable))
        self._numbers[id(awaitable)] = number

    def begin(self, number: int) -> None:
        """The awaitable runs."""
        self._awaitables.pop(number, None)

    def leave_to_task(self, coroutine: Any) -> None:
        """A task was made of a coroutine: the awaitable itself, or a coroutine that has it as an argument.

        The task may be cancelled before it begins, which is not an error.
        """
        if not self._leave(coroutine) and (frame := getattr(coroutine, "cr_frame", None)) is not None:
            for value in frame.f_locals.values():
                self._leave(value)

    def _leave(self, value: Any) -> bool:
        number = self._numbers.get(id(value))
        found = None if number is None else self._awaitables.get(number)
        if number is None or found is None or found[2]() is not value:
            return False
        del self._awaitables[number]
        return True

    def dropped(self) -> StepNotAwaitedError | None:
        """The error of an awaitable to which nothing refers, so that it can no longer be awaited."""
        for name, place, reference in self._awaitables.values():
            if reference() is None:
                return _error(name, place)
        return None

    def any(self) -> StepNotAwaitedError | None:
        """The error of an awaitable, with or without references to it."""
        for name, place, _ in self._awaitables.values():
            return _error(name, place)
        return None


def _place() -> _Place | None:
    """The line of user code that makes the awaitable."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_CODE):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def _error(name: str, place: _Place | None) -> StepNotAwaitedError:
    where = "" if place is None else f" (at {place[0]}:{place[1]})"
    return StepNotAwaitedError(
        f"{name} was created but not awaited, so it did not run{where}: write `await` before it, "
        "or give it to asyncio.gather or a task that the function awaits"
    )
