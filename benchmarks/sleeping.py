"""A hundred thousand sleeping runs: what they cost an engine with nothing else to do, and how late others wake then."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .children import Child
from .database import count_waits
from .latency import p99
from .tables import describe_machine, table

SLEEPING = 100_000
_TOGETHER = 10_000.0
"""Wakes a second that no engine on one machine keeps up with."""


@dataclass(frozen=True)
class Idle:
    """Of an engine without calls: seconds that opening took, resident bytes, and the share of a core that it uses."""

    opened: float
    rss: int
    cpu: float


@dataclass(frozen=True)
class Wakes:
    """``capacity``: wakes per second at most. ``late``: seconds, of wakes at half of that."""

    capacity: float
    late: list[float]


def measure_idle(directory: Path, seconds: float) -> Idle:
    with Child("benchmarks.engine_process", directory) as engine:
        time.sleep(min(seconds, 2.0))  # the work after opening is not idle time
        before = engine.cpu_seconds()
        time.sleep(seconds)
        return Idle(engine.ready["opened"], engine.rss(), (engine.cpu_seconds() - before) / seconds)


def measure_wakes(directory: Path, runs: int, seconds: float) -> Wakes:
    """``runs`` measure the capacity. Then they wake at half of it, for the given seconds."""
    with (
        Child("benchmarks.engine_process", directory) as engine,
        Child("benchmarks.contenders.sleeping", directory / "app", engine.ready["origin"]) as app,
    ):
        capacity = runs / max(app.ask(runs=runs, per_second=_TOGETHER))
        return Wakes(capacity, app.ask(runs=round(capacity / 2 * seconds), per_second=capacity / 2))


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    sleeping, seconds = (200, 1.0) if is_quick else (SLEEPING, 20.0)
    empty = measure_idle(directory / "empty", seconds)
    with Child("benchmarks.contenders.sleeping", directory / "full", str(sleeping)):
        pass
    if (found := count_waits(directory / "full")) != sleeping:
        raise RuntimeError(f"{found} runs are asleep instead of {sleeping}")
    full = measure_idle(directory / "full", seconds)
    wakes = measure_wakes(directory / "full", 50 if is_quick else 1_000, seconds)
    rows = [
        [name, f"{idle.opened:.2f} s", f"{idle.rss / 1e6:,.1f} MB", f"{idle.cpu:.2%} of a core"]
        for name, idle in (("no runs", empty), (f"{sleeping:,} sleeping", full))
    ]
    return "\n".join(
        [
            f"## {sleeping:,} sleeping runs\n",
            f"{describe_machine()} Idle for {seconds:.0f} s. Aims: recovery within 5 s, less than 100 MB more "
            "memory, and less than 1 % of a core.\n",
            table(["an engine with", "recovery at start", "resident memory", "idle"], rows),
            f"{(full.rss - empty.rss) / 1e6:+.1f} MB.\n",
            f"Beside them, an app over HTTP: {len(wakes.late):,} runs that wake at {wakes.capacity / 2:,.0f} a second, "
            f"half of what it can at most, are late by {median(wakes.late) * 1e3:.1f} ms (p50) and "
            f"{p99(wakes.late) * 1e3:.1f} ms (p99). Aim: p99 below 100 ms.\n",
        ]
    )
