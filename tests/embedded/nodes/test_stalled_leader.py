"""A leader that is stopped within a transaction keeps SQLite's write lock. Errors name it; nothing is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from durably import Embedded
from durably.embedded.nodes.write_lock import LockHolder, find_write_lock_holder

from ...waiting import eventually
from ..cluster import Cluster, gunicorn, serving, state_of

WORKERS = 2
only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports who holds a lock")


def stop_within_a_transaction(cluster: Cluster) -> int:
    """Stop the leader repeatedly until it has the write lock. Returns the number of events that this took."""
    leader = cluster.wait_leader()
    for number in range(1000):
        cluster.send({"name": "count", "id": str(number)})
        os.kill(leader, signal.SIGSTOP)
        eventually(lambda: state_of(leader) == "T", "it stops")
        if (holder := find_write_lock_holder(cluster.database)) is not None:
            assert holder == LockHolder(leader, holder.program, is_stopped=True)
            return number + 1
        os.kill(leader, signal.SIGCONT)
    raise AssertionError("never within a transaction")


@only_on_linux
def test_a_stopped_leader_is_named_and_not_killed(tmp_path: Path) -> None:
    with serving(gunicorn("flask_app", WORKERS), tmp_path) as cluster:
        stopped = cluster.wait_joined(WORKERS)
        sent = stop_within_a_transaction(cluster)
        eventually(lambda: f"kill -CONT {stopped}" in cluster.log(), "the other process names the stopped one")
        assert state_of(stopped) == "T"
        os.kill(stopped, signal.SIGCONT)
        cluster.wait_completed(sent)
        assert Path(f"/proc/{stopped}").exists()


HOLDER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
print("continued", flush=True)
sys.stdin.read()
"""


@only_on_linux
def test_the_holder_of_the_write_lock_is_found(tmp_path: Path) -> None:
    database = tmp_path / "durably.db"
    assert find_write_lock_holder(database) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            os.waitpid(process.pid, os.WUNTRACED)
            program = Path(f"/proc/{process.pid}/comm").read_text().strip()
            stopped = find_write_lock_holder(database)
            assert stopped is not None
            assert stopped == LockHolder(process.pid, program, is_stopped=True)
            assert f"process {process.pid} ({program}) holds SQLite's write lock" in stopped.describe(database)
            os.kill(process.pid, signal.SIGCONT)
            process.stdout.readline()
            assert find_write_lock_holder(database) == LockHolder(process.pid, program, is_stopped=False)
            process.stdin.close()
            process.wait(60)
            assert find_write_lock_holder(database) is None
        finally:
            process.kill()


@pytest.mark.parametrize("value", [True, False])
def test_kill_stopped_owner_is_refused(value: bool, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"kill_stopped_owner=…\) was removed: .* never signals other processes"):
        Embedded(tmp_path / "durably.db", kill_stopped_owner=value)  # type: ignore[arg-type]


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'leese'"):
        Embedded(tmp_path / "durably.db", leese=3)  # type: ignore[arg-type]
