"""A long storm: ``python -m tests.crash.soak [--connect] [--log [postgres|s3]] [--blows 300] [--seed N]``.

With ``--connect``, the app dials the engine, and connections are cut too.
With ``--log``, three engines have a commit log in PostgreSQL, or in moto's S3 server, which is struck too.

Storms of 50 blows follow one another, each on a database of its own, until as many were struck as wanted. Exits with 1,
naming the seed, the faults and where the database, the diary and the logs are, at the first storm after which something
is not as it should be.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .log_storm import LogStorm
from .storm import Storm
from .verdict import Verdict

_BLOWS_PER_STORM = 50
_PATIENCE_SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and stop an engine and its app under load, again and again.")
    parser.add_argument("--blows", type=int, default=300, help="how often a process is killed, stopped or terminated")
    parser.add_argument("--seed", type=int, default=None, help="of the first storm; the others' follow from it")
    parser.add_argument(
        "--directory", type=Path, default=None, help="keep databases and logs there, of storms that end well, too"
    )
    parser.add_argument(
        "--log", nargs="?", const="postgres", choices=("postgres", "s3"), help="three engines with a commit log"
    )
    parser.add_argument("--connect", action="store_true", help="the app dials the engine, and connections are cut")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="durably-soak-"))
    left = arguments.blows
    while left > 0:
        blows = min(left, _BLOWS_PER_STORM)
        place = directory / str(seed)
        place.mkdir(parents=True)
        storm = (
            LogStorm(place, seed, store=arguments.log) if arguments.log else Storm(place, seed, dials=arguments.connect)
        )
        if not asyncio.run(_storm(storm, blows)):
            sys.exit(1)
        if arguments.directory is None:
            shutil.rmtree(place)
        left, seed = left - blows, seed + 1
    if arguments.directory is None:
        directory.rmdir()


async def _storm(storm: Storm, blows: int) -> bool:
    print(f"seed {storm.seed}, {blows} blows, in {storm.directory}", flush=True)
    began = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await storm.rage(blows)
    except TimeoutError:
        print(f"  some runs have not ended after {_PATIENCE_SECONDS} s; the blows were: {', '.join(storm.blows)}")
    verdict = Verdict(storm.database, storm.diary, storm.accepted, clock_was_set=storm.clock_was_set)
    faults = storm.faults + verdict.faults
    for fault in faults:
        print(f"  {fault}")
    executed = sum(len(executions) for executions in verdict.executions.values())
    print(
        f"  {len(storm.accepted)} events, {len(verdict.executions)} steps in {executed} executions, "
        f"{time.monotonic() - began:.0f} s, {len(faults)} faults",
        flush=True,
    )
    if isinstance(storm, LogStorm) and storm.takeovers:
        print(f"  {len(storm.takeovers)} takeovers, the longest {max(storm.takeovers):.1f} s", flush=True)
    return not faults


if __name__ == "__main__":
    main()
