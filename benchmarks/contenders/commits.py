"""The floor: SQLite, committing one small row at a time, with nothing around it."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.children import Answerer, serve

from .load import STEPS, charged


def connect(path: Path) -> sqlite3.Connection:
    """As durable as the engine's own connection."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    with closing(connect(directory / "floor.db")) as connection:
        connection.execute("CREATE TABLE steps (key INTEGER PRIMARY KEY, memo BLOB NOT NULL)")

        async def answer(question: dict[str, Any]) -> float:
            start = time.perf_counter()
            for number in range(STEPS * question["runs"]):
                memo = msgspec.json.encode(charged(number))
                connection.execute("INSERT INTO steps (memo) VALUES (?)", (memo,))
            return time.perf_counter() - start

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
