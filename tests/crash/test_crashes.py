"""A short storm, in every run of the tests; ``make soak`` makes a long one."""

import asyncio
import os
from pathlib import Path

import pytest

from .log_storm import LogStorm
from .storm import EVENTS, Storm
from .verdict import Verdict

BLOWS = 12
PATIENCE_SECONDS = 250


@pytest.mark.parametrize("dials", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["called", "dials"])
async def test_nothing_is_lost_in_a_storm(dials: bool, tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "1"))
    print(f"CRASH_SEED={seed}")
    storm = Storm(tmp_path, seed, dials=dials)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storm.rage(BLOWS)
    verdict = Verdict(storm.database, storm.diary, storm.accepted)
    assert storm.faults + verdict.faults == [], storm.blows
    assert set(storm.accepted.values()) == set(EVENTS)


@pytest.mark.parametrize("store", ["postgres", pytest.param("s3", marks=pytest.mark.slow)])
async def test_nothing_is_lost_when_machines_and_the_commit_log_fail(store: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "26"))
    storm = LogStorm(tmp_path, seed, takeover_seconds=PATIENCE_SECONDS, store=store)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storm.rage(BLOWS)
    verdict = Verdict(storm.database, storm.diary, storm.accepted, clock_was_set=storm.clock_was_set)
    assert storm.faults + verdict.faults == [], storm.blows
    assert storm.takeovers
