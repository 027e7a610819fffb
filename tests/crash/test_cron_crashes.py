"""An engine whose clock runs fast is killed and stopped again and again: each tick fires once, in order, and only those
are missed that fell due while it was down."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import aiohttp
import pytest

from ..ports import free_port
from ..waiting import async_eventually
from .engine_process import FastClock
from .processes import Victim, until_succeeded
from .verdict import MINUTE, ticks

SPEED = 30
"""A minute of the engine's, which is how late a tick may be before it is missed, takes two seconds."""
BLOWS = int(os.environ.get("CRASH_CRON_BLOWS", "3"))
PATIENCE_SECONDS = 100 + 40 * BLOWS
_LEAST_TICKS = 2
"""Between two blows, so that there is something to fire twice."""
_LATE = 30_000 + 30_000
"""Milliseconds of the engine's: so long after its time a tick may be fired where nothing is wrong, by its jitter, and
because the machine is busy."""


@pytest.mark.slow
async def test_ticks_fire_once_each_in_a_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "1"))
    print(f"CRASH_SEED={seed}")
    storm = CronStorm(tmp_path, random.Random(seed))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await storm.rage()
    fired = storm.fired()
    assert set(fired) == {"crash-tick", "crash-tock"}
    for times in fired.values():
        assert times == sorted(set(times))
        assert [tick for tick in missing(times) if not storm.was_down(tick)] == []


def missing(times: list[int]) -> list[int]:
    """The minutes between those."""
    return [tick for one, other in itertools.pairwise(times) for tick in range(one + MINUTE, other, MINUTE)]


class CronStorm:
    """``down`` are the times, on the engine's clock, from each blow until the engine was seen to be up again."""

    def __init__(self, directory: Path, random_: random.Random) -> None:
        self._random = random_
        port, app_port = free_port(), free_port()
        self._url, self._app_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{app_port}/api/inngest"
        self._database = directory / "engine.db"
        self._engine = Victim("engine", directory / "engine.log", str(port), str(self._database), str(SPEED))
        diary = str(directory / "diary.jsonl")
        self._app = Victim("app", directory / "app.log", str(app_port), diary, DURABLY_DEV=self._url)
        self.down: list[tuple[int, int]] = []

    async def rage(self) -> None:
        self._engine.start()
        self._app.start()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as http:
                await until_succeeded(http.put, self._app_url)
                for _ in range(BLOWS):
                    await self._until_fired(len(self.fired().get("crash-tick", ())) + _LEAST_TICKS)
                    await asyncio.sleep(self._random.random())
                    await self._strike(http)
                await self._until_fired(len(self.fired()["crash-tick"]) + _LEAST_TICKS)
        finally:
            self._engine.kill()
            self._app.kill()

    def fired(self) -> dict[str, list[int]]:
        with contextlib.closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True)) as connection:
            return ticks(connection.execute)

    def was_down(self, tick: int) -> bool:
        return any(began - _LATE <= tick <= ended for began, ended in self.down)

    async def _strike(self, http: aiohttp.ClientSession) -> None:
        began = self._now()
        if self._random.random() < 0.3:
            self._engine.send(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.1, 2))
            self._engine.send(signal.SIGCONT)
        else:
            self._engine.kill()
            self._engine.start()
        await until_succeeded(http.get, f"{self._url}/health")
        self.down.append((began, self._now()))

    def _now(self) -> int:
        return FastClock(SPEED).shows(time.time_ns() // 1_000_000)

    async def _until_fired(self, count: int) -> None:
        await async_eventually(lambda: len(self.fired().get("crash-tick", ())) >= count, f"{count} ticks have fired")
