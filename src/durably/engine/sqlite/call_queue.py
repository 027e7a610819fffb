"""The queue of due calls, and the requests that several calls of a run share."""

import itertools
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

import msgspec

from durably.engine.core.calls import Answer, ReportedOps
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.protocol.opcodes import read_timing

from .after_commit import ScheduledCall

RUN_REQUESTS = 32
"""The maximum number of requests that one run has under way, in addition to a discovery."""
_QUICK_REQUESTS = 8
"""The number of requests among which waiting calls of a quick function's run are divided, however many they are.

A request replays all steps of a fan-out, so the cost of a step does not grow with their number.
"""
_QUICK_NANOSECONDS = 20_000_000
"""The maximum mean duration of the steps of a quick function. A call costs about as much."""
_MAX_BATCH = 32
"""The number of calls in a request, unless the function is quick. A request is answered when its slowest step ends, so
steps that may be slow are divided among more requests."""

_LOOKED_AT, _LOOKED_AT_OF_RUN = 1_000, 32
"""Number of runs, and of calls of a run, that are searched for the oldest call."""


class CallLoad(msgspec.Struct, frozen=True):
    """Calls of a function.

    ``waiting`` calls are due, and not made yet; ``oldest`` is the time at which the first was due. ``in_flight`` is the
    number of requests under way.
    """

    waiting: int
    oldest: int | None
    in_flight: int


