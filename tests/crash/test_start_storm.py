"""Several processes start the same ids at once, and are killed meanwhile: exactly one run an id."""

import itertools
import queue
import random
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from ..variants import variants

ROOT = Path(__file__).parents[2]


class Starters:
    """The processes. ``runs`` are the runs that they were told, by number."""

    def __init__(self, database: Path, count: int) -> None:
        self.lines: queue.Queue[tuple[int, str]] = queue.Queue()
        self.ended: set[int] = set()
        self.runs: defaultdict[int, set[str]] = defaultdict(set)
        self.processes: list[subprocess.Popen[str]] = []
        self._database, self._count, self._seeds = database, count, itertools.count()

    def start(self) -> None:
        arguments = [str(self._database), str(self._count), str(next(self._seeds))]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.start_process", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        self.processes.append(process)

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self.lines.put((process.pid, line.strip()))

    def take(self) -> None:
        """Note the next line of any process."""
        process_id, line = self.lines.get(timeout=120)
        number, _, run_id = line.partition(" ")
        if run_id:
            self.runs[int(number)].add(run_id)
        elif line == "ended":
            self.ended.add(process_id)

    def kill(self, process: subprocess.Popen[str]) -> None:
        self.processes.remove(process)
        process.kill()
        process.wait()


@pytest.mark.parametrize(("count", "kills"), variants([(60, 4), (500, 15)], quick=[(60, 4)]))
def test_one_run_an_id_whatever_dies(tmp_path: Path, count: int, kills: int) -> None:
    starters, chance = Starters(tmp_path / "durably.db", count), random.Random(0)
    for _ in range(3):
        starters.start()
    try:
        for _ in range(kills):
            for _ in range(chance.randrange(count // 4, count // 2)):
                starters.take()
            starters.kill(chance.choice(starters.processes))
            starters.start()
        while not starters.ended.issuperset(process.pid for process in starters.processes):
            starters.take()
    finally:
        for process in [*starters.processes]:
            starters.kill(process)
    with closing(sqlite3.connect(tmp_path / "durably.db")) as connection:
        stored = connection.execute(
            "SELECT sender_id, count(*), min(runs.id) FROM events JOIN runs ON runs.event_key = events.key "
            "WHERE sender_id IS NOT NULL GROUP BY sender_id"
        ).fetchall()
    assert {sender_id: (1, {run_id}) for sender_id, _, run_id in stored} == {
        f"order-{number}": (1, starters.runs[number]) for number in range(count)
    }
    assert {runs for _, runs, _ in stored} == {1}
