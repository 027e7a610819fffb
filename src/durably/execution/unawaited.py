"""Steps and groups that an async function has made and not awaited."""

import weakref
from typing import Any

from durably.protocol.errors import Error, ErrorCode


class StepNotAwaitedError(Error):
    """An async function made a step, or a group of steps, and neither awaited it nor gave it to a task."""

    code = ErrorCode.STEP_NOT_AWAITED
    is_retriable = False
    include_stack = False


class Unawaited:
    """The awaitables of one call that have not begun, by a number of the caller's choice."""

    __slots__ = ("_awaitables",)

    def __init__(self) -> None:
        self._awaitables: dict[int, tuple[str, weakref.ref[Any]]] = {}

    def __bool__(self) -> bool:
        return bool(self._awaitables)

    def add(self, number: int, name: str, awaitable: Any) -> None:
        self._awaitables[number] = (name, weakref.ref(awaitable))

    def begin(self, number: int) -> None:
        """The awaitable runs."""
        self._awaitables.pop(number, None)

    def leave_to_task(self, coroutine: Any) -> None:
        """A task was made of a coroutine: the awaitable itself, or a coroutine that was given it.

        The task may be cancelled before it begins, which is no mistake.
        """
        frame = getattr(coroutine, "cr_frame", None)
        given = [coroutine, *(frame.f_locals.values() if frame is not None else ())]
        for number, (_, reference) in list(self._awaitables.items()):
            awaitable = reference()
            if any(awaitable is value for value in given):
                del self._awaitables[number]

    def dropped(self) -> StepNotAwaitedError | None:
        """The error of one that can be awaited no more, since nothing refers to it."""
        for name, reference in self._awaitables.values():
            if reference() is None:
                return _error(name)
        return None

    def any(self) -> StepNotAwaitedError | None:
        """The error of one, whether it is referred to or not."""
        for name, _ in self._awaitables.values():
            return _error(name)
        return None


def _error(name: str) -> StepNotAwaitedError:
    return StepNotAwaitedError(
        f"{name} was created but not awaited, so it did not run: write `await` before it, "
        "or give it to asyncio.gather or a task that the function awaits"
    )
