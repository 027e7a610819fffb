"""Load on worker processes and a Temporal server, which are killed, stopped and started again at random times.

Everything random follows from the seed, but for what the operating system makes of it. The server keeps its database
over restarts.
"""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError

from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine

from ....crash.engine_process import backoff
from ....crash.processes import Victim
from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from .limited_functions import KINDS, LIMITED

APP = "crash"
LEASE = dt.timedelta(seconds=2)
"""The heartbeat timeout. A worker that is stopped for longer has lost its calls when it continues."""
PATIENCE = dt.timedelta(seconds=10)
"""Seconds that a journey waits for an answer before it asks again. A shorter time would outpace the answers."""
SETTINGS = EngineSettings(backoff=backoff)
FUNCTIONS = ("child", "answer", "journey", "voyage", "doomed", "doomed-failure")
BLOWS = ("kill worker", "stop worker", "kill all", "restart server", "stop server")
EVENTS = (("journey", "watch"), ("crew",) * 3, ("voyage", "watch"), ("errand",) * 5, ("doomed", "watch"))
"""Number of events that are sent together. Several runs of a function with a limit compete for its slots."""
READY = "the app is synced"
_LONGEST_STOP = 2 * LEASE.total_seconds()
_MOST_LIVE = 12
_PACE_SECONDS = 0.5
_OF_RUNS = ("durably.Run", "durably.Event", "durably.Wait", "durably.LimitQueue")
"""Workflows that end with the last run."""


async def connect(address: str) -> Client:
    """A client of the server, as soon as that answers."""
    return await async_eventually(
        lambda: Client.connect(address, data_converter=DATA_CONVERTER), "the server answers", ignore=(RuntimeError,)
    )


@dataclass(frozen=True)
class Accepted:
    """An event that was acknowledged, and the function that it triggers, whose run a singleton may skip."""

    event_id: str
    function: str
    number: int
    may_be_skipped: bool


@dataclass
class Storm:
    """``accepted`` has the acknowledged events; ``blows`` are the faults and their targets."""

    directory: Path
    seed: int
    workers: int = 2
    pace: float = 1.0
    accepted: list[Accepted] = field(default_factory=list)
    blows: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.server = DevServer(self.directory / "temporal.db")
        self.diary = self.directory / "diary.jsonl"
        module = "tests.engine.temporal.faults.worker_process"
        self._workers = [
            Victim(
                f"worker-{n}", self.directory / f"worker-{n}.log", self.server.address, str(self.diary), module=module
            )
            for n in range(self.workers)
        ]
        self._is_over = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        await asyncio.to_thread(self.server.start)
        for worker in self._workers:
            worker.start()
        try:
            client = await connect(self.server.address)
            await self._wait_synced()
            yield client
        finally:
            for worker in self._workers:
                worker.kill()
            self.server.kill()

    async def rage(self, client: Client, blows: int) -> None:
        """Strike ``blows`` times while events are sent, and wait until all runs have ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_events(client))
            try:
                for _ in range(blows):
                    await asyncio.sleep(self._random.uniform(0.2, 1.5) * self.pace)
                    await self._strike(self._random.choice(BLOWS), self._random.choice(self._workers))
            finally:
                self._is_over = True
        await self._wait_ended(client)

    async def fill_slots(self, client: Client) -> None:
        """After the last blow, send as many events to each function with a limit as may run concurrently."""
        self._is_over = True
        for function, limit in LIMITED.items():
            for kind in range(KINDS if function == "errand" else 1):
                meeting = self.directory / f"{function}-{kind}"
                meeting.mkdir()
                await self._send(client, *[function] * limit, meeting=str(meeting), number=kind)
        await self._wait_ended(client)

    async def rage_briefly(self, client: Client, *names: str) -> None:
        """Send events, and strike immediately: stop one worker for a while, and kill the other one."""
        await self._send(client, *names)
        first, second = self._workers
        await self._strike("stop worker", first)
        second.kill()
        await self._wait_ended(client)

    async def left(self, client: Client) -> list[str]:
        """Ids of workflows that still run, although all runs have ended."""
        types = " OR ".join(f"WorkflowType = '{name}'" for name in _OF_RUNS)
        query = f"ExecutionStatus = 'Running' AND ({types})"
        return [each.id async for each in client.list_workflows(query)]

    async def _strike(self, blow: str, worker: Victim) -> None:
        self.blows.append(f"{blow} {worker.name}" if blow.endswith("worker") else blow)
        match blow:
            case "kill worker":
                await self._restart([worker])
            case "kill all":
                await self._restart(self._workers)
            case "stop worker":
                worker.send(signal.SIGSTOP)
                await asyncio.sleep(self._random.uniform(0.1, _LONGEST_STOP))
                worker.send(signal.SIGCONT)
            case "restart server":
                self.server.kill()
                await asyncio.to_thread(self.server.start)
            case _:
                self.server.hang()
                await asyncio.sleep(self._random.uniform(0.1, _LONGEST_STOP))
                self.server.go_on()

    async def _restart(self, workers: list[Victim]) -> None:
        for worker in workers:
            worker.send(signal.SIGKILL)
        for worker in workers:
            await asyncio.to_thread(worker.wait)
            worker.start()

    async def _wait_synced(self) -> None:
        await async_eventually(
            lambda: any(READY in worker.log.read_text() for worker in self._workers), "a worker has synced the app"
        )

    async def _send_events(self, client: Client) -> None:
        """Send events, at most as many as workers can process."""
        for names in itertools.cycle(EVENTS):
            await self._wait_for_room(client)
            if self._is_over:
                return
            await self._send(client, *names)
            await asyncio.sleep(_PACE_SECONDS)

    async def _send(self, client: Client, *names: str, **data: Any) -> None:
        """The events are sent until they are acknowledged."""
        sent = [(name, {"number": number, **data}) for number, name in enumerate(names, len(self.accepted))]
        events = [
            {"name": f"crash/{name}", "id": f"event-{number}", "data": data}
            for number, (name, data) in enumerate(sent, len(self.accepted))
        ]
        may_be_skipped = not self._is_over
        engine = WorkflowEngine(client, SETTINGS)
        while True:
            with contextlib.suppress(RPCError, WorkflowUpdateRPCTimeoutOrCancelledError):
                receipt = await engine.receive_events(json.dumps(events).encode())
                self.accepted += [
                    Accepted(event_id, f"{APP}-{name}", data["number"], may_be_skipped and name == "watch")
                    for event_id, (name, data) in zip(receipt.ids, sent, strict=True)
                ]
                return
            await asyncio.sleep(0.1)

    async def _wait_for_room(self, client: Client) -> None:
        while not self._is_over:
            if await self._count_left(client) < _MOST_LIVE:
                return
            await asyncio.sleep(_PACE_SECONDS)

    async def _count_left(self, client: Client) -> int:
        """The number of workflows that still run; at least one while the server does not answer."""
        try:
            return len(await self.left(client))
        except RPCError:
            return 1

    async def _wait_ended(self, client: Client) -> None:
        """Wait until all workflows have ended. The index lags, so each event must also have its run."""
        engine = WorkflowEngine(client, SETTINGS)
        while True:
            await asyncio.sleep(_PACE_SECONDS)
            if not await self._count_left(client):
                with contextlib.suppress(RPCError):
                    found = [await engine.event_runs(accepted.event_id) for accepted in self.accepted]
                    if all(run.status.has_ended for runs in found for run in runs) and all(found):
                        return
