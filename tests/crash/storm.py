"""Load on an engine and its app, and at random instants one of the two, or both, is killed or stopped for a while.

Everything random follows from the seed, but for what the operating system makes of it.
"""

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from durably.engine.sqlite.maintenance import check_database

from ..ports import Wire, free_port
from ..waiting import async_eventually
from .engine_process import LEASE
from .processes import Victim, until_succeeded

EVENTS = tuple(f"crash/{name}" for name in ("journey", "voyage", "walk", "doze", "batch", "settle", "doomed"))
_SENDERS = 4
_PACE_SECONDS = 0.4
"""Each sender's pause: the load should keep up with the crashes, so that all ends soon after the last."""
_COUNT_LIVE = "SELECT count(*) FROM run_states"
_COUNT_LEFT = "SELECT (SELECT count(*) FROM run_states) + (SELECT count(*) FROM pending_events)"
_CALM_SECONDS = 600.0
_MOST_LIVE = 40
"""No more runs are begun then: an app that can no longer keep up would use up all attempts by its slowness."""
_LONGEST_STOP = 2 * LEASE.total_seconds()


@dataclass
class Storm:
    """``accepted`` are the ids, the senders' own, of the events that the engine has acknowledged, with their names;
    ``blows`` is what was done to whom, ``faults`` what a crash left behind that should not be. If it ``dials``, the app
    gets its calls over a connection, which is cut at times."""

    directory: Path
    seed: int
    accepted: dict[str, str] = field(default_factory=dict)
    blows: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    dials: bool = False
    clock_was_set: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        engine_port, app_port = free_port(), free_port()
        self.engine_url, self.app_url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{app_port}/api/inngest"
        self.database, self.diary = self.directory / "engine.db", self.directory / "diary.jsonl"
        self.engine = Victim("engine", self.directory / "engine.log", str(engine_port), str(self.database))
        place, origin = str(app_port), self.engine_url
        self.wire = Wire(app_port)
        self.wire.target = engine_port
        if self.dials:
            place, origin = "connect", f"http://127.0.0.1:{app_port}"
            self.app_url = f"{self.engine_url}/v1/apps/crash/functions"
        self.app = Victim("app", self.directory / "app.log", place, str(self.diary), DURABLY_DEV=origin)
        self._is_over = False
        self._sent = 0

    async def rage(self, blows: int) -> None:
        """Strike ``blows`` times while events are sent, and wait until all that was begun has ended."""
        async with self._running(), aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as http:
            await until_succeeded(http.get if self.dials else http.put, self.app_url)
            async with asyncio.TaskGroup() as senders:
                for _ in range(_SENDERS):
                    senders.create_task(self._send_events(http))
                try:
                    for _ in range(blows):
                        await self._let_pass_some_time(http)
                        await self._strike()
                finally:
                    self._is_over = True
            await self._calm()

    async def _let_pass_some_time(self, http: aiohttp.ClientSession) -> None:
        """Often from when all is up, so that there is something to destroy; else it may just be starting."""
        if self._random.random() < 0.6:
            await until_succeeded(http.get, f"{self.engine_url}/health")
            await until_succeeded(http.get, self.app_url)
        await asyncio.sleep(self._random.uniform(0.05, 0.9))

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        if self.dials:
            await self.wire.start()
        self.engine.start()
        self.app.start()
        try:
            yield
        finally:
            self.wire.close()
            self.engine.kill()
            self.app.kill()

    async def _send_events(self, http: aiohttp.ClientSession) -> None:
        """Each event is sent until it is acknowledged."""
        while not self._is_over:
            if self._count(_COUNT_LIVE) >= _MOST_LIVE:
                await asyncio.sleep(_PACE_SECONDS)
                continue
            number, self._sent = self._sent, self._sent + 1
            name, event_id = EVENTS[number % len(EVENTS)], f"event-{number}"
            event = {"name": name, "id": event_id, "data": {"number": number}}
            while event_id not in self.accepted:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.post(f"{self.engine_url}/e/any", json=event) as response:
                        if response.status == 200:
                            self.accepted[event_id] = name
                            break
                await asyncio.sleep(0.05)
            await asyncio.sleep(_PACE_SECONDS)

    async def _strike(self) -> None:
        if self.dials and self._random.random() < 0.4:
            self.blows.append("cut")
            self.wire.cut()
            return
        victims = self._random.choice([[self.engine], [self.app], [self.engine, self.app]])
        blow = self._random.choices(["kill", "stop", "terminate"], [5, 3, 1])[0]
        self.blows.append(f"{blow} {' and '.join(victim.name for victim in victims)}")
        if blow == "kill":
            for victim in victims:
                victim.send(signal.SIGKILL)
        elif blow == "terminate":
            for victim in victims:
                victim.send(signal.SIGTERM)
        else:
            for victim in victims:
                victim.send(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.1, _LONGEST_STOP))
            for victim in victims:
                victim.send(signal.SIGCONT)
            return
        for victim in victims:
            await asyncio.to_thread(victim.wait)
        if self.engine in victims:
            # What a crash leaves behind fits together at once, and not only when an engine has tidied it up.
            self.faults += await asyncio.to_thread(check_database, self.database)
        for victim in victims:
            victim.start()

    async def _calm(self) -> None:
        """Returns once no run is live, and no event is to start one later."""
        await async_eventually(
            lambda: self._count(_COUNT_LEFT), "no run is left", is_right=lambda count: count == 0, timeout=_CALM_SECONDS
        )

    def _count(self, query: str) -> int:
        with contextlib.closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute(query).fetchone()
        return int(count)
