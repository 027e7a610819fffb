"""The limit of a function is kept while its workers are killed, stopped and started."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ....temporal.dev_server import DevServer
from .storm import LEASE_SECONDS, LimitStorm, Stamp, most_at_once, read_stamps

LIMIT = 2


@pytest.fixture
async def storm(server: DevServer, tmp_path: Path) -> AsyncIterator[LimitStorm]:
    storm = LimitStorm(server.address, f"limit-{uuid.uuid4().hex[:8]}", tmp_path, LIMIT)
    try:
        await storm.connect()
        yield storm
    finally:
        storm.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_stopped_and_a_killed_worker_do_not_pass_the_limit(storm: LimitStorm) -> None:
    async with asyncio.timeout(150):
        stopped = await storm.start_worker()
        await storm.wait_synced()
        for _ in range(8):
            await storm.send()
        await storm.wait_executing(stopped)
        os.kill(stopped, signal.SIGSTOP)
        killed = await storm.start_worker()
        await storm.wait_executing(killed)
        os.kill(stopped, signal.SIGCONT)
        storm.kill(killed)
        await storm.wait_completed()
    assert most_at_once(read_stamps(storm.stamps)) == LIMIT


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_limit_is_kept_in_a_storm(storm: LimitStorm) -> None:
    blows = int(os.environ.get("BLOWS", "40"))
    async with asyncio.timeout(1100):
        for _ in range(2):
            await storm.start_worker()
        await storm.wait_synced()
        for _ in range(blows):
            for _ in range(4):
                await storm.send()
            print(await storm.strike(), flush=True)
            await asyncio.sleep(storm.random.uniform(0, 2))
        await storm.wait_completed()
    stamps = read_stamps(storm.stamps)
    print(len(stamps), "stamps of", len({stamp.call for stamp in stamps}), "calls")
    assert most_at_once(stamps) == LIMIT


def test_calls_are_counted_while_they_execute() -> None:
    first = [Stamp("start", 1, "a", 0.0), Stamp("end", 1, "a", 1.0)]
    second = [Stamp("start", 1, "b", 0.5), Stamp("end", 1, "b", 1.5)]
    assert most_at_once([*first, *second]) == 2
    late = [Stamp("start", 1, "c", -LEASE_SECONDS), Stamp("end", 1, "c", 0.2), Stamp("start", 1, "c", 0.6)]
    assert most_at_once([*first, *second, *late[:2]]) == 2
    stepping = [Stamp("start", 1, "d", -LEASE_SECONDS), Stamp("start", 1, "d", 0.7), Stamp("end", 1, "d", 0.8)]
    assert most_at_once([*first, *second, *stepping]) == 3
