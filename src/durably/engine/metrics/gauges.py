"""The present state of an engine as gauges, which are read for each scrape."""

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import msgspec

from .catalogue import Metric, Sample
from .counters import EngineCounters

_FILES = {"main": "", "wal": "-wal"}


class EngineState(msgspec.Struct, frozen=True):
    """The values of an engine that gauges show.

    ``active`` are the ids of the functions that apps serve now. ``in_flight`` is the number of calls under way by
    function. ``followers`` is the number of other processes that use the engine. ``started_at`` is in milliseconds
    since the epoch.
    """

    database: Path
    started_at: int
    active: list[str]
    in_flight: Mapping[str, int]
    followers: int


def read_gauges(state: EngineState, counters: EngineCounters) -> list[Metric]:
    """The gauges of an engine.

    ``counters`` limits the number of functions, and gets zeros for those that have not run yet.
    """
    in_flight = Counter[str]({counters.label_of(function_id): 0 for function_id in state.active})
    for function_id, count in state.in_flight.items():
        in_flight[counters.label_of(function_id)] += count
    return [
        Metric("calls_in_flight", [Sample((label,), count) for label, count in in_flight.items()]),
        Metric("database_size_bytes", [Sample((name,), size) for name, size in _read_sizes(state.database).items()]),
        Metric("processes", [Sample(("leader",), 1), Sample(("follower",), state.followers)]),
        Metric("start_time_seconds", [Sample((), state.started_at / 1000)]),
        Metric("build_info", [Sample((version("durably"),), 1)]),
    ]


def _read_sizes(database: Path) -> dict[str, int]:
    files = {name: Path(f"{database}{suffix}") for name, suffix in _FILES.items()}
    return {name: file.stat().st_size for name, file in files.items() if file.exists()}
