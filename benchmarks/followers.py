"""Processes of one app with the engine in one of them: what a process that follows runs, against the leader alone."""

from pathlib import Path
from statistics import median

from .children import Child, cpu_seconds_of
from .tables import describe_machine, judge, table

PROCESSES = 3
_WORKERS = "benchmarks.contenders.workers"


def measure_together(directory: Path, kinds: list[list[str]], runs: int) -> tuple[list[float], float]:
    """Steps per second of each process, and the CPU seconds of all for a step. The first process leads."""
    children: list[Child] = []
    try:
        for number, arguments in enumerate(kinds):
            children.append(Child(_WORKERS, directory / str(number), *arguments))
        leader = children[0]
        leader.ask(runs=runs // 4)  # warming up
        for child in children:
            child.ask()
        before = sum(cpu_seconds_of(child.pid) for child in children)
        seconds = leader.ask(runs=runs)
        cpu = sum(cpu_seconds_of(child.pid) for child in children) - before
        steps: list[int] = [child.ask() for child in children]
        return [count / seconds for count in steps], cpu / sum(steps)
    finally:
        for child in reversed(children):
            child.close()


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    runs, rounds = (20, 1) if is_quick else (3_000, 7)
    sides: dict[str, list[list[str]]] = {
        "the leader alone": [[]],
        "a follower of a leader without functions": [["idle"], []],
        f"{PROCESSES} processes": [[]] * PROCESSES,
    }
    found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, kinds in sides.items() if number % 2 else reversed(sides.items()):
            found[name].append(measure_together(directory / f"{number}-{len(kinds)}", kinds, runs))
    alone = [rates[0] for rates, _ in found["the leader alone"]]
    costs = [cpu for _, cpu in found["the leader alone"]]
    ratios = {
        name: median(min(rate for rate in rates if rate) / first for (rates, _), first in zip(each, alone, strict=True))
        for name, each in found.items()
    }
    rows = [
        [
            name,
            f"{median(sum(rates) for rates, _ in each):,.0f}",
            " + ".join(f"{median(column):,.0f}" for column in zip(*(rates for rates, _ in each), strict=True)),
            f"{ratios[name]:.2f} ×",
            f"{median(cpu / first for (_, cpu), first in zip(each, costs, strict=True)):.2f} ×",
        ]
        for name, each in found.items()
    ]
    header = ["", "steps per second", "in each process", "the slowest, of the leader alone", "CPU time of a step"]
    return "\n".join(
        [
            "## The processes of one app\n",
            f"{describe_machine()} In process, {runs:,} runs of three steps, medians of {rounds} rounds. The leader "
            "sends the events. CPU time is that of all processes.\n",
            table(header, rows),
            *(judge(name, ratio, at_least=0.6) for name, ratio in list(ratios.items())[1:]),
            "",
        ]
    )
