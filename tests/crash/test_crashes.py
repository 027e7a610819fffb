"""A short storm, in every run of the tests; ``make soak`` makes a long one."""

import asyncio
import os
from pathlib import Path

from .log_storm import LogStorm
from .storm import EVENTS, Storm
from .verdict import Verdict

BLOWS = 12
PATIENCE_SECONDS = 250


async def test_nothing_is_lost_in_a_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "1"))
    print(f"CRASH_SEED={seed}")
    storm = Storm(tmp_path, seed)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storm.rage(BLOWS)
    verdict = Verdict(storm.database, storm.diary, storm.accepted)
    assert storm.faults + verdict.faults == []
    assert set(storm.accepted.values()) == set(EVENTS)


async def test_nothing_is_lost_when_machines_and_the_commit_log_fail(tmp_path: Path) -> None:
    storm = LogStorm(tmp_path, int(os.environ.get("CRASH_SEED", "26")), takeover_seconds=PATIENCE_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storm.rage(BLOWS)
    assert storm.faults + Verdict(storm.database, storm.diary, storm.accepted).faults == [], storm.blows
    assert storm.takeovers
