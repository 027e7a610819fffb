"""Counters of what an engine has done, and gauges of its current state.

Counters are integers in memory, which ``EngineCounters`` raises after each commit and call. They reset at each start,
as Prometheus allows. Gauges are read for each scrape.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from durably.engine.core.calls import AttemptFailed, Unreached
from durably.engine.core.ops import EXECUTED, REQUESTS
from durably.engine.model.overview import FunctionLoad, LogState, OutboxReport
from durably.engine.model.runs import UpdateKind
from durably.engine.model.settings import EngineSettings
from durably.engine.model.subscriptions import (
    EndedCall,
    Group,
    Observer,
    Observers,
    RunChange,
    RunEndLog,
    log_engine_end,
)
from durably.protocol.headers import VERSION
from durably.protocol.limits import MAX_METRIC_FUNCTIONS
from durably.protocol.text import get_logger

from .metrics import FAMILIES, OTHER_FUNCTIONS, OTHER_MODELS, Metric, Sample

_logger = get_logger("durably.engine")

_MEASURED = EXECUTED | REQUESTS
_STEP_ENDS = {UpdateKind.STEP_COMPLETED: 0, UpdateKind.STEP_FAILED: 1}
_RUN_ENDS = {
    UpdateKind.RUN_COMPLETED: 0,
    UpdateKind.RUN_FAILED: 1,
    UpdateKind.RUN_CANCELLED: 2,
    UpdateKind.RUN_SKIPPED: 3,
}
_RUN_OUTCOMES = ("completed", "failed", "cancelled", "skipped")
_OUTCOMES = ("completed", "failed")
_FAILED = 1
_CALL_OUTCOMES = ("answered", "failed", "unreached")
_ANSWERED, _CALL_FAILED, _UNREACHED = range(3)
_DIRECTIONS = ("input", "output")
_MOST_MODELS = 10
"""Models of a function with a label of their own."""


class Histogram:
    """A histogram: the number of values of each bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, name: str) -> None:
        self._bounds = FAMILIES[name].buckets
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def sample(self, *labels: str) -> Sample:
        return Sample(labels, self.total, tuple(self.counts))


class FunctionCounters:
    """The counters of one function. Lists are by outcome."""

    __slots__ = (
        "attempts",
        "call_seconds",
        "calls",
        "ended",
        "queue_delay",
        "run_seconds",
        "started",
        "step_seconds",
        "steps",
        "tokens",
    )

    def __init__(self) -> None:
        self.started = 0
        self.ended = [0] * len(_RUN_OUTCOMES)
        self.steps = [0] * len(_OUTCOMES)
        self.attempts = [0] * len(_OUTCOMES)
        self.calls = [0] * len(_CALL_OUTCOMES)
        self.tokens: dict[str, list[int]] = {}
        """Input and output, by model."""
        self.run_seconds = Histogram("run_duration_seconds")
        self.step_seconds = Histogram("step_duration_seconds")
        self.call_seconds = Histogram("call_duration_seconds")
        self.queue_delay = Histogram("queue_delay_seconds")


