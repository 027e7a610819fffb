"""A million runs on the virtual clock: does memory grow with the number of runs that there were?"""

import time
from pathlib import Path

from .children import Child
from .slopes import fit
from .tables import describe_machine

RUNS = 1_000_000
_SAMPLES = 50


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    share = (5_000 if is_quick else RUNS) // _SAMPLES
    started: list[int] = []
    memory, file, ended = [], [], 0
    start = time.perf_counter()
    with Child("benchmarks.contenders.virtual", directory) as child:
        for number in range(_SAMPLES):
            ended = child.ask(runs=share)
            started.append((number + 1) * share)
            memory.append(child.rss())
            file.append(sum(path.stat().st_size for path in directory.glob("*/*.db")))
    seconds = time.perf_counter() - start
    growth, filling = fit(started, memory), fit(started, file)
    return "\n".join(
        [
            "## A million runs on the virtual clock\n",
            f"{describe_machine()} {started[-1]:,} runs started, {ended:,} ended, in {seconds:,.0f} s "
            f"({started[-1] / seconds:,.0f} a second). Fitted over the second half:\n",
            f"- resident memory ({memory[-1] / 1e6:,.0f} MB at the end) grows by {growth} bytes per run, which is "
            f"{'flat' if growth.is_flat else 'not flat'};",
            f"- the file ({file[-1] / 1e6:,.1f} MB at the end) grows by {filling} bytes per run, which is "
            f"{'flat' if filling.is_flat else 'not flat'}.\n",
        ]
    )
