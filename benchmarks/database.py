"""An engine's database, as benchmarks look into it from outside."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

DATABASE = "durably.db"
_LOOK_AGAIN_SECONDS = 0.002


async def wait_settled(directory: Path) -> None:
    """No run has a call outstanding: each has ended, or waits for something else."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as connection:
        while connection.execute("SELECT 1 FROM run_states WHERE is_runnable LIMIT 1").fetchone():
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def bytes_of_events(directory: Path) -> int:
    """Bytes of the file that the table of events and its indexes take."""
    query = "SELECT sum(pgsize) FROM dbstat WHERE name LIKE '%events%'"
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        (size,) = connection.execute(query).fetchone()
    return int(size)


def count_waits(directory: Path) -> int:
    """Steps that sleep, or wait for something."""
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM waits").fetchone()
    return int(count)
