"""From sending an event to the function's first line: two hops and one commit, and the same two hops and commit bare.

An event is sent when all before have ended. Both sides send with one client, are served by uvicorn and FastAPI, and
have the party in the middle in a process of its own; they take turns.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from . import restate
from .children import Child
from .tables import describe_machine, judge, table

PACKAGES = ("aiohttp", "uvicorn", "fastapi")
_IN_A_SLOT = 25


@dataclass(frozen=True)
class Latencies:
    """Seconds, each in the order in which they were measured. ``restate`` is empty if Restate is not installed."""

    own: list[float]
    floor: list[float]
    restate: list[float]


def measure(directory: Path, *, rounds: int) -> Latencies:
    latencies = Latencies([], [], [])
    names = {"durably": latencies.own, "floor": latencies.floor}
    if restate.is_installed():
        names["restate"] = latencies.restate
    with ExitStack() as stack:
        sides = [
            (stack.enter_context(Child(f"benchmarks.contenders.latency_{name}", directory / name)), found)
            for name, found in names.items()
        ]
        for child, _ in sides:
            child.ask(times=_IN_A_SLOT)  # warming up
        for number in range(rounds):
            for child, found in sides if number % 2 else reversed(sides):
                found += child.ask(times=_IN_A_SLOT)
        return latencies


def p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    latencies = measure(directory, rounds=1 if is_quick else 40)
    rows = [
        [name, *(f"{find(found) * 1e3:.2f} ms" for find in (median, p99))]
        for name, found in (("Durably", latencies.own), ("bare", latencies.floor), ("Restate", latencies.restate))
        if found
    ]
    ratios = [f"{find(latencies.own) / find(latencies.floor):.2f} ×" for find in (median, p99)]
    return "\n".join(
        [
            "## From an event to the function's first line\n",
            f"{describe_machine(PACKAGES)} {len(latencies.own):,} events a side.\n",
            table(["", "p50", "p99"], [*rows, ["Durably against bare", *ratios]]),
            *(
                judge(name, find(latencies.own) / find(latencies.floor), at_most=1.3)
                for name, find in (("p50", median), ("p99", p99))
            ),
            "",
        ]
    )
