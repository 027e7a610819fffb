"""Calls that are due, until they are made: whose turn it is, and which of one run's are made by one request.

Runs take turns, and none has more than ``RUN_REQUESTS`` requests under way, so that one with a thousand parallel steps
neither keeps others waiting nor has its app replay it a thousand times at once. What a run has beyond that shares
requests: a replay costs an app about the same whether it executes one step or several.
"""

from collections import Counter, deque
from collections.abc import Sequence

from .effects import CallAt

RUN_REQUESTS = 32
_MOST_TOGETHER = 32


class ReadyCalls:
    def __init__(self) -> None:
        self._queues: dict[int, deque[CallAt]] = {}
        self._turns: deque[int] = deque()  # runs that may have a call made
        self._held: set[int] = set()  # runs that may not, since they have as many requests as possible under way
        self._requests: Counter[int] = Counter()

    def add(self, due: CallAt) -> None:
        """A discovery goes before the run's other calls, and beside them: what comes next hangs on it."""
        run_key = due.run_key
        queue = self._queues.setdefault(run_key, deque())
        if due.call.is_discovery:
            queue.appendleft(due)
            if run_key in self._held:
                self._held.discard(run_key)
                self._turns.append(run_key)
        else:
            queue.append(due)
        if len(queue) == 1 and run_key not in self._held:
            self._turns.append(run_key)

    def take(self) -> Sequence[CallAt]:
        """The calls of the next request, of one run; none where all that are ready have to wait."""
        while self._turns:
            run_key = self._turns.popleft()
            queue = self._queues[run_key]
            free = RUN_REQUESTS - self._requests[run_key]
            if free <= 0 and not queue[0].call.is_discovery:
                self._held.add(run_key)
                continue
            taken = _take_together(queue, -(-len(queue) // max(free, 1)))
            self._requests[run_key] += 1
            if queue:
                self._turns.append(run_key)
            else:
                del self._queues[run_key]
            return taken
        return ()

    def ended(self, run_key: int) -> None:
        """A request of the run has."""
        self._requests[run_key] -= 1
        if not self._requests[run_key]:
            del self._requests[run_key]
        if run_key in self._held:
            self._held.discard(run_key)
            self._turns.append(run_key)

    def clear(self) -> None:
        self._queues.clear()
        self._turns.clear()
        self._held.clear()


def _take_together(queue: deque[CallAt], count: int) -> list[CallAt]:
    """Calls from the front of the queue. What is made again goes by itself: attempts are told for a whole request."""
    taken = [queue.popleft()]
    while queue and len(taken) < min(count, _MOST_TOGETHER) and all(map(_can_share, (taken[0], queue[0]))):
        taken.append(queue.popleft())
    return taken


def _can_share(due: CallAt) -> bool:
    return not (due.call.is_discovery or due.call.attempt or due.call.unreached)
