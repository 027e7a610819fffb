"""Calls of a function with a limit, in worker processes that are killed, stopped and started at random times."""

import asyncio
import contextlib
import datetime as dt
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from temporalio.client import Client
from ulid import ULID

from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.ids import make_run_id, run_workflow_id
from durably.engine.temporal.engine import WorkflowEngine

from ....waiting import async_eventually

ROOT = Path(__file__).parents[4]
STEPS = 3
USE_SECONDS, LEASE_SECONDS = 2.0, 5.0
HEARTBEAT = dt.timedelta(seconds=2)


class Stamp(NamedTuple):
    kind: str
    process: int
    call: str
    at: float


def read_stamps(path: Path) -> list[Stamp]:
    lines = path.read_text().splitlines() if path.exists() else []
    fields = (line.split() for line in lines)
    return [Stamp(kind, int(process), call, float(at)) for kind, process, call, at in fields]


def most_at_once(stamps: Iterable[Stamp]) -> int:
    """The maximum number of calls that executed steps concurrently."""
    by_call: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        by_call[stamp.call].append(stamp)
    changes = [change for call in by_call.values() for change in _changes(call)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def _changes(call: list[Stamp]) -> Iterator[tuple[float, int]]:
    """The start and the end of a call's execution."""
    begin, last = call[0].at, call[0].at
    for stamp in call[1:]:
        if stamp.at - last > USE_SECONDS:
            yield begin, 1
            yield last, -1
            begin = stamp.at
            if stamp.kind == "end":
                return
        last = stamp.at
    yield begin, 1
    yield last, -1


class LimitStorm:
    def __init__(self, address: str, app: str, directory: Path, limit: int, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.stamps = directory / "stamps"
        self.workers: list[int] = []
        self._app = app
        self._address = address
        command = [sys.executable, "-m", "tests.engine.temporal.slots.limit_process"]
        self._starter = subprocess.Popen(
            [*command, address, app, str(self.stamps), str(limit)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._results: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        self._client = await Client.connect(self._address, data_converter=DATA_CONVERTER)
        self._engine = WorkflowEngine(self._client, EngineSettings())

    async def start_worker(self) -> int:
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write("start\n")
        self._starter.stdin.flush()
        self.workers.append(int(await asyncio.to_thread(self._starter.stdout.readline)))
        return self.workers[-1]

    def kill(self, worker: int) -> None:
        os.kill(worker, signal.SIGKILL)
        self.workers.remove(worker)

    async def wait_synced(self) -> None:
        await async_eventually(lambda: self._engine.has_synced(self._app), "the app is synced")

    async def send(self) -> None:
        """Send an event, whose run has to complete."""
        event = {"name": f"{self._app}/work", "data": {}}
        (event_id,) = (await self._engine.receive_events(msgspec.json.encode(event))).ids
        run_id = make_run_id(ULID.from_str(event_id).milliseconds, event_id, f"{self._app}-work")
        self._results.append(asyncio.create_task(self._client.get_workflow_handle(run_workflow_id(run_id)).result()))

    async def wait_completed(self) -> None:
        await asyncio.gather(*self._results)

    async def wait_executing(self, worker: int) -> None:
        """Wait until a worker executes a step."""
        before = len(read_stamps(self.stamps))
        await async_eventually(
            lambda: any(stamp.process == worker for stamp in read_stamps(self.stamps)[before:]),
            f"the worker {worker} executes a step",
        )

    async def strike(self) -> str:
        blow, worker = self.random.choice(["kill", "stop", "stop", "start"]), self.random.choice(self.workers)
        if blow == "kill" or len(self.workers) > 3:
            self.kill(worker)
            await self.start_worker()
        elif blow == "stop":
            os.kill(worker, signal.SIGSTOP)
            await asyncio.sleep(self.random.choice([0.5, USE_SECONDS, LEASE_SECONDS, 2 * LEASE_SECONDS]))
            os.kill(worker, signal.SIGCONT)
        else:
            await self.start_worker()
        return blow

    def close(self) -> None:
        for task in self._results:
            task.cancel()
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._starter.kill()
        self._starter.wait()
