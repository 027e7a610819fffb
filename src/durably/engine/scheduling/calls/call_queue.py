"""The queue of due calls: their order, and which calls of a run share a request."""

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.scheduling.outbox import CallAt

RUN_REQUESTS = 32
_MAX_BATCH = 32


class CallQueue:
    """``max_requests`` is the maximum number of requests at a time. ``now`` is milliseconds since the epoch."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._queues: dict[int, deque[CallAt]] = {}
        self._turns: FairQueue[int] = FairQueue()  # runs that may have a call made
        self._held: set[int] = set()  # runs that may not, since they have as many requests as possible under way
        self._by_run: Counter[int] = Counter()
        self._by_function: Counter[str] = Counter()
        self._under_way = 0
        self._now = 0

    def add(self, due: CallAt, now: int) -> None:
        """A discovery goes before the run's other calls, and is not limited by them, because the next steps depend on
        it."""
        self._now = max(self._now, now)  # If the clock is set back, waiting calls keep their place.
        run_key = due.run_key
        queue = self._queues.setdefault(run_key, deque())
        if due.call.is_discovery:
            queue.appendleft(due)
            if run_key in self._held:
                self._held.discard(run_key)
                self._line_up(due)
        else:
            queue.append(due)
        if len(queue) == 1 and run_key not in self._held:
            self._line_up(due)

    def take(self) -> Sequence[CallAt]:
        """The calls of the next request, all of one run; empty if all ready calls have to wait."""
        while (free := self._max_requests - self._under_way) > 0:
            run_key = self._turns.take(partial(self._may_have_another, free))
            if run_key is None:
                break
            queue = self._queues[run_key]
            own_free = RUN_REQUESTS - self._by_run[run_key]
            if own_free <= 0 and not queue[0].call.is_discovery:
                self._held.add(run_key)
                continue
            taken = _take_batch(queue, -(-len(queue) // max(own_free, 1)))
            self._by_run[run_key] += 1
            self._by_function[taken[0].function_id] += 1
            self._under_way += 1
            if queue:
                self._line_up(queue[0])
            else:
                del self._queues[run_key]
            return taken
        return ()

    def ended(self, due: CallAt) -> None:
        """A request that was made for this call, and perhaps for others of its run."""
        run_key = due.run_key
        self._by_run[run_key] -= 1
        if not self._by_run[run_key]:
            del self._by_run[run_key]
        self._under_way -= 1
        self._by_function[due.function_id] -= 1
        if not self._by_function[due.function_id]:
            del self._by_function[due.function_id]
        if run_key in self._held:
            self._held.discard(run_key)
            self._line_up(self._queues[run_key][0])

    def clear(self) -> None:
        self._queues.clear()
        self._turns.clear()
        self._held.clear()

    def _may_have_another(self, free: int, function_id: str) -> bool:
        return may_have_another(self._by_function[function_id], free)

    def _line_up(self, due: CallAt) -> None:
        self._turns.add(due.function_id, self._now - due.priority, due.run_key)


def _take_batch(queue: deque[CallAt], count: int) -> list[CallAt]:
    """Calls from the front of the queue. A repeated call has a request of its own, because a request has one
    attempt."""
    taken = [queue.popleft()]
    while queue and len(taken) < min(count, _MAX_BATCH) and all(map(_can_share, (taken[0], queue[0]))):
        taken.append(queue.popleft())
    return taken


def _can_share(due: CallAt) -> bool:
    return not (due.call.is_discovery or due.call.attempt or due.call.unreached)
