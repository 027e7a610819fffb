"""The metrics of an engine: names, units, labels and buckets. Pure.

Names and units follow Prometheus' conventions. ``docs/reference/metrics.md`` is generated from the catalogue.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

PREFIX = "durably_"


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(msgspec.Struct, frozen=True):
    """A metric's declaration.

    ``name`` is without the prefix, and without the ``_total`` of a counter. ``buckets`` are the upper bounds of a
    histogram. ``is_sqlite_only``: an engine on Temporal does not have it.
    """

    name: str
    kind: MetricKind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_sqlite_only: bool = False

    @property
    def full_name(self) -> str:
        """The name of the time series, without the suffixes of a histogram's."""
        return f"{PREFIX}{self.name}{'_total' if self.kind is MetricKind.COUNTER else ''}"


class Sample(msgspec.Struct, frozen=True):
    """A value with its labels, in the order of the family's.

    Of a histogram, ``value`` is the sum, and ``counts`` has the number of values of each bucket. The last count is for
    values above all bounds.
    """

    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()


class Metric(msgspec.Struct, frozen=True):
    """A metric's samples at one time. ``name`` is that of its ``Family``."""

    name: str
    samples: list[Sample]


SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
RUN_SECONDS = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
COMMIT_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

_COUNTER, _GAUGE, _HISTOGRAM = MetricKind
_FUNCTION = ("function",)
_OUTCOME = ("function", "outcome")

CATALOGUE: Sequence[Family] = (
    Family("runs_started", _COUNTER, "Runs that were created, skipped ones included.", _FUNCTION),
    Family("runs_ended", _COUNTER, "Runs that have ended: completed, failed, cancelled or skipped.", _OUTCOME),
    Family(
        "run_duration_seconds",
        _HISTOGRAM,
        "Time from the start of a run's first call to its end.",
        _FUNCTION,
        RUN_SECONDS,
    ),
    Family(
        "steps_ended", _COUNTER, "Steps that have ended: completed or failed. Sleeps and waits are steps too.", _OUTCOME
    ),
    Family(
        "step_duration_seconds",
        _HISTOGRAM,
        "Time of a step's last attempt. Sleeps and waits are not included.",
        _FUNCTION,
        SECONDS,
    ),
    Family("attempts", _COUNTER, "Attempts at steps and at the function's own code: completed or failed.", _OUTCOME),
    Family("calls", _COUNTER, "Calls to apps: answered, failed with an error outside steps, or unreached.", _OUTCOME),
    Family("call_duration_seconds", _HISTOGRAM, "Time of a call that reached its app.", _FUNCTION, SECONDS),
    Family(
        "queue_delay_seconds",
        _HISTOGRAM,
        "Time from when a call is due until it is made: limits and load.",
        _FUNCTION,
        SECONDS,
    ),
    Family(
        "ai_tokens",
        _COUNTER,
        "Tokens of AI models that steps have recorded, failed attempts included: input or output.",
        ("function", "model", "direction"),
    ),
    Family(
        "calls_waiting",
        _GAUGE,
        "Calls that are due and wait: for limits of their function, or for a free slot.",
        _FUNCTION,
        is_sqlite_only=True,
    ),
    Family("calls_in_flight", _GAUGE, "Calls that are under way.", _FUNCTION),
    Family(
        "oldest_call_wait_seconds",
        _GAUGE,
        "Time that the oldest waiting call has waited.",
        _FUNCTION,
        is_sqlite_only=True,
    ),
    Family(
        "runs_live",
        _GAUGE,
        "Runs that have not ended, sleeping and waiting ones included.",
        _FUNCTION,
        is_sqlite_only=True,
    ),
    Family("events_received", _COUNTER, "Events that the engine has stored for senders."),
    Family("events_unmatched", _COUNTER, "Events for which no function has a trigger, and which no run waits for."),
    Family("commits", _COUNTER, "Commits to the database.", is_sqlite_only=True),
    Family(
        "commit_transactions", _HISTOGRAM, "Transactions that shared a commit.", (), COMMIT_SIZES, is_sqlite_only=True
    ),
    Family(
        "commit_duration_seconds",
        _HISTOGRAM,
        "Time of a commit with its transactions.",
        (),
        COMMIT_SECONDS,
        is_sqlite_only=True,
    ),
    Family(
        "transactions_failed", _COUNTER, "Transactions that failed, refused requests included.", is_sqlite_only=True
    ),
    Family(
        "timer_lag_seconds",
        _HISTOGRAM,
        "Time by which a timer fired late: sleeps, timeouts, schedules, retries.",
        (),
        SECONDS,
        is_sqlite_only=True,
    ),
    Family(
        "database_size_bytes",
        _GAUGE,
        "Size of the database's files: main, and wal, the write-ahead log.",
        ("file",),
        is_sqlite_only=True,
    ),
    Family(
        "processes",
        _GAUGE,
        "Processes of the engine by role: leader, or follower in in-process mode.",
        ("role",),
        is_sqlite_only=True,
    ),
    Family(
        "outbox_events",
        _GAUGE,
        "Events in the outbox of a database, as its relay has reported: waiting, or refused by the engine.",
        ("outbox", "state"),
        is_sqlite_only=True,
    ),
    Family(
        "outbox_oldest_seconds",
        _GAUGE,
        "Time that the oldest waiting event of an outbox has waited.",
        ("outbox",),
        is_sqlite_only=True,
    ),
    Family(
        "outbox_report_age_seconds",
        _GAUGE,
        "Time since the relay of an outbox has reported. Above 60 it probably does not run.",
        ("outbox",),
        is_sqlite_only=True,
    ),
    Family("log_up", _GAUGE, "1 if the commit log's store can be reached, otherwise 0.", is_sqlite_only=True),
    Family("log_leader", _GAUGE, "1 if this process leads the database, 0 if it is a standby.", is_sqlite_only=True),
    Family("log_sequence", _GAUGE, "Number of the last entry that this process has.", is_sqlite_only=True),
    Family("log_lag_entries", _GAUGE, "Entries that a standby lacks.", is_sqlite_only=True),
    Family("log_lease_seconds", _GAUGE, "Rest of the leader's lease; negative after its end.", is_sqlite_only=True),
    Family("log_bytes", _GAUGE, "Size of the commit log's entries.", is_sqlite_only=True),
    Family("log_snapshot_age_seconds", _GAUGE, "Age of the last snapshot in the store.", is_sqlite_only=True),
    Family("start_time_seconds", _GAUGE, "Time at which the engine started, in seconds since the epoch."),
    Family("build_info", _GAUGE, "Always 1, with the version of Durably.", ("version",)),
)
"""All metrics, in the order in which they are shown."""

FAMILIES = {family.name: family for family in CATALOGUE}
OTHER_FUNCTIONS = "(other)"
"""The label of functions above the limit."""
OTHER_MODELS = "(other)"
"""The label of a function's models above the limit."""
