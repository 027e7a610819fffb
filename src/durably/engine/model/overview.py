"""What an engine serves and how it does: apps, functions, loads, counts and concerns.

The structs are frozen, with aware UTC datetimes. They are also the JSON of the HTTP API.
"""

import datetime as dt
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from durably.protocol.sync import FunctionConfig
from durably.protocol.text import redact_url

from .runs import ModelUsage, Run, RunStatus


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """A sync of an app.

    ``error`` is the reason of a failed sync. The other fields are ids of functions.
    """

    at: dt.datetime
    error: str | None
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class App(msgspec.Struct, frozen=True, kw_only=True):
    """An app that has synced, and the error if it does not answer."""

    id: str
    url: str
    sdk: str | None
    framework: str | None
    version: str | None
    synced_at: dt.datetime
    function_count: int
    last_sync: SyncReport | None = None
    """The last one that succeeded or failed."""
    unreached_since: dt.datetime | None = None
    """``None`` also if the time is unknown."""
    unreached_error: str | None = None


class FunctionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A function that its app serves. A function that ``is_paused`` starts no runs.

    ``config`` is the synced configuration, without credentials in URLs. ``name`` is the id if the app gave no name.
    """

    id: str
    name: str
    app_id: str
    config: FunctionConfig
    is_paused: bool

    @classmethod
    def of(cls, function_id: str, app_id: str, config: FunctionConfig, is_paused: bool) -> "FunctionInfo":
        steps = {
            name: replace(step, runtime=replace(step.runtime, url=redact_url(step.runtime.url)))
            for name, step in config.steps.items()
        }
        return cls(
            id=function_id,
            name=config.name or function_id,
            app_id=app_id,
            config=replace(config, steps=steps),
            is_paused=is_paused,
        )


class SyncResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a sync.

    - ``modified``: False if the app's functions have not changed since its last sync.
    - ``added``, ``changed``, ``removed``: Ids of functions.
    - ``version``: The client's ``app_version``.
    - ``previous_version``: The version of the previous sync.
    - ``previous_url``: The app's former URL, if it has changed.
    """

    app_id: str
    modified: bool
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    version: str | None = None
    previous_version: str | None = None
    previous_url: str | None = None


class RunCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of runs in an interval that begins ``at``.

    ``created`` counts runs created in the interval, the other fields runs that ended in it. ``replayed``: failed runs
    with a completed rerun.
    """

    at: dt.datetime
    created: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    replayed: int = 0

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled + self.skipped

    @property
    def open_failures(self) -> int:
        """Failed runs without a completed rerun."""
        return max(self.failed - self.replayed, 0)


class FunctionLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The current load of a function, and its runs in the interval of a report.

    - ``backlog``: The number of calls that wait for a slot or for the app.
    - ``queue_delay``: Seconds that the oldest of them has waited.
    - ``in_flight``: The number of calls under way.
    - ``live``: The number of runs that have not ended.

    The first three are ``None`` on Temporal, which does not count them.
    """

    function_id: str
    backlog: int | None
    queue_delay: float | None
    in_flight: int | None
    live: int
    counts: list[RunCounts]


class OutboxReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay of an outbox has reported ``at`` a time, in ms since the epoch.

    ``waiting`` events are not sent yet, the oldest for ``oldest`` seconds. The engine has ``refused`` the others.
    """

    waiting: int
    refused: int
    oldest: float
    at: int


class ConcernKind(StrEnum):
    FAILING_FUNCTION = "failing function"
    UNMATCHED_EVENTS = "unmatched events"
    UNREACHED_APP = "unreached app"
    STUCK_KEY = "stuck concurrency key"
    PAUSED_FUNCTION = "paused function"
    OUTBOX = "outbox"


class Concern(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that needs attention.

    ``subject`` is the id of the function or app, or the name of the event or outbox. ``message`` is a sentence with the
    remedy.
    """

    kind: ConcernKind
    subject: str
    message: str
    count: int
    since: dt.datetime | None


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """The commit log of an engine, and this process's part in it.

    - ``role``: "leader" or "standby".
    - ``sequence``: The number of the last entry that the local file contains.
    - ``lag``: Entries of the log that the local file lacks. 0 for the leader.
    - ``lease_remaining``: Seconds of the leader's lease, ``None`` if there was never a leader.
    - ``leader``: The address of the leader for other machines, if it has one.
    - ``log_bytes``: Bytes of the entries in the store.
    - ``snapshot_age``: Seconds since the last snapshot, ``None`` if there is none.
    """

    store: str
    role: str
    sequence: int
    lag: int
    lease_remaining: float | None
    leader: str
    log_bytes: int
    snapshot_age: float | None

    def __str__(self) -> str:
        """Like "leader with entry 1,234, lease 4.2 s, log 1.5 MiB, last snapshot 3 min ago"."""
        parts = [f"{self.role} with entry {self.sequence:,}"]
        parts += [f"{self.lag:,} entries behind"] if self.role == "standby" else []
        parts += [] if self.lease_remaining is None else [f"lease {self.lease_remaining:.1f} s"]
        parts.append(f"log {self.log_bytes / 2**20:.1f} MiB")
        parts += [] if self.snapshot_age is None else [f"last snapshot {self.snapshot_age / 60:.0f} min ago"]
        return ", ".join(parts)


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state.

    ``counts`` are for intervals of ``interval_seconds`` from ``since`` to ``until``. ``live`` has the number of runs
    for each status of runs that have not ended. ``retrying`` is how many of them have failed with their last attempt
    since the engine's start, and are tried again; ``None`` on Temporal. ``log`` is ``None`` without a commit log, or if
    its store cannot be reached.
    """

    since: dt.datetime
    until: dt.datetime
    interval_seconds: int
    counts: list[RunCounts]
    live: dict[RunStatus, int]
    functions: list[FunctionLoad]
    concerns: list[Concern]
    retrying: int | None = None
    log: LogState | None = None


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of a step in seconds, over the function's last runs."""

    step: str
    count: int
    failed: int
    p50: float
    p95: float


class FunctionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A function and its load.

    Durations are seconds, over its last ``sampled`` ended runs. ``usage`` are the tokens of models in the interval of
    the load, which begins and ends with a quarter of an hour here.
    """

    function: FunctionInfo
    load: FunctionLoad
    steps: list[StepTimes]
    sampled: int
    p50: float | None
    p95: float | None
    usage: list[ModelUsage] = []


class UnreachedApp(msgspec.Struct, frozen=True):
    """The calls of an app that did not reach it, since the last one that did."""

    since: int
    """Milliseconds since the epoch."""
    error: str
    count: int


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A cron schedule of a function.

    ``next_ticks`` are the next scheduled times; ``last_runs`` the newest first.
    """

    function_id: str
    schedule: str
    next_ticks: list[dt.datetime]
    last_runs: list[Run]
    is_paused: bool


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of an engine."""

    kind: str
    notes: list[str] = []
    """Sentences on the limits of its lists."""
    unsupported: frozenset[str] = frozenset()
    """See ``Engine.unsupported``."""
    ui_url: str | None = None
    """The URL of the engine's own UI, if it has one and its address is configured."""
    run_url: str | None = None
    """The URL of a run in that UI, with ``{run_id}``."""

    def offers(self, name: str) -> bool:
        """Whether the engine supports an operation, an argument or a value."""
        parts = name.split(".")
        return not any(".".join(parts[: count + 1]) in self.unsupported for count in range(len(parts)))


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The position up to which a client knows the engine's changes."""

    position: int
