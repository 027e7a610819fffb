"""A long storm: ``python -m tests.engine.temporal.faults.soak [--blows 200] [--seed N]``.

Storms of twenty blows follow one another, each on a server of its own. Exits with 1 at the first storm with a fault,
and names its seed and the directory of its logs.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .storm import Storm
from .verdict import find_faults

_BLOWS_PER_STORM = 20
_PATIENCE_SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and stop workers and a Temporal server under load.")
    parser.add_argument("--blows", type=int, default=200, help="how often a process is killed or stopped")
    parser.add_argument("--seed", type=int, default=None, help="of the first storm; the next ones count on from it")
    parser.add_argument("--pace", type=float, default=1.0, help="the time between blows, compared with a quiet machine")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    left, pace = arguments.blows, arguments.pace
    while left > 0:
        blows = min(left, _BLOWS_PER_STORM)
        directory = Path(tempfile.mkdtemp(prefix="durably-temporal-soak-"))
        if not asyncio.run(_storm(directory, seed, blows, pace)):
            sys.exit(1)
        shutil.rmtree(directory)
        left, seed = left - blows, seed + 1


async def _storm(directory: Path, seed: int, blows: int, pace: float) -> bool:
    print(f"seed {seed}, {blows} blows, in {directory}", flush=True)
    storm, began = Storm(directory, seed, pace=pace), time.monotonic()
    async with storm.running() as client:
        faults = []
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await storm.rage(client, blows)
                await storm.fill_slots(client)
        except TimeoutError:
            faults = [f"{each} has not ended after {_PATIENCE_SECONDS} s" for each in await storm.left(client)]
        faults += await find_faults(storm, client)
    for fault in faults:
        print(f"  {fault}")
    print(f"  {', '.join(storm.blows)}")
    print(
        f"  {len(storm.accepted)} events, {time.monotonic() - began:.0f} s, {len(faults)} faults",
        flush=True,
    )
    return not faults


if __name__ == "__main__":
    main()
