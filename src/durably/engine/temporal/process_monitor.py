"""``ProcessMonitor``: counts, logs, traces and publishes the work of a process.

Workflows report to it (``runs/run_changes.py``). No run depends on it.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version

import msgspec
from temporalio import activity

from durably.engine.api.counters import RunObservers
from durably.engine.api.metrics import Metric, Sample
from durably.engine.core.calls import Answer, CallData
from durably.engine.model.runs import RunUpdate
from durably.engine.model.settings import EngineSettings
from durably.engine.model.subscriptions import EndedCall, Group, RunChange, Subscriptions
from durably.engine.temporal.ids import execution_of
from durably.engine.temporal.runs.activities import ActivityCaller
from durably.engine.temporal.runs.call_messages import CallInput
from durably.engine.temporal.runs.run_changes import RunReport, listen
from durably.protocol.text import get_logger
from durably.temporal.compat import Eviction

from .workflow_code import wall_clock

_FRESH_SECONDS, _KEPT_SECONDS = 15.0, 120.0
"""Seconds until numbers are read again, and until they are no longer shown."""
_FIRST_SECONDS, _READ_SECONDS = 1.0, 10.0
"""Timeouts in seconds of the first answer and of one read."""
_NO_COMMIT = Group(committed=0, failed=0, seconds=0.0)
"""Workflows report run changes; no local transaction commits them."""
_HELD_SECONDS = 0.5
"""Delay before the end of a run is published if the server may not have accepted it."""
_MOST_KNOWN = 10_000
"""Recent reports, to drop duplicates."""

_logger = get_logger("durably.engine")


class LiveRuns:
    """Numbers of live runs. ``get`` waits only for the first read.

    ``get`` starts a new read if the last one is old. A read costs a request for each function, and each process is
    scraped.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        self._read = read
        self._numbers: Mapping[str, int] | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._has_failed = False

    async def get(self) -> Mapping[str, int] | None:
        """The numbers by function, or ``None`` if they are unknown."""
        age = time.monotonic() - self._read_at
        if (self._numbers is None or age > _FRESH_SECONDS) and self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        if self._numbers is None and self._reading is not None:
            await asyncio.wait([self._reading], timeout=_FIRST_SECONDS)
        is_old = time.monotonic() - self._read_at > _KEPT_SECONDS
        return None if is_old else self._numbers

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                self._numbers = await self._read()
            self._read_at = time.monotonic()
            self._has_failed = False
        except Exception as error:  # Keep serving the other metrics.
            if not self._has_failed:
                _logger.warning(
                    "durably_runs_live is missing in the metrics until it can be read again: %s: %s",
                    type(error).__name__,
                    error,
                )
            self._has_failed = True
        finally:
            self._reading = None

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()


class ProcessMonitor:
    """The metrics, updates, and log lines of the runs and calls of one process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._observers = RunObservers(settings)
        self._updates = Subscriptions()
        self._in_flight = Counter[str]()
        self._started_at = time.time()
        self._tracing = settings.tracing
        self._ends: dict[int, RunReport] = {}
        """Ends that the server may not have accepted. It refuses the task that ends a run if an event arrives during
        it, and the run may then end in another way."""
        self._known = set[int]()
        self._known_in_order = deque[int]()
        self._stop_listening: Callable[[], None] | None = None

    def monitor(self, namespace: str, queues: Sequence[str], caller: ActivityCaller) -> ActivityCaller:
        """Follow the runs of these task queues, on the running event loop.

        Returns a caller that makes calls through ``caller``, and counts and traces them.
        """
        if self._stop_listening is not None:
            self._stop_listening()
        self._stop_listening = listen(namespace, queues, self._note, self._note_eviction)
        return partial(self._count, caller)

    def _note(self, reports: list[RunReport]) -> None:
        changes: list[RunChange] = []
        for report in reports:
            if report.key in self._known:
                continue
            if report.ended is None:
                self._remember(report.key)
                changes.append(report.change)
            else:
                self._ends[report.key] = report
        if changes:
            self._publish(changes)

    def _note_eviction(self, key: int, eviction: Eviction) -> None:
        report = self._ends.get(key)
        if report is None:
            return
        match eviction:
            case Eviction.ENDED:
                self._publish_end(report)
            case Eviction.REFUSED:
                del self._ends[key]
            case Eviction.OTHER:
                asyncio.get_running_loop().call_later(_HELD_SECONDS, self._publish_end, report)

    def _publish_end(self, report: RunReport) -> None:
        """Publish an end, unless the workflow was executed again and reported another."""
        if self._ends.get(report.key) is not report:
            return
        del self._ends[report.key]
        self._remember(report.key)
        self._publish([report.change])
        if self._tracing is not None and report.ended is not None:
            self._tracing.run_ended(report.ended)

    def _remember(self, key: int) -> None:
        self._known.add(key)
        self._known_in_order.append(key)
        if len(self._known_in_order) > _MOST_KNOWN:
            self._known.discard(self._known_in_order.popleft())

    def _publish(self, changes: list[RunChange]) -> None:
        self._observers.changes += changes
        self._observers.on_commit(_NO_COMMIT)
        if self._updates.listeners:
            for change in changes:
                self._updates.publish(change)

    async def _count(self, caller: ActivityCaller, call: CallInput, data: CallData) -> Answer:
        delay, began = _delay_of(call), time.perf_counter()
        self._in_flight[call.function_id] += 1
        try:
            answer = await self._trace(caller, call, data)
        finally:
            self._in_flight[call.function_id] -= 1
        self._observers.on_call(EndedCall(call.function_id, delay, time.perf_counter() - began, answer))
        return answer

    async def _trace(self, caller: ActivityCaller, call: CallInput, data: CallData) -> Answer:
        """Make a call in its own span. Calls are activities, so replays make no spans."""
        if self._tracing is None:
            return await caller(call, data)
        info = activity.info()
        known = msgspec.structs.replace(data, call=call.call)
        execution = execution_of(info.workflow_run_id or "")
        with self._tracing.calling(known, execution=execution, repetition=info.attempt - 1) as span:
            answer = await caller(call, msgspec.structs.replace(data, traceparent=span.traceparent))
            span.answered(answer)
            return answer

    def note_events(self, names: Sequence[str], unmatched: Collection[str]) -> None:
        """Count the events of a sender, and how many of them match nothing."""
        self._observers.counters.received += len(names)
        if unmatched:
            self._observers.on_unmatched([name for name in names if name in unmatched])

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        return self._updates.watch()

    def read(self, live: Mapping[str, int] | None) -> list[Metric]:
        """The metrics.

        ``live`` has the numbers of live runs of all processes by function, or ``None`` if they are unknown.
        """
        return [
            *self._observers.counters.read(),
            *([] if live is None else [self._by_function("runs_live", live.items())]),
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
        """End the updates."""
        if self._stop_listening is not None:
            self._stop_listening()
        for report in list(self._ends.values()):
            self._publish_end(report)
        self._updates.close()


def _delay_of(call: CallInput) -> int:
    """Milliseconds between the due time of the call and now.

    Limits and the task queue have delayed it.
    """
    info = activity.info()
    due = call.call.due
    if info.attempt > 1:  # Earlier attempts did not reach the app.
        due = max(due, int(info.current_attempt_scheduled_time.timestamp() * 1000))
    return max(0, wall_clock() - due)
