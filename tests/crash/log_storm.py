"""A storm over three engines with one commit log, its server, the network between them, and the app."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import aiohttp
import boto3
from botocore.exceptions import BotoCoreError

from durably.engine.log.log import CommitLog
from durably.engine.model.settings import Durability
from durably.engine.sqlite.maintenance import check_database

from ..ports import Wire, free_port
from ..postgres import PostgresServer
from ..waiting import async_eventually, eventually
from .log_engine_process import LEASE_SECONDS
from .processes import Victim
from .storm import Storm

TAKEOVER_SECONDS = LEASE_SECONDS + 15
"""The longest that an engine may be missing after the loss of one, on a machine that does much else."""
BLOWS = (
    *("kill", "kill any", "stop", "terminate", "app", "app"),
    *("restart log", "crash log", "pause log", "cut", "swallow", "delete", "clock"),
)
_RESTARTS = ("restart log", "crash log")
_LOOK_SECONDS = 0.02


class PostgresPlace(PostgresServer):
    """The log in PostgreSQL, for an engine that reaches it at a port."""

    def url_at(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def environment(self, port: int) -> dict[str, str]:
        return {}


class S3Place:
    """The log in moto's server. It has the objects in memory, so it can be paused and not restarted."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        arguments = ("-H", "127.0.0.1", "-p", str(self.port))
        self._process = Victim("moto", log, *arguments, module="moto.server")

    def url_at(self, port: int) -> str:
        return "s3://bucket/storm"

    def environment(self, port: int) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }

    def start(self) -> None:
        self._process.start()
        with mock.patch.dict(os.environ, self.environment(self.port)):
            client = boto3.session.Session().client("s3")
        eventually(lambda: client.create_bucket(Bucket="bucket"), "moto's server answers", ignore=(BotoCoreError,))

    def stop(self, mode: str = "fast") -> None:
        raise NotImplementedError

    def pause(self) -> None:
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send(signal.SIGCONT)

    def __exit__(self, *_: object) -> None:
        self._process.kill()


