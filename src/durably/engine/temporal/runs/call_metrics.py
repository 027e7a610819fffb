"""Counts the calls that a process makes."""

import time
from collections import Counter

from temporalio import activity

from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.metrics.catalogue import Metric, Sample
from durably.engine.metrics.counters import EngineCounters
from durably.engine.run_observers import RunObservers
from durably.engine.scheduling.observers import EndedCall
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.workflow_time import wall_clock

from .activities import Caller


class CallsInFlight:
    """The number of calls of this process that are under way, by function."""

    def __init__(self) -> None:
        self.by_function = Counter[str]()

    def read(self, counters: EngineCounters) -> Metric:
        by_label = Counter[str]()
        for function_id, count in self.by_function.items():
            by_label[counters.label_of(function_id)] += count
        return Metric("calls_in_flight", [Sample((label,), count) for label, count in by_label.items()])


class CountedCaller:
    """Makes the calls of activities through another caller, and counts them."""

    def __init__(self, caller: Caller, observers: RunObservers, in_flight: CallsInFlight) -> None:
        self._caller = caller
        self._observers = observers
        self._in_flight = in_flight.by_function

    async def __call__(self, call: CallInput, data: CallData) -> Answer:
        delay, began = _delay_of(call), time.perf_counter()
        self._in_flight[call.function_id] += 1
        try:
            answer = await self._caller(call, data)
        finally:
            self._in_flight[call.function_id] -= 1
        self._observers.on_call(EndedCall(call.function_id, delay, time.perf_counter() - began, answer))
        return answer


def _delay_of(call: CallInput) -> int:
    """Milliseconds since the call was due.

    Limits and the task queue have delayed it.
    """
    info = activity.info()
    due = call.call.due
    if info.attempt > 1:  # Those before did not reach the app.
        due = max(due, int(info.current_attempt_scheduled_time.timestamp() * 1000))
    return max(0, wall_clock() - due)
