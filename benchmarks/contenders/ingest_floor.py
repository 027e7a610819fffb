"""The floor of taking in events: SQLite inserts of the same rows, in the same table, a batch a commit."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
from ulid import ULID

from benchmarks.children import Answerer, serve

from .commits import connect
from .load import BATCH, event_data

_TABLE = """
CREATE TABLE events (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sender_id TEXT,
    name TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX events_by_name ON events (name, key);
CREATE INDEX events_by_sender_id ON events (sender_id, received_at) WHERE sender_id IS NOT NULL;
"""
_INSERT = "INSERT INTO events (id, sender_id, name, received_at, body) VALUES (?, ?, ?, ?, ?)"

Row = tuple[str, None, str, int, bytes]


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    with closing(connect(directory / "floor.db")) as connection:
        connection.executescript(_TABLE)

        async def answer(question: dict[str, Any]) -> float:
            batches = [[_row(number) for number in range(BATCH)] for _ in range(question["batches"])]
            start = time.perf_counter()
            for batch in batches:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_INSERT, batch)
                connection.execute("COMMIT")
            return time.perf_counter() - start

        yield "ready", answer


def _row(number: int) -> Row:
    event_id, now = str(ULID()), time.time_ns() // 1_000_000
    body = {"data": event_data(number), "id": event_id, "name": "benchmark/none", "ts": now, "user": {}}
    return event_id, None, "benchmark/none", now, msgspec.json.encode(body)


if __name__ == "__main__":
    serve(open_contender)
