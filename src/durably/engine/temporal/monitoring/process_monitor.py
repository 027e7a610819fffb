"""``ProcessMonitor``: counts, logs and publishes what a process does."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version

from temporalio import activity

from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.metrics.catalogue import Metric, Sample
from durably.engine.reports import FunctionLoad
from durably.engine.run_observers import RunObservers
from durably.engine.scheduling.observers import EndedCall
from durably.engine.scheduling.subscriptions import RunChange, Subscriptions
from durably.engine.settings import EngineSettings
from durably.engine.sqlite.writer import Group
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs.activities import Caller
from durably.engine.temporal.workflow_time import wall_clock
from durably.engine.views import RunUpdate

from .run_changes import CHANGES

_NO_COMMIT = Group(committed=0, failed=0, seconds=0.0)
"""Changes of runs are those of workflows, which no transaction of ours commits."""


class ProcessMonitor:
    """The metrics, updates, log lines and alerts of the runs and calls of one process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._observers = RunObservers(settings)
        self._updates = Subscriptions()
        self._in_flight = Counter[str]()
        self._started_at = time.time()

    def monitor(self, queues: Sequence[str], caller: Caller) -> Caller:
        """Follow the runs of these task queues, on the running event loop.

        Returns a caller that makes calls through ``caller``, and counts them.
        """
        CHANGES.listen(queues, self._note_changes)

        async def counted(call: CallInput, data: CallData) -> Answer:
            return await self._count(caller, call, data)

        return counted

    def _note_changes(self, changes: list[RunChange]) -> None:
        self._observers.changes += changes
        self._observers.on_commit(_NO_COMMIT)
        if self._updates.listeners:
            for change in changes:
                self._updates.publish(change)

    async def _count(self, caller: Caller, call: CallInput, data: CallData) -> Answer:
        delay, began = _delay_of(call), time.perf_counter()
        self._in_flight[call.function_id] += 1
        try:
            answer = await caller(call, data)
        finally:
            self._in_flight[call.function_id] -= 1
        self._observers.on_call(EndedCall(call.function_id, delay, time.perf_counter() - began, answer))
        return answer

    def note_events(self, names: Sequence[str], unmatched: Collection[str]) -> None:
        """Count events of a sender, and those of them that match nothing."""
        self._observers.counters.received += len(names)
        if unmatched:
            self._observers.on_unmatched([name for name in names if name in unmatched])

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        return self._updates.watch()

    def read(self, loads: Iterable[FunctionLoad] | None) -> list[Metric]:
        """The metrics.

        ``loads`` are those of all functions and processes; ``None`` if they are unknown.
        """
        live = [] if loads is None else [(each.function_id, each.live) for each in loads]
        return [
            *self._observers.read(),
            *([] if loads is None else [self._by_function("runs_live", live)]),
            self._by_function("calls_in_flight", self._in_flight.items()),
            Metric("start_time_seconds", [Sample((), self._started_at)]),
            Metric("build_info", [Sample((version("durably"),), 1)]),
        ]

    def _by_function(self, name: str, values: Iterable[tuple[str, int]]) -> Metric:
        by_label = Counter[str]()
        for function_id, value in values:
            by_label[self._observers.counters.label_of(function_id)] += value
        return Metric(name, [Sample((label,), value) for label, value in by_label.items()])

    async def close(self) -> None:
        """End the updates, and send the last alerts, for at most 2 s."""
        self._updates.close()
        await self._observers.close()


def _delay_of(call: CallInput) -> int:
    """Milliseconds since the call was due.

    Limits and the task queue have delayed it.
    """
    info = activity.info()
    due = call.call.due
    if info.attempt > 1:  # Those before did not reach the app.
        due = max(due, int(info.current_attempt_scheduled_time.timestamp() * 1000))
    return max(0, wall_clock() - due)
