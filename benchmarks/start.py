"""What Durably takes before it does anything: the start of a process, and the memory of an app that is idle."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from .children import Child, cpu_seconds_of
from .tables import describe_machine, judge, table

Times = tuple[float, float]
"""Seconds that passed, and seconds of CPU time."""

_COMMANDS = {
    "`python -c pass`": ["-c", "pass"],
    "`import asyncio, msgspec`": ["-c", "import asyncio, msgspec"],
    "`import durably`": ["-c", "import durably"],
    "`durably --help`": ["-m", "durably.cli", "--help"],
}
_DEV = "`durably dev`, until it is ready"
_AIMS = {"`import durably`": 0.06, "`durably --help`": 0.15, _DEV: 0.7}
_FRAMEWORKS = {"fast_api": "FastAPI", "flask": "Flask"}
_READY_SECONDS = 60.0


def time_command(arguments: list[str]) -> Times:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_dev(directory: Path) -> Times:
    """Until it prints its first line, which has the engine's URL."""
    directory.mkdir(parents=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "durably.cli", "dev", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _READY_SECONDS)[0]:
            raise RuntimeError(f"durably dev is not ready after {_READY_SECONDS} s")
        found = time.perf_counter() - start, cpu_seconds_of(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate()
    return found


def measure_memory(directory: Path, framework: str, kind: str) -> int:
    """Resident bytes of the idle app."""
    with Child("benchmarks.contenders.idle", directory / f"{framework}-{kind}", framework, kind) as app:
        time.sleep(1.0)  # the work after the engine's start is not idle time
        app.ask()
        return app.rss()


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds = 1 if is_quick else 15
    found: dict[str, list[Times]] = {name: [] for name in (*_COMMANDS, _DEV)}
    for number in range(rounds):
        for name, arguments in _COMMANDS.items():
            found[name].append(time_command(arguments))
        found[_DEV].append(time_dev(directory / str(number)))
    rows = [
        [name, *(f"{pick(column) * 1e3:,.0f} ms" for column in zip(*times, strict=True) for pick in (min, median))]
        for name, times in found.items()
    ]
    memory = {
        name: [measure_memory(directory, framework, kind) / 1e6 for kind in ("bare", "embedded")]
        for framework, name in _FRAMEWORKS.items()
    }
    return "\n".join(
        [
            "## Start, and an idle app\n",
            f"{describe_machine()} {rounds} starts of each, with compiled bytecode.\n",
            table(["", "at least", "median", "CPU time at least", "median"], rows),
            *(
                judge(name, min(times)[0], at_most=aim, unit="s")
                for name, aim in _AIMS.items()
                if (times := found[name])
            ),
            "",
            table(
                ["resident memory", "bare", "with `Embedded`", "more"],
                [
                    [name, *(f"{each:,.1f} MB" for each in (bare, full, full - bare))]
                    for name, (bare, full) in memory.items()
                ],
            ),
            *(judge(name, full - bare, at_most=25, unit="MB") for name, (bare, full) in memory.items()),
            "",
        ]
    )
