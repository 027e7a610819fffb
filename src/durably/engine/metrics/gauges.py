"""The present state of an engine as gauges, which are read for each scrape."""

from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec

from durably.engine.reports import FunctionLoad

from .catalogue import Metric, Sample
from .counters import EngineCounters

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
    ``started_at`` is in milliseconds since the epoch.
    """

    database: Path
    started_at: int
    loads: list[FunctionLoad]
    followers: int


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
        Metric("start_time_seconds", [Sample((), state.started_at / 1000)]),
        Metric("build_info", [Sample((version("durably"),), 1)]),
    ]


def _read_sizes(database: Path) -> dict[str, int]:
    files = {name: Path(f"{database}{suffix}") for name, suffix in _FILES.items()}
    return {name: file.stat().st_size for name, file in files.items() if file.exists()}
