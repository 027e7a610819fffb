"""Cost of a step in a function of a thousand steps, compared with one of ten: earlier steps must not count."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from .children import Child
from .tables import describe_machine, judge, table

WAYS = ("in-process", "http")
SHORT, LONG = 10, 1_000


@dataclass(frozen=True)
class StepCosts:
    """Seconds per step, one sample a round."""

    way: str
    short: list[float]
    long: list[float]

    @property
    def ratio(self) -> float:
        return median(long / short for long, short in zip(self.long, self.short, strict=True))


def measure(directory: Path, way: str, *, rounds: int, long: int = LONG, short: int = SHORT) -> StepCosts:
    costs = StepCosts(way, [], [])
    with Child("benchmarks.contenders.durably_steps", directory / way, way) as child:
        child.ask(steps=short, runs=long // short)  # warming up
        for number in range(rounds):
            sides = [(short, costs.short), (long, costs.long)]
            for steps, samples in sides if number % 2 else reversed(sides):
                samples.append(mean(child.ask(steps=steps, runs=long // steps)))
    return costs


def report(directory: Path, *, is_quick: bool, ways: Sequence[str] = WAYS) -> str:
    """The section of the results."""
    rounds, long = (1, 2 * SHORT) if is_quick else (9, LONG)
    found = [measure(directory, way, rounds=rounds, long=long) for way in ways]
    rows = [
        [
            costs.way,
            f"{median(costs.short) * 1e6:,.0f} µs",
            f"{median(costs.long) * 1e6:,.0f} µs",
            f"{costs.ratio:.2f} ×",
        ]
        for costs in found
    ]
    return "\n".join(
        [
            "## A step in a long function\n",
            f"{describe_machine()} Checkpointing, one run at a time, medians of {rounds} rounds of {long} steps "
            "a side.\n",
            table(["", f"a step of {SHORT}", f"a step of {long:,}", "ratio"], rows),
            *(judge(costs.way, costs.ratio, at_most=1.2) for costs in found),
            "",
        ]
    )
