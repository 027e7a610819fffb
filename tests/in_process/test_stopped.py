"""An owner that is stopped inside of a transaction holds the database's write lock, and is killed by the others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from durably.in_process import sockets
from durably.in_process.stopped import StoppedWriter

from .cluster import Cluster, eventually, gunicorn, serving, uvicorn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")

WORKERS = 3
SERVERS = {"gunicorn": gunicorn("flask_app", WORKERS), "uvicorn": uvicorn("fast_api_app", WORKERS)}


def stop_inside_of_a_transaction(cluster: Cluster) -> int:
    """The owner, stopped again and again until it is where it shall be; how many events that took."""
    owner, directory = cluster.wait_owner(), sockets.directory_of(cluster.database)
    for number in range(1000):
        cluster.send({"name": "count", "id": str(number)})
        os.kill(owner, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
        if (found := StoppedWriter.find(cluster.database, directory)) is not None:
            found.close()
            assert found.process_id == owner
            return number + 1
        os.kill(owner, signal.SIGCONT)
    raise AssertionError("never inside of a transaction")


@pytest.mark.parametrize("server", SERVERS)
def test_it_is_killed_and_another_takes_over(server: str, tmp_path: Path) -> None:
    with serving(SERVERS[server], tmp_path) as cluster:
        stopped = cluster.wait_joined(WORKERS)
        sent = stop_inside_of_a_transaction(cluster)
        assert cluster.wait_owner(but=stopped) != stopped
        cluster.wait_completed(sent)
        assert f"process {stopped}, which owns the database" in cluster.log()


def test_it_is_left_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    with serving(SERVERS["gunicorn"], tmp_path, TEST_KILL="no") as cluster:
        stopped = cluster.wait_joined(WORKERS)
        sent = stop_inside_of_a_transaction(cluster)
        eventually(lambda: "database is locked" in cluster.log(), "the others say what is in their way")
        os.kill(stopped, signal.SIGCONT)
        cluster.wait_completed(sent)
        assert Path(f"/proc/{stopped}").exists()


OTHER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("BEGIN IMMEDIATE")
meeting = os.open(sys.argv[2], os.O_RDONLY) if len(sys.argv) > 2 else None
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("is_of_the_app", [True, False])
def test_only_an_apps_own_processes_are_found(is_of_the_app: bool, tmp_path: Path) -> None:
    database, meeting = tmp_path / "durably.db", tmp_path / "durably.db.sockets"
    meeting.mkdir()
    assert StoppedWriter.find(database, meeting) is None
    arguments = [str(database), *([str(meeting)] if is_of_the_app else [])]
    with subprocess.Popen([sys.executable, "-c", OTHER, *arguments]) as process:
        try:
            os.waitpid(process.pid, os.WUNTRACED)
            found = StoppedWriter.find(database, meeting)
            assert (found is not None) is is_of_the_app
            if found is not None:
                os.kill(process.pid, signal.SIGCONT)
                process.wait(60)
                assert not found.is_so_still()
                assert not found.kill()
                found.close()
        finally:
            process.kill()
