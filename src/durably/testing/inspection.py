"""Reading a test engine's database, at once and on any thread, so that what a test asserts is always of now."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from durably.engine.core.errors import EngineClosedError
from durably.engine.scheduling.requests.call_dispatch import Executor
from durably.engine.sqlite import queries
from durably.engine.sqlite.database import connect_reader
from durably.engine.views import RunView, StepView
from durably.protocol.events import Event

from .replays import PastStep

T = TypeVar("T")

_PAGE = 1000


class OutstandingWait(msgspec.Struct, frozen=True):
    """What a step waits for: an event's name, a signal, or the id of a run; nothing for a sleep."""

    step_id: str
    topic: str | None
    expression: str | None


class Inspector:
    """Owns a connection of its own from its construction to ``close``."""

    def __init__(self, path: Path, executor: Executor) -> None:
        self._connection = connect_reader(path)
        self._executor = executor
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def run(self, run_id: str) -> RunView:
        run = self._read(lambda connection: queries.find_run(connection, run_id, self._executor.first_call_at))
        assert run is not None, f"the engine does not hold run {run_id} any more"
        return run

    def runs_of_event(self, event_id: str) -> list[RunView]:
        return self._read(lambda connection: queries.event_runs(connection, event_id, self._executor.first_call_at))

    def runs(self, function_id: str | None) -> list[RunView]:
        """Oldest first."""
        found: list[RunView] = []
        while True:
            page = self._page(function_id, found[-1].id if found else None, _PAGE)
            found += page
            if len(page) < _PAGE:
                return found[::-1]

    def latest_runs(self, limit: int) -> list[RunView]:
        """Oldest first."""
        return self._page(None, None, limit)[::-1]

    def _page(self, function_id: str | None, cursor: str | None, limit: int) -> list[RunView]:
        first_call_at = self._executor.first_call_at
        return self._read(
            lambda connection: queries.list_runs(connection, None, function_id, limit, cursor, first_call_at)
        )

    def steps(self, run_id: str) -> list[StepView]:
        return self._read(lambda connection: queries.run_steps(connection, run_id, self._executor.is_under_way))

    def events(self, run_id: str) -> list[Event]:
        batch = self._read(lambda connection: queries.run_batch(connection, run_id))
        return msgspec.json.decode(batch or b"[]", type=list[Event])

    def waits(self, run_id: str) -> dict[str, OutstandingWait]:
        """By hashed step id."""
        query = "SELECT step_id, topic, expression FROM waits JOIN runs ON runs.key = waits.run_key WHERE runs.id = ?"
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return {row[0]: OutstandingWait(*row) for row in rows}

    def finished_steps(self, run_id: str) -> list[PastStep]:
        """In the order of their memos."""
        query = (
            "SELECT step_id, name, memo FROM memos JOIN runs ON runs.key = memos.run_key WHERE runs.id = ? ORDER BY seq"
        )
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return [PastStep(step_id, name, msgspec.Raw(memo)) for step_id, name, memo in rows]

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._is_closed:
                raise EngineClosedError("the test engine is closed: look at its runs inside of its `with` block")
            self._connection.execute("BEGIN")
            try:
                return query(self._connection)
            finally:
                self._connection.execute("COMMIT")
