"""The start of an engine whose database has very many waiting runs: until it takes requests, and what it keeps of them.

The runs are copies of one that waits for an event until a month from now: a million real ones would take an hour.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from .children import Child
from .database import DATABASE, count_waits
from .sleeping import Idle, measure_idle
from .tables import describe_machine, judge, table

_EACH_MILLISECONDS = 86
"""Between two runs: a million of them in a day."""


def build(directory: Path, runs: int) -> None:
    """A database in which so many runs wait."""
    with Child("benchmarks.contenders.waiting", directory, "1"):
        pass
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = -400000")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        past = (runs - 1) * _EACH_MILLISECONDS
        connection.execute("UPDATE events SET received_at = received_at - ?", (past,))
        connection.execute("UPDATE runs SET created_at = created_at - ?", (past,))
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {runs - 1}) "
        for name, copied in _TABLES.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            values = ", ".join(copied.get(column, column) for column in columns)
            connection.execute(
                f"{numbers} INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM n, {name} WHERE i < {runs}"
            )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if (found := count_waits(directory)) != runs:
        raise RuntimeError(f"{found} runs wait instead of {runs}")


_ID = "substr(id, 1, 19) || printf('%07d', i)"
_LATER = f"+ i * {_EACH_MILLISECONDS}"
_TABLES = {
    "events": {"key": "key + i", "id": _ID, "received_at": f"received_at {_LATER}"},
    "runs": {"key": "key + i", "id": _ID, "event_key": "event_key + i", "created_at": f"created_at {_LATER}"},
    "run_states": {"run_key": "run_key + i"},
    "waits": {"run_key": "run_key + i", "value": "i"},
}
"""Tables with a row of the run, and the columns in which a copy differs; ``i`` is its number."""


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    sizes, seconds = ((1, 100, 1_000), 1.0) if is_quick else ((1, 100_000, 1_000_000), 10.0)
    found: list[Idle] = []
    for runs in sizes:
        build(directory / str(runs), runs)
        found.append(measure_idle(directory / str(runs), seconds))
    first, few, many = found
    rows = [
        [
            f"{runs:,}",
            f"{idle.opened * 1e3:,.0f} ms",
            f"{idle.rss / 1e6:,.1f} MB",
            f"{(idle.rss - first.rss) / 1e6:+.1f} MB",
        ]
        for runs, idle in zip(sizes, found, strict=True)
    ]
    return "\n".join(
        [
            "## The start beside waiting runs\n",
            f"{describe_machine()} An engine over HTTP, idle. Each run waits for an event.\n",
            table(["waiting runs", "ready after", "resident memory", "more"], rows),
            judge(f"ready with {sizes[2]:,}", many.opened, at_most=1, unit="s"),
            judge(f"more memory with {sizes[1]:,}", (few.rss - first.rss) / 1e6, at_most=4, unit="MB"),
            "",
        ]
    )
