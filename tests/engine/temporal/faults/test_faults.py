"""Workers and the server are killed and stopped under load; ``FAULT_BLOWS=200`` makes a long storm."""

import asyncio
import os
from pathlib import Path

import pytest

from .storm import Storm
from .verdict import find_faults

BLOWS = int(os.environ.get("FAULT_BLOWS", "3"))
SEED = int(os.environ.get("FAULT_SEED", "1"))


@pytest.mark.timeout(240 + 10 * BLOWS)
async def test_nothing_is_lost_and_no_committed_step_runs_again(tmp_path: Path) -> None:
    print(f"FAULT_SEED={SEED}")
    storm = Storm(tmp_path, SEED)
    async with asyncio.timeout(200 + 10 * BLOWS), storm.running() as client:
        await storm.rage(client, BLOWS)
        assert await find_faults(storm, client) == []
        assert await storm.left(client) == []
    assert storm.accepted
