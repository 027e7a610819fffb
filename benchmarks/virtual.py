"""A million runs on the virtual clock: does memory grow with the number of runs that there were, or the file?

``python -m benchmarks.virtual --runs 50000`` makes do with fewer.
"""

import argparse
import tempfile
import time
from pathlib import Path

from .children import Child
from .slopes import fit
from .tables import describe_machine

RUNS = 1_000_000
_SAMPLES = 50


def measure(directory: Path, runs: int) -> str:
    """The section of the results."""
    share = runs // _SAMPLES
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
            f"## {started[-1]:,} runs on the virtual clock\n",
            f"{describe_machine()} {ended:,} of them have ended, in {seconds:,.0f} s "
            f"({started[-1] / seconds:,.0f} a second). Fitted over the second half:\n",
            f"- resident memory ({memory[-1] / 1e6:,.0f} MB at the end) grows by {growth} bytes per run, which is "
            f"{'flat' if growth.is_flat else 'not flat'};",
            f"- the file ({file[-1] / 1e6:,.1f} MB at the end) grows by {filling} bytes per run, which is "
            f"{'flat' if filling.is_flat else 'not flat'}.\n",
        ]
    )


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    return measure(directory, 5_000 if is_quick else RUNS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.virtual", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="a multiple of 5,000")
    with tempfile.TemporaryDirectory(prefix="durably-benchmark-") as name:
        print(measure(Path(name), parser.parse_args().runs))
