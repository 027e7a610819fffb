"""Events taken in per second, in batches that trigger and wake nothing, against bare SQLite inserts of the same rows,
as durable, in the same table with the same indexes."""

from contextlib import ExitStack
from pathlib import Path
from statistics import median

from .children import Child
from .contenders.load import BATCH
from .tables import describe_machine, judge, table

FLOOR = "SQLite, one batch a commit"
WAYS = {
    FLOOR: ("ingest_floor", ()),
    "Durably over HTTP": ("ingest_durably", ("http",)),
    "Durably in process": ("ingest_durably", ("in-process",)),
}


def measure(directory: Path, *, rounds: int, batches: int) -> dict[str, list[float]]:
    """Events per second, one sample a round for each."""
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(
                Child(f"benchmarks.contenders.{module}", directory / "-".join((module, *arguments)), *arguments)
            )
            for name, (module, arguments) in WAYS.items()
        }
        names = list(WAYS)
        for number in range(-1, rounds):  # the first is for warming up
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                seconds = children[name].ask(batches=batches)
                if number >= 0:
                    samples[name].append(BATCH * batches / seconds)
    return samples


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, batches = (1, 2) if is_quick else (9, 100)
    samples = measure(directory, rounds=rounds, batches=batches)
    ratios = {
        name: median(own / floor for own, floor in zip(found, samples[FLOOR], strict=True))
        for name, found in samples.items()
    }
    rows = [[name, f"{median(found):,.0f}", f"{ratios[name]:.2f} ×"] for name, found in samples.items()]
    return "\n".join(
        [
            "## Taking in events\n",
            f"{describe_machine(('aiohttp',))} Batches of {BATCH}, four at once; medians of {rounds} rounds of "
            f"{batches} batches.\n",
            table(["", "events/s", "against the floor"], rows),
            *(judge(name, ratio, at_least=0.25) for name, ratio in ratios.items() if name != FLOOR),
            "",
        ]
    )
