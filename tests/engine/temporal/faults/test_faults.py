"""Workers and the server are killed and stopped under load.

``python -m tests.engine.temporal.faults.soak --blows 200`` is the long form.
"""

import asyncio
from pathlib import Path

import pytest

from .storm import Storm
from .verdict import find_faults


@pytest.mark.timeout(180)
async def test_nothing_is_lost_and_no_committed_step_runs_again(tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=1)
    async with asyncio.timeout(150), storm.running() as client:
        await storm.rage_briefly(client)
        assert await find_faults(storm, client) == []
        assert await storm.left(client) == []
    assert storm.accepted