class ReadyCalls:
    """Due calls: their order, and which calls of a run share a request.

    - ``max_requests``: The maximum number of concurrent requests.
    - ``waiting``: The calls that wait, by run.
    - ``now``: Milliseconds since the epoch.
    - ``quick``: The functions whose last steps were quick.

    Each request replays the run, so many requests with one quick step each would cost the app far more than the steps.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self.waiting: dict[int, deque[ScheduledCall]] = {}
        self._order: FairQueue[int] = FairQueue()  # runs that may have another call made
        self._held: set[int] = set()  # runs with the maximum number of requests under way
        self._by_run: Counter[int] = Counter()
        self._by_function: Counter[str] = Counter()
        self._waiting_by_function: Counter[str] = Counter()
        self.quick: set[str] = set()
        self._under_way = 0
        self._now = 0

    def take_at_once(self, scheduled: ScheduledCall) -> bool:
        """Whether a call may be made now because no other call waits."""
        if self.waiting or self._by_run[scheduled.run_key] >= RUN_REQUESTS:
            return False
        if not may_have_another(self._by_function[scheduled.function_id], self._max_requests - self._under_way):
            return False
        self._count(scheduled)
        return True

    def add(self, scheduled: ScheduledCall, now: int) -> None:
        """Add a call.

        A discovery precedes the run's other calls, and is not limited by them, because the next steps depend on it.
        """
        self._now = max(self._now, now)  # If the clock is set back, waiting calls keep their position.
        run_key = scheduled.run_key
        queue = self.waiting.setdefault(run_key, deque())
        self._waiting_by_function[scheduled.function_id] += 1
        if scheduled.call.is_discovery:
            queue.appendleft(scheduled)
            if run_key in self._held:
                self._held.discard(run_key)
                self._line_up(scheduled)
        else:
            queue.append(scheduled)
        if len(queue) == 1 and run_key not in self._held:
            self._line_up(scheduled)

    def take(self) -> Sequence[ScheduledCall]:
        """The calls of the next request, all of one run.

        Empty if all waiting calls must continue waiting.
        """
        while (free := self._max_requests - self._under_way) > 0:
            run_key = self._order.take(partial(self._may_have_another, free))
            if run_key is None:
                break
            queue = self.waiting[run_key]
            own_free = RUN_REQUESTS - self._by_run[run_key]
            if own_free <= 0 and not queue[0].call.is_discovery:
                self._held.add(run_key)
                continue
            is_quick = queue[0].function_id in self.quick
            if is_quick:
                own_free = min(own_free, _QUICK_REQUESTS - self._by_run[run_key])
            count = -(-len(queue) // max(own_free, 1))
            taken = _take_batch(queue, count if is_quick else min(count, _MAX_BATCH))
            self._count(taken[0])
            self._waiting_by_function[taken[0].function_id] -= len(taken)
            if queue:
                self._line_up(queue[0])
            else:
                del self.waiting[run_key]
            return taken
        return ()

    def ended(self, scheduled: ScheduledCall) -> None:
        """Record the end of a request that was made for this call.

        It may have been made for other calls of the run too.
        """
        run_key = scheduled.run_key
        self._by_run[run_key] -= 1
        if not self._by_run[run_key]:
            del self._by_run[run_key]
        self._under_way -= 1
        self._by_function[scheduled.function_id] -= 1
        if not self._by_function[scheduled.function_id]:
            del self._by_function[scheduled.function_id]
        if run_key in self._held:
            self._held.discard(run_key)
            self._line_up(self.waiting[run_key][0])

    def note_durations(self, calls: Sequence[ScheduledCall], answers: Sequence[Answer | None]) -> None:
        """Record how long the steps of a request took.

        ``answers`` are those of ``answers_of``. Only requests of several calls make a function quick, because they
        prove that the app executes several steps at once.
        """
        function_id = calls[0].function_id
        if len(calls) == 1 and function_id not in self.quick:
            return
        if not calls[0].call.is_discovery:
            if _are_quick(answers):
                self.quick.add(function_id)
            else:
                self.quick.discard(function_id)

    def clear(self) -> None:
        self.waiting.clear()
        self._waiting_by_function.clear()
        self._order.clear()
        self._held.clear()

    def loads(self) -> dict[str, CallLoad]:
        """The calls of each function that has any.

        The time of the oldest is that of the first calls of the first waiting runs.
        """
        oldest: dict[str, int] = {}
        for queue in itertools.islice(self.waiting.values(), _LOOKED_AT):
            first = min(scheduled.call.due for scheduled in itertools.islice(queue, _LOOKED_AT_OF_RUN))
            function_id = queue[0].function_id
            oldest[function_id] = min(first, oldest.get(function_id, first))
        waiting = +self._waiting_by_function
        return {
            function_id: CallLoad(waiting[function_id], oldest.get(function_id), self._by_function[function_id])
            for function_id in waiting.keys() | self._by_function.keys()
        }

    def _count(self, scheduled: ScheduledCall) -> None:
        self._by_run[scheduled.run_key] += 1
        self._by_function[scheduled.function_id] += 1
        self._under_way += 1

    def _may_have_another(self, free: int, function_id: str) -> bool:
        return may_have_another(self._by_function[function_id], free)

    def _line_up(self, scheduled: ScheduledCall) -> None:
        self._order.add(scheduled.function_id, self._now - scheduled.priority, scheduled.run_key)


def _take_batch(queue: deque[ScheduledCall], count: int) -> list[ScheduledCall]:
    """Calls from the front of the queue.

    A repeated call has a request of its own, because a request has one attempt.
    """
    taken = [queue.popleft()]
    while queue and len(taken) < count and all(map(_can_share, (taken[0], queue[0]))):
        taken.append(queue.popleft())
    return taken


def _are_quick(answers: Sequence[Answer | None]) -> bool:
    """Whether each call was answered with steps that took little time on average."""
    durations = []
    for answer in answers:
        if not isinstance(answer, ReportedOps):
            return False
        for op in answer.ops:
            timing = read_timing(op.timing)
            if timing is None:
                return False
            durations.append(timing.b)
    return bool(durations) and sum(durations) <= _QUICK_NANOSECONDS * len(durations)


def _can_share(scheduled: ScheduledCall) -> bool:
    return not (scheduled.call.is_discovery or scheduled.call.attempt or scheduled.call.unreached)
