"""Seconds of a run of a thousand steps: all at once, in groups, and one after another without checkpoints.

The CPU time of a step, by the number of steps that a run has at once.
"""

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import restate
from .children import Child
from .tables import describe_machine, judge, table

STEPS = 1_000
WIDTHS = (10, 100, STEPS)


@dataclass(frozen=True)
class Contender:
    """``package`` is that of a peer, from PyPI."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    package: str | None = None


IN_PROCESS = Contender("Durably in process", "durably_fan_out", ("in-process",))
HTTP = Contender("Durably over HTTP", "durably_fan_out", ("http",))
OWN = (IN_PROCESS, HTTP)
DBOS = Contender("DBOS on SQLite", "fan_out_dbos", package="dbos")
RESTATE = Contender("Restate", "fan_out_restate", package="restate-sdk")
TEMPORAL = Contender("Temporal's development server", "fan_out_temporal", package="temporalio")


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


def installed() -> list[Contender]:
    """Durably, and the peers that are installed."""
    peers = [peer for peer in (DBOS, TEMPORAL) if peer.package and importlib.util.find_spec(peer.package)]
    return [*OWN, *peers, *([RESTATE] if restate.is_installed() else [])]


def measure(
    directory: Path, contenders: Sequence[Contender], *, rounds: int, steps: int = STEPS
) -> dict[Contender, dict[Shape, list[float]]]:
    """Seconds of a run, one sample a round for each shape."""
    samples = {contender: {shape: list[float]() for shape in SHAPES} for contender in contenders}
    with ExitStack() as stack:
        children = {
            each: stack.enter_context(
                Child(
                    f"benchmarks.contenders.{each.module}",
                    directory / "-".join([each.module, *each.arguments]),
                    *each.arguments,
                )
            )
            for each in contenders
        }
        for child in children.values():
            child.ask(groups=2, width=steps // 10)  # warming up
        for number in range(rounds):
            for shape in SHAPES if number % 2 else reversed(SHAPES):
                asked = shape.with_steps(steps)
                for contender, child in children.items():
                    samples[contender][shape].append(child.ask(groups=asked.groups, width=asked.width))
    return samples


def measure_widths(
    directory: Path, own: Contender, *, checkpointing: bool, rounds: int, steps: int = STEPS
) -> dict[int, list[float]]:
    """CPU seconds of a step, app and engine together: by the width of its fan-out, one sample a round.

    As many runs are started at once as have ``steps`` steps together.
    """
    widths = [min(width, steps) for width in WIDTHS]
    samples: dict[int, list[float]] = {width: [] for width in widths}
    place = directory / f"{own.arguments[0]}-{checkpointing}"
    with Child(f"benchmarks.contenders.{own.module}", place, *own.arguments) as child:
        for number in range(rounds + 1):
            for width in widths if number % 2 else reversed(widths):
                cpu = child.ask(groups=1, width=width, runs=steps // width, checkpointing=checkpointing)
                if number:  # the first warms up
                    samples[width].append(cpu / steps)
    return samples


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, steps = (1, 20) if is_quick else (5, STEPS)
    found = measure(directory, installed(), rounds=rounds, steps=steps)
    rows = [
        [contender.name, *(f"{median(samples[shape]):.2f} s" for shape in SHAPES)]
        for contender, samples in found.items()
    ]
    costs = {
        f"{own.name}, {'with' if checkpointing else 'without'} checkpoints": measure_widths(
            directory, own, checkpointing=checkpointing, rounds=rounds, steps=steps
        )
        for own in OWN
        for checkpointing in (False, True)
    }
    cost_rows = [
        [name, *(f"{median(samples) * 1e6:,.0f} µs" for samples in by_width.values())]
        for name, by_width in costs.items()
    ]
    growth = {name: median(by_width[steps]) / median(by_width[WIDTHS[0]]) for name, by_width in costs.items()}
    return "\n".join(
        [
            "## A run of a thousand steps\n",
            f"{describe_machine([each.package for each in found if each.package])} One run at a time, medians of "
            f"{rounds} rounds of {steps:,} steps. Durably has no checkpoints: each step of a sequence has a call of "
            "its own, which replays all steps before it; with checkpoints, see above.\n",
            table(["", *(shape.name for shape in SHAPES)], rows),
            *(
                judge(f"{own.name}, 10 groups against all at once", _ratio(found[own], found[own], GROUPS), at_most=4)
                for own in OWN
            ),
            *(
                judge(f"{own.name}, against {peer.name}", 1 / _ratio(found[own], found[peer]), at_least=1)
                for own in OWN
                for peer in found
                if peer not in OWN
            ),
            f"\nCPU time of a step, app and engine together, with as many runs at once as have {steps:,} steps:\n",
            table(["", *(f"{width:,} at once" for width in WIDTHS)], cost_rows),
            *(judge(f"{name}, the widest against 10 at once", ratio, at_most=1.2) for name, ratio in growth.items()),
            "",
        ]
    )


def _ratio(own: dict[Shape, list[float]], other: dict[Shape, list[float]], shape: Shape = AT_ONCE) -> float:
    """The time of a shape against that of all steps at once: the median of the rounds' own ratios."""
    return median(a / b for a, b in zip(own[shape], other[AT_ONCE], strict=True))
