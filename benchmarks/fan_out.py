"""Seconds of a run of a thousand steps: all at once, in groups, and one after another without checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .children import Child
from .tables import describe_machine, judge, table

WAYS = ("in-process", "http")
STEPS = 1_000


@dataclass(frozen=True)
class Shape:
    """``groups`` of ``width`` parallel steps, one group after another."""

    name: str
    groups: int
    width: int

    def with_steps(self, steps: int) -> "Shape":
        """The same shape with fewer steps: as many groups, or as wide if they have one step."""
        groups = steps if self.width == 1 else self.groups
        return Shape(self.name, groups, max(1, steps // groups))


AT_ONCE = Shape("all at once", 1, STEPS)
GROUPS = Shape("10 groups", 10, STEPS // 10)
SEQUENCE = Shape("one after another", STEPS, 1)
SHAPES = (AT_ONCE, GROUPS, SEQUENCE)


def measure(directory: Path, way: str, *, rounds: int, steps: int = STEPS) -> dict[Shape, list[float]]:
    """Seconds of a run, one sample a round for each shape."""
    samples: dict[Shape, list[float]] = {shape: [] for shape in SHAPES}
    with Child("benchmarks.contenders.durably_fan_out", directory / way, way) as child:
        child.ask(groups=2, width=steps // 10)  # warming up
        for number in range(rounds):
            for shape in SHAPES if number % 2 else reversed(SHAPES):
                asked = shape.with_steps(steps)
                samples[shape].append(child.ask(groups=asked.groups, width=asked.width))
    return samples


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, steps = (1, 20) if is_quick else (5, STEPS)
    found = {way: measure(directory, way, rounds=rounds, steps=steps) for way in WAYS}
    rows = [[way, *(f"{median(samples[shape]):.2f} s" for shape in SHAPES)] for way, samples in found.items()]
    ratios = {way: median(samples[GROUPS]) / median(samples[AT_ONCE]) for way, samples in found.items()}
    return "\n".join(
        [
            "## A run of a thousand steps\n",
            f"{describe_machine()} No checkpoints, one run at a time, medians of {rounds} rounds of {steps:,} steps. "
            "Each step of a sequence has a call of its own, which replays all steps before it; with checkpoints, "
            "see above.\n",
            table(["", *(shape.name for shape in SHAPES)], rows),
            *(judge(f"{way}, 10 groups against all at once", ratio, at_most=4) for way, ratio in ratios.items()),
            "",
        ]
    )
