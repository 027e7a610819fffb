"""A database with a random history of events and runs, and the same history in memory to compare with."""

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from ulid import ULID

from durably.engine.core.run_state import MACHINE_VERSION, RunState, RunStatus, encode_run_state
from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database

BEGAN = 1_790_000_000_000
_ENDS = (RunStatus.COMPLETED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED)
_NAMES = ("order/created", "order/paid", "user/signup", "rare")


class PastEvent(msgspec.Struct, frozen=True, kw_only=True):
    key: int
    id: str
    sender_id: str | None
    name: str
    received_at: int
    n: int

    @property
    def body(self) -> bytes:
        event = {"name": self.name, "data": {"n": self.n}, "id": self.sender_id or self.id, "ts": self.received_at}
        return msgspec.json.encode(event)


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    key: int
    id: str
    function_id: str
    app_id: str
    events: Sequence[PastEvent]
    status: RunStatus
    created_at: int
    ended_at: int | None
    output: Any


class RandomHistory:
    """``runs`` and ``events`` are in the order of their keys."""

    def __init__(self, seed: int, *, runs: int = 120) -> None:
        self.random = random.Random(seed)
        self.functions = [(f"{app}-{number}", app) for app in ("shop", "mail", "idle") for number in range(3)]
        self.events: list[PastEvent] = []
        self.runs: list[PastRun] = []
        self.now = BEGAN
        for _ in range(runs):
            self._step()

    def _step(self) -> None:
        self.now += self.random.choice((0, 1, 900, 4_000))
        for _ in range(self.random.choice((1, 1, 1, 2))):
            self.events.append(self._event())
        if self.random.random() < 0.1:
            return
        events = [self.random.choice(self.events)] if self.random.random() < 0.1 else [self.events[-1]]
        if self.random.random() < 0.1 and len(self.events) > 3:
            events = self.events[-3:]
        function_id, app_id = self.random.choice(self.functions[:6])
        status = self.random.choice((*_ENDS, RunStatus.SCHEDULED, RunStatus.RUNNING))
        output = {"total": self.random.randrange(10)} if status is RunStatus.COMPLETED else {"name": "Error"}
        run = PastRun(
            key=len(self.runs) * 3 + 1,
            id=self.new_id(self.now),
            function_id=function_id,
            app_id=app_id,
            events=events,
            status=status,
            created_at=self.now,
            ended_at=self.now + 50 if status.has_ended else None,
            output=output if status.has_ended else None,
        )
        self.runs.append(run)

    def _event(self) -> PastEvent:
        number = len(self.events)
        return PastEvent(
            key=number * 2 + 1,
            id=self.new_id(self.now),
            sender_id=f"mine-{number}" if self.random.random() < 0.2 else None,
            name=self.random.choices(_NAMES, (10, 10, 10, 1))[0],
            received_at=self.now,
            n=self.random.randrange(5),
        )

    def new_id(self, milliseconds: int) -> str:
        return str(ULID.from_bytes(milliseconds.to_bytes(6) + self.random.randbytes(10)))

    def write(self, path: Path) -> sqlite3.Connection:
        """A database with this history."""
        connection = open_database(path, Durability.OFF)
        with connection:
            connection.execute("BEGIN")
            for position, (function_id, app_id) in enumerate(self.functions):
                connection.execute(
                    "INSERT INTO functions (id, app_id, position, is_active, config) VALUES (?, ?, ?, 1, '{}')",
                    (function_id, app_id, position),
                )
            for event in self.events:
                connection.execute(
                    "INSERT INTO events (key, id, sender_id, name, received_at, body) VALUES (?, ?, ?, ?, ?, ?)",
                    (event.key, event.id, event.sender_id, event.name, event.received_at, event.body),
                )
            for run in self.runs:
                self._write_run(connection, run)
        return connection

    def _write_run(self, connection: sqlite3.Connection, run: PastRun) -> None:
        is_batch = len(run.events) > 1
        connection.execute(
            "INSERT INTO runs (key, id, function_id, app_id, event_key, is_batch, status, max_attempts, created_at, "
            "started_at, ended_at, output) VALUES (?, ?, ?, ?, ?, ?, ?, 4, ?, ?, ?, ?)",
            (
                run.key,
                run.id,
                run.function_id,
                run.app_id,
                run.events[0].key,
                is_batch,
                run.status,
                run.created_at,
                None if run.status is RunStatus.SCHEDULED else run.created_at,
                run.ended_at,
                None if run.output is None else msgspec.json.encode(run.output),
            ),
        )
        if is_batch:
            rows = [(run.key, event.key) for event in run.events]
            connection.executemany("INSERT INTO run_events (run_key, event_key) VALUES (?, ?)", rows)
        if not run.status.has_ended:
            state = RunState(version=MACHINE_VERSION, status=run.status, max_attempts=4)
            connection.execute(
                "INSERT INTO run_states (run_key, is_runnable, state) VALUES (?, 0, ?)",
                (run.key, encode_run_state(state)),
            )
