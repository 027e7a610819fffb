"""Fair sharing of an engine's calls between functions.

The module decides the order of functions, and the number of calls of each. Functions alternate, so that a thousand
calls of one do not delay another's single call. Within a function, calls are ordered by the time at which they became
ready, minus their priority. One function may use nine tenths of the capacity, so another function's call can start at
once (dynamic thresholds; Choudhury and Hahne, 1998).
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

_SHARE = 9


def may_have_another(under_way: int, free: int) -> bool:
    """Whether a function with ``under_way`` calls may have one more.

    ``free`` is the number of calls that could be made now.
    """
    return under_way < _SHARE * free


class FairQueue(Generic[T]):
    """Waiting items, by function."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, T]]] = {}
        self._order: deque[str] = deque()
        self._sequence = count()

    def add(self, function_id: str, position: int, item: T) -> None:
        """Add an item.

        A function's lowest ``position`` goes first; equal positions keep the order of insertion.
        """
        waiting = self._waiting.get(function_id)
        if waiting is None:
            waiting = self._waiting[function_id] = []
            self._order.append(function_id)
        heapq.heappush(waiting, (position, next(self._sequence), item))

    def take(self, may_take: Callable[[str], bool]) -> T | None:
        """The next item of an eligible function; ``None`` if there is none."""
        for _ in range(len(self._order)):
            function_id = self._order.popleft()
            if not may_take(function_id):
                self._order.append(function_id)
                continue
            waiting = self._waiting[function_id]
            _, _, item = heapq.heappop(waiting)
            if waiting:
                self._order.append(function_id)
            else:
                del self._waiting[function_id]
            return item
        return None

    def functions(self) -> list[str]:
        """The functions with waiting items."""
        return list(self._order)

    def remove(self, function_id: str) -> list[T]:
        """Remove and return all items of a function."""
        self._order.remove(function_id)
        return [item for _, _, item in sorted(self._waiting.pop(function_id))]

    def clear(self) -> None:
        self._waiting.clear()
        self._order.clear()
