"""Workers and the server are killed and stopped under load.

``python -m tests.engine.temporal.faults.soak --blows 200`` is the long form.
"""

import asyncio
from pathlib import Path

import pytest

from .storm import Storm
from .verdict import find_faults

WITH_LIMITS = ("crew", "errand", "watch")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("events", [("voyage",), pytest.param(WITH_LIMITS, marks=pytest.mark.slow)])
async def test_nothing_is_lost_and_no_committed_step_runs_again(tmp_path: Path, events: tuple[str, ...]) -> None:
    storm = Storm(tmp_path, seed=1)
    async with asyncio.timeout(280), storm.running() as client:
        await storm.rage_briefly(client, *events)
        if events is WITH_LIMITS:
            await storm.fill_slots(client)
        assert await find_faults(storm, client) == []
        assert await storm.left(client) == []
    assert storm.accepted
