"""Load on worker processes and a Temporal server, which are killed, stopped and started again at random times.

Everything random follows from the seed, but for what the operating system makes of it. The server keeps its database
over restarts.
"""

import asyncio
import contextlib
import datetime as dt
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

from durably.engine.settings import EngineSettings
from durably.engine.temporal.converter import DATA_CONVERTER
from durably.engine.temporal.ids import make_run_id, run_workflow_id
from durably.engine.temporal.workflow_engine import WorkflowEngine

from ....crash.processes import Victim
from ....temporal.dev_server import DevServer

APP = "crash"
LEASE = dt.timedelta(seconds=1.5)
"""The heartbeat time-out. A worker that is stopped for longer has lost its calls when it continues."""
FUNCTIONS = ("child", "answer", "journey", "voyage", "doomed", "doomed-failure")
EVENTS = ("journey", "voyage", "doomed")
READY = "the app is synced"
_LONGEST_STOP = 2 * LEASE.total_seconds()
_MOST_LIVE = 12
_PACE_SECONDS = 0.3
_LONG_LIVED = ("durably.Topic", "durably.Function", "durably.App")
"""Workflows that stay after the last run has ended."""


async def connect(address: str) -> Client:
    """A client of the server, as soon as that answers."""
    while True:
        with contextlib.suppress(RuntimeError):
            return await Client.connect(address, data_converter=DATA_CONVERTER)
        await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Accepted:
    """The run that an acknowledged event starts."""

    run_id: str
    function: str


@dataclass
class Storm:
    """``accepted`` has a run for each event that was acknowledged; ``blows`` is what was done to whom."""

    directory: Path
    seed: int
    workers: int = 2
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
        self._sent = 0

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
        """Strike ``blows`` times while events are sent, and wait until all that was begun has ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_events(client))
            try:
                for _ in range(blows):
                    await asyncio.sleep(self._random.uniform(0.2, 1.5))
                    await self._strike()
            finally:
                self._is_over = True
        await self._wait_ended(client)

    async def left(self, client: Client) -> list[str]:
        """Ids of workflows that still run, although all runs have ended."""
        found = [f"WorkflowType != '{name}'" for name in _LONG_LIVED]
        query = " AND ".join(["ExecutionStatus = 'Running'", *found])
        return [each.id async for each in client.list_workflows(query)]

    async def _strike(self) -> None:
        blow = self._random.choice(("kill worker", "stop worker", "kill all", "restart server", "stop server"))
        worker = self._random.choice(self._workers)
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
        while True:
            if any(READY in worker.log.read_text() for worker in self._workers):
                return
            await asyncio.sleep(0.1)

    async def _send_events(self, client: Client) -> None:
        """Each event is sent until it is acknowledged, and not more at a time than workers can keep up with."""
        engine = WorkflowEngine(client, EngineSettings())
        live: list[Accepted] = []
        while not self._is_over:
            number, self._sent = self._sent, self._sent + 1
            name = EVENTS[number % len(EVENTS)]
            at = time.time_ns() // 1_000_000
            event = {"name": f"crash/{name}", "id": f"event-{number}", "data": {"number": number}, "ts": at}
            while True:
                try:
                    receipt = await engine.receive_events(json.dumps(event).encode())
                    break
                except RPCError:
                    await asyncio.sleep(0.1)
            function_id = f"{APP}-{name}"
            accepted = Accepted(make_run_id(at, receipt.ids[0], function_id), function_id)
            self.accepted.append(accepted)
            live.append(accepted)
            await asyncio.sleep(_PACE_SECONDS)
            while len(live) >= _MOST_LIVE and not self._is_over:
                live = [each for each in live if not await self._has_ended(client, each)]
                await asyncio.sleep(_PACE_SECONDS)

    async def _has_ended(self, client: Client, accepted: Accepted) -> bool:
        try:
            described = await client.get_workflow_handle(run_workflow_id(accepted.run_id)).describe()
        except RPCError:
            return False
        return described.status is not WorkflowExecutionStatus.RUNNING

    async def _wait_ended(self, client: Client) -> None:
        """The index of workflows lags, so it counts only after all runs of events have ended."""
        live = self.accepted
        while live or await self._is_anything_left(client):
            live = [each for each in live if not await self._has_ended(client, each)]
            await asyncio.sleep(0.1)

    async def _is_anything_left(self, client: Client) -> bool:
        try:
            return bool(await self.left(client))
        except RPCError:
            return True