@dataclass
class LogStorm(Storm):
    """``takeovers`` are the seconds from each loss of a leader until another engine was ready.

    Those longer than ``takeover_seconds`` are faults. ``store`` is "postgres" or "s3".
    """

    takeover_seconds: float = TAKEOVER_SECONDS
    store: str = "postgres"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.takeovers: list[float] = []
        self.place: PostgresPlace | S3Place = PostgresPlace()
        if self.store == "s3":
            self.place = S3Place(self.directory / "moto.log")
        self.wires = [Wire(free_port()) for _ in range(3)]
        self.ports = [free_port() for _ in range(3)]
        self.places = [self.directory / f"machine-{number}" for number in range(3)]
        self.engines = [
            Victim(
                f"engine {number}",
                self.directory / f"engine-{number}.log",
                str(self.ports[number]),
                str(self.places[number] / "engine.db"),
                self.place.url_at(self.wires[number].port),
                module="tests.crash.log_engine_process",
                **self.place.environment(self.wires[number].port),
            )
            for number in range(3)
        ]
        self.front = Wire(int(self.engine_url.rpartition(":")[2]))
        self.leader = 0

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Engines inherit that until they handle it.
        await asyncio.to_thread(self.place.start)
        for wire in (*self.wires, self.front):
            wire.target = self.place.port
            await wire.start()
        for place, engine in zip(self.places, self.engines, strict=True):
            place.mkdir()
            engine.start()
        self.app.start()
        routing = asyncio.create_task(self._route())
        try:
            yield
            await self._end()
        finally:
            routing.cancel()
            for victim in (*self.engines, self.app):
                victim.kill()
            for wire in (*self.wires, self.front):
                wire.close()
            await asyncio.to_thread(self.place.__exit__)
            signal.signal(signal.SIGUSR1, before)

    async def _route(self) -> None:
        """Connect clients to the engine that is ready, as a load balancer would."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http:
            while True:
                for number, port in enumerate(self.ports):
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                        async with http.get(f"http://127.0.0.1:{port}/ready") as response:
                            if response.status == 200:
                                if self.front.target != port:
                                    self.front.cut()
                                self.front.target, self.leader = port, number
                                self.database = self.places[number] / "engine.db"
                await asyncio.sleep(_LOOK_SECONDS)

    def _count(self, query: str) -> int:
        try:
            return super()._count(query)
        except sqlite3.Error:  # The machine's disk was just deleted, or restored.
            return 1

    async def _strike(self) -> None:
        leader = self.engines[self.leader]
        blow = self._random.choice([each for each in BLOWS if self.store != "s3" or each not in _RESTARTS])
        self.blows.append(f"{blow} (leader {self.leader})")
        began, was = time.monotonic(), self.leader
        match blow:
            case "kill" | "kill any" | "terminate":
                victim = leader if blow != "kill any" else self._random.choice(self.engines)
                victim.send(signal.SIGTERM if blow == "terminate" else signal.SIGKILL)
                await asyncio.to_thread(victim.wait)
                if victim is leader:
                    await self._wait_for_leader(began, was)
                victim.start()
            case "stop":
                leader.send(signal.SIGSTOP)
                await asyncio.sleep(self._random.uniform(0.2, 3 * LEASE_SECONDS))
                leader.send(signal.SIGCONT)
            case "app":
                self.app.send(self._random.choice([signal.SIGKILL, signal.SIGTERM]))
                await asyncio.to_thread(self.app.wait)
                self.app.start()
            case "restart log" | "crash log":
                await asyncio.to_thread(self.place.stop, "fast" if blow == "restart log" else "immediate")
                await asyncio.sleep(self._random.uniform(0, 1.5))
                await asyncio.to_thread(self.place.start)
            case "pause log":
                self.place.pause()
                await asyncio.sleep(self._random.uniform(0.1, 2 * LEASE_SECONDS))
                self.place.resume()
            case "cut":
                for _ in range(self._random.randint(1, 5)):
                    self.wires[self.leader].cut()
                    await asyncio.sleep(0.05)
            case "swallow":
                wire = self.wires[self.leader]
                wire.swallows = True
                await asyncio.sleep(self._random.uniform(0.01, 0.3))
                wire.cut()
                wire.swallows = False
            case "clock":
                leader.send(signal.SIGUSR1)
                self.clock_was_set = True
            case "delete":
                place = self.places[self.leader]
                for file in place.glob("engine.db*"):
                    if file.name != "engine.db.lock":
                        file.unlink(missing_ok=True)

    async def _wait_for_leader(self, began: float, was: int) -> None:
        """Wait until another engine is ready. Being late is a fault."""
        await async_eventually(lambda: self.leader != was, "another engine is ready")
        took = time.monotonic() - began
        self.takeovers.append(took)
        if took > self.takeover_seconds:
            self.faults.append(f"no engine was ready for {took:.1f} s after {self.blows[-1]}")

    async def _end(self) -> None:
        """Stop all engines, let each file catch up, and compare them."""
        for engine in self.engines:
            engine.send(signal.SIGTERM)
        for engine in self.engines:
            if status := await asyncio.to_thread(engine.wait):
                self.faults.append(f"{engine.name} ended with {status}")
        dumps = [await asyncio.to_thread(self._caught_up, place / "engine.db") for place in self.places]
        self.database = self.places[0] / "engine.db"
        if len({*map(tuple, dumps)}) != 1:
            self.faults.append("the databases of the machines differ")

    def _caught_up(self, path: Path) -> list[str]:
        with mock.patch.dict(os.environ, self.place.environment(self.place.port)):
            log = CommitLog(self.place.url_at(self.place.port))
            try:
                log.open_database(path, Durability.OFF).close()
            finally:
                log.close()
        self.faults += check_database(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return list(connection.iterdump())