class EngineCounters(Observer):
    """Counts an engine's work.

    At most ``max_functions`` functions have counters of their own; the others share one label. ``received`` is the
    number of events that were stored for senders.
    """

    def __init__(self, max_functions: int = MAX_METRIC_FUNCTIONS) -> None:
        self._max_functions = max_functions
        self._functions: dict[str, FunctionCounters] = {}
        self._others: FunctionCounters | None = None
        self._commits = 0
        self._failed_transactions = 0
        self.received = 0
        self._unmatched = 0
        self._commit_sizes = Histogram("commit_transactions")
        self._commit_seconds = Histogram("commit_duration_seconds")
        self._timer_lag = Histogram("timer_lag_seconds")

    # Observer

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        for change in changes:
            function_id, kind = change.run.function_id, change.kind
            counters = self._functions.get(function_id) or self._add(function_id)
            for used in change.usage:
                is_known = used.model in counters.tokens or len(counters.tokens) < _MOST_MODELS
                tokens = counters.tokens.setdefault(used.model if is_known else OTHER_MODELS, [0, 0])
                tokens[0] += used.input_tokens
                tokens[1] += used.output_tokens
            seconds = 0.0 if change.began is None else max(0, change.at - change.began) / 1000
            if (outcome := _STEP_ENDS.get(kind)) is not None:
                counters.steps[outcome] += 1
                if change.op in _MEASURED:
                    counters.attempts[outcome] += 1
                    counters.step_seconds.add(seconds if change.ran_for is None else change.ran_for / 1_000_000)
                    if change.op in REQUESTS:  # No change reports the engine's own retries.
                        counters.attempts[_FAILED] += change.attempt or 0
            elif (outcome := _RUN_ENDS.get(kind)) is not None:
                counters.ended[outcome] += 1
                if outcome <= _FAILED:
                    counters.attempts[outcome] += 1
                if change.began is None:  # It ended when it was created.
                    counters.started += 1
                else:
                    counters.run_seconds.add(seconds)
            elif kind is UpdateKind.RUN_STARTED:
                counters.started += 1
            elif kind is UpdateKind.RETRYING:
                counters.attempts[_FAILED] += 1
        self._failed_transactions += group.failed
        if group.committed:
            self._commits += 1
            self._commit_sizes.add(group.committed)
            self._commit_seconds.add(group.seconds)

    def on_call(self, call: EndedCall) -> None:
        counters = self._functions.get(call.function_id) or self._add(call.function_id)
        counters.queue_delay.add(call.delay / 1000)
        if isinstance(call.answer, Unreached):
            counters.calls[_UNREACHED] += 1
            return
        counters.calls[_CALL_FAILED if isinstance(call.answer, AttemptFailed) else _ANSWERED] += 1
        counters.call_seconds.add(call.seconds)

    def on_unmatched(self, names: Sequence[str]) -> None:
        self._unmatched += len(names)

    def on_timers(self, lags: Sequence[int]) -> None:
        for lag in lags:
            self._timer_lag.add(lag / 1000)

    def _add(self, function_id: str) -> FunctionCounters:
        """The counters of a function that has none yet."""
        if len(self._functions) < self._max_functions:
            counters = self._functions[function_id] = FunctionCounters()
            return counters
        if self._others is None:
            self._others = self._functions[OTHER_FUNCTIONS] = FunctionCounters()
            _logger.warning(
                "metrics have the label function for at most %d functions: function %r and further ones share the "
                "label %r",
                self._max_functions,
                function_id,
                OTHER_FUNCTIONS,
            )
        return self._others

    def label_of(self, function_id: str) -> str:
        """The value of the label ``function`` for a function."""
        counters = self._functions.get(function_id) or self._add(function_id)
        return OTHER_FUNCTIONS if counters is self._others else function_id

    # reading

    def read(self) -> list[Metric]:
        """The current values, without those of the database."""
        return [
            self._of_functions("runs_started", lambda name, each: [Sample((name,), each.started)]),
            self._by_outcome("runs_ended", _RUN_OUTCOMES, lambda each: each.ended),
            self._histograms("run_duration_seconds", lambda each: each.run_seconds),
            self._by_outcome("steps_ended", _OUTCOMES, lambda each: each.steps),
            self._histograms("step_duration_seconds", lambda each: each.step_seconds),
            self._by_outcome("attempts", _OUTCOMES, lambda each: each.attempts),
            self._by_outcome("calls", _CALL_OUTCOMES, lambda each: each.calls),
            self._histograms("call_duration_seconds", lambda each: each.call_seconds),
            self._histograms("queue_delay_seconds", lambda each: each.queue_delay),
            self._of_functions("ai_tokens", _samples_of_tokens),
            Metric("events_received", [Sample((), self.received)]),
            Metric("events_unmatched", [Sample((), self._unmatched)]),
        ]

    def read_store(self) -> list[Metric]:
        """The current values of the database and the timers."""
        return [
            Metric("commits", [Sample((), self._commits)]),
            Metric("commit_transactions", [self._commit_sizes.sample()]),
            Metric("commit_duration_seconds", [self._commit_seconds.sample()]),
            Metric("transactions_failed", [Sample((), self._failed_transactions)]),
            Metric("timer_lag_seconds", [self._timer_lag.sample()]),
        ]

    def _of_functions(self, name: str, read: Callable[[str, FunctionCounters], Iterable[Sample]]) -> Metric:
        return Metric(name, [sample for label, each in self._functions.items() for sample in read(label, each)])

    def _by_outcome(
        self, name: str, outcomes: Sequence[str], read: Callable[[FunctionCounters], Sequence[int]]
    ) -> Metric:
        def samples(label: str, each: FunctionCounters) -> Iterator[Sample]:
            return (Sample((label, outcome), count) for outcome, count in zip(outcomes, read(each), strict=True))

        return self._of_functions(name, samples)

    def _histograms(self, name: str, read: Callable[[FunctionCounters], Histogram]) -> Metric:
        return self._of_functions(name, lambda label, each: [read(each).sample(label)])


