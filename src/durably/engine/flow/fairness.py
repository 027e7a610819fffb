"""Sharing the calls that an engine makes at a time between functions: whose turn is next, and how many each may have.

Functions take turns, so that a thousand calls of one do not hold up another's single call. Within a function, the call
goes first that became ready first, less its priority. A function on its own may fill nine tenths of the room: however
long its calls take, another function's call finds room at once (dynamic thresholds; Choudhury and Hahne, 1998).
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

_SHARE = 9


def may_have_another(under_way: int, free: int) -> bool:
    """Whether a function with so many calls under way may have one more, of the ``free`` that could be made now."""
    return under_way < _SHARE * free


class FairQueue(Generic[T]):
    """Items of functions that wait for their turn."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, T]]] = {}
        self._turns: deque[str] = deque()
        self._arrivals = count()

    def add(self, function_id: str, place: int, item: T) -> None:
        """The least ``place`` of a function goes first; of equal ones, that which was added first."""
        waiting = self._waiting.get(function_id)
        if waiting is None:
            waiting = self._waiting[function_id] = []
            self._turns.append(function_id)
        heapq.heappush(waiting, (place, next(self._arrivals), item))

    def take(self, may_take: Callable[[str], bool]) -> T | None:
        """The next item, of a function that may have its turn; ``None`` if there is no such item."""
        for _ in range(len(self._turns)):
            function_id = self._turns.popleft()
            if not may_take(function_id):
                self._turns.append(function_id)
                continue
            waiting = self._waiting[function_id]
            _, _, item = heapq.heappop(waiting)
            if waiting:
                self._turns.append(function_id)
            else:
                del self._waiting[function_id]
            return item
        return None

    def functions(self) -> list[str]:
        """The functions that have items waiting."""
        return list(self._turns)

    def remove(self, function_id: str) -> list[T]:
        """Take all items of a function out."""
        self._turns.remove(function_id)
        return [item for _, _, item in sorted(self._waiting.pop(function_id))]

    def clear(self) -> None:
        self._waiting.clear()
        self._turns.clear()
