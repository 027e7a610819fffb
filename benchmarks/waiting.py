"""An event that wakes one of very many waiting runs, against one that wakes one of a few."""

import random
from pathlib import Path
from statistics import median

from .children import Child
from .latency import p99
from .tables import describe_machine, judge, table

FEW, MANY = 100, 100_000
_IN_A_SLOT = 20


def measure(directory: Path, *, rounds: int, many: int) -> tuple[list[float], list[float]]:
    """Seconds from event to wake, with few and with many runs waiting."""
    few_found: list[float] = []
    many_found: list[float] = []
    with (
        Child("benchmarks.contenders.waiting", directory / "few", str(FEW)) as few_child,
        Child("benchmarks.contenders.waiting", directory / "many", str(many)) as many_child,
    ):
        for number in range(-1, rounds):
            orders = random.Random(number).sample(range(many), _IN_A_SLOT)
            sides = [(few_child, few_found), (many_child, many_found)]
            for child, found in sides if number % 2 else reversed(sides):
                seconds = child.ask(orders=orders)
                if number >= 0:
                    found += seconds
    return few_found, many_found


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    many = 2 * FEW if is_quick else MANY
    few_found, many_found = measure(directory, rounds=1 if is_quick else 25, many=many)
    rows = [
        [f"one of {count:,}", *(f"{find(found) * 1e3:.2f} ms" for find in (median, p99))]
        for count, found in ((FEW, few_found), (many, many_found))
    ]
    ratios = [f"{find(many_found) / find(few_found):.2f} ×" for find in (median, p99)]
    return "\n".join(
        [
            "## Waking one of many\n",
            f"{describe_machine()} In process; {len(many_found):,} events a side.\n",
            table(["", "p50", "p99"], [*rows, ["ratio", *ratios]]),
            judge("p50", median(many_found) / median(few_found), at_most=1.2),
            "",
        ]
    )