def _samples_of_tokens(label: str, counters: FunctionCounters) -> Iterator[Sample]:
    for model, tokens in counters.tokens.items():
        for direction, number in zip(_DIRECTIONS, tokens, strict=True):
            yield Sample((label, model, direction), number)


class RunObservers(Observers):
    """The observers of an engine: its counters and, if its settings say so, the log of all ends of runs."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(None if settings.log_runs else log_engine_end)
        self.counters = EngineCounters()
        self.add(self.counters)
        if settings.log_runs:
            self.add(RunEndLog())


# gauges

_OF_LOADS: tuple[tuple[str, Callable[[list[FunctionLoad]], float]], ...] = (
    ("calls_waiting", lambda loads: sum(each.backlog or 0 for each in loads)),
    ("calls_in_flight", lambda loads: sum(each.in_flight or 0 for each in loads)),
    ("oldest_call_wait_seconds", lambda loads: max(each.queue_delay or 0 for each in loads)),
    ("runs_live", lambda loads: sum(each.live for each in loads)),
)
_FILES = {"main": "", "wal": "-wal"}


class EngineState(msgspec.Struct, frozen=True):
    """The values of an engine that gauges show.

    ``loads`` are those of all functions. ``followers`` is the number of other processes that use the engine.
    ``started_at`` and ``now`` are in milliseconds since the epoch. ``outboxes`` are by name.
    """

    database: Path
    started_at: int
    loads: list[FunctionLoad]
    followers: int
    outboxes: Mapping[str, OutboxReport]
    now: int


def read_gauges(state: EngineState, counters: EngineCounters) -> list[Metric]:
    """The gauges of an engine.

    ``counters`` limits the number of functions, and gets zeros for those that have not run yet.
    """
    loads = defaultdict[str, list[FunctionLoad]](list)
    for load in state.loads:
        loads[counters.label_of(load.function_id)].append(load)
    return [
        *(Metric(name, [Sample((label,), read(group)) for label, group in loads.items()]) for name, read in _OF_LOADS),
        Metric("database_size_bytes", [Sample((name,), size) for name, size in _read_sizes(state.database).items()]),
        Metric("processes", [Sample(("leader",), 1), Sample(("follower",), state.followers)]),
        Metric(
            "outbox_events",
            [
                Sample((name, state_of), count)
                for name, each in state.outboxes.items()
                for state_of, count in (("waiting", each.waiting), ("refused", each.refused))
            ],
        ),
        Metric("outbox_oldest_seconds", [Sample((name,), each.oldest) for name, each in state.outboxes.items()]),
        Metric(
            "outbox_report_age_seconds",
            [Sample((name,), (state.now - each.at) / 1000) for name, each in state.outboxes.items()],
        ),
        Metric("start_time_seconds", [Sample((), state.started_at / 1000)]),
        Metric("build_info", [Sample((VERSION,), 1)]),
    ]


def read_log_gauges(state: LogState | None) -> list[Metric]:
    """The gauges of the commit log. ``None``: its store cannot be reached."""
    if state is None:
        return [Metric("log_up", [Sample((), 0)])]
    values = {
        "log_up": 1,
        "log_leader": int(state.role == "leader"),
        "log_sequence": state.sequence,
        "log_lag_entries": state.lag,
        "log_lease_seconds": state.lease_remaining,
        "log_bytes": state.log_bytes,
        "log_snapshot_age_seconds": state.snapshot_age,
    }
    return [Metric(name, [Sample((), value)]) for name, value in values.items() if value is not None]


def _read_sizes(database: Path) -> dict[str, int]:
    files = {name: Path(f"{database}{suffix}") for name, suffix in _FILES.items()}
    return {name: file.stat().st_size for name, file in files.items() if file.exists()}
