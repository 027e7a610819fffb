"""Real servers with several worker processes, and faults for them."""

import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import urllib3

from durably.embedded import sockets

from ..ports import listening_socket
from ..waiting import TIMEOUT_SECONDS, eventually
from .functions import Diary

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


def state_of(process_id: int) -> str:
    """The process's state in ``/proc``: ``T`` if it is stopped."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


class Cluster:
    """A running server and its workers."""

    def __init__(self, directory: Path, origin: str, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.database = directory / "durably.db"
        self.diary = Diary(directory / "diary")
        self.origin = origin
        self.process = process
        self._http = urllib3.PoolManager(retries=False, timeout=30, headers={"connection": "close"})

    def send(self, *events: dict[str, Any]) -> list[str]:
        """Send events, with the same ids, until they are acknowledged: the first worker may have ended."""

        def send() -> list[str] | None:
            with suppress(urllib3.exceptions.HTTPError):
                response = self._http.request("POST", f"{self.origin}/send", json=list(events))
                if response.status == 200:
                    return list(response.json())
            return None

        return eventually(send, "the events are accepted")

    def answers(self) -> bool:
        with suppress(urllib3.exceptions.HTTPError):
            return self._http.request("GET", f"{self.origin}/process").status == 200
        return False

    def leader(self) -> int | None:
        """The process that listens at the newest socket and answers."""
        newest = sockets.newest(sockets.directory_of(self.database))
        if newest is None:
            return None
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(0.2)
            with sockets.address_of(newest) as address:
                connection.connect(address)
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if connection.recv(1):
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                return int(struct.unpack("3i", credentials)[0])
        return None

    def wait_leader(self, but: int | None = None) -> int:
        def look() -> int | None:
            leader = self.leader()
            return None if leader == but else leader

        return eventually(look, "a process leads the database")

    def stop_between_transactions(self, process_id: int) -> None:
        """Stop a process while it does not have SQLite's write lock, because no other process could take the lock."""
        while True:
            os.kill(process_id, signal.SIGSTOP)
            if sys.platform != "linux":
                return
            eventually(lambda: state_of(process_id) == "T", "it stops")
            connection = sqlite3.connect(self.database, timeout=0, isolation_level=None)
            with closing(connection), suppress(sqlite3.OperationalError):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                return
            os.kill(process_id, signal.SIGCONT)

    def workers(self) -> set[int]:
        """The processes that have joined and are alive. Others may have their ids now."""
        joined = {int(number) for number in re.findall(r"process (\d+) (?:is now the leader|follows)", self.log())}
        return {number for number in joined if self._is_of_server(number)}

    def _is_of_server(self, process_id: int) -> bool:
        with suppress(ProcessLookupError):
            return os.getsid(process_id) == self.process.pid
        return False

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            return connection.execute(sql, parameters).fetchall()

    def run_statuses(self) -> dict[str, str]:
        return dict(self.query("SELECT id, status FROM runs"))

    def wait_completed(self, count: int, seconds: float = TIMEOUT_SECONDS) -> None:
        def look() -> bool:
            statuses = list(self.run_statuses().values())
            return len(statuses) >= count and set(statuses) == {"Completed"}

        try:
            eventually(look, f"{count} runs have completed", timeout=seconds)
        except AssertionError:
            raise AssertionError(f"{self.run_statuses()}\n{(self.directory / 'log').read_text()[-5000:]}") from None
        assert len(self.run_statuses()) == count

    def wait_joined(self, workers: int) -> int:
        """Wait until all are nodes. Returns the leader."""
        eventually(lambda: self.log().count("follows the leader") >= workers - 1, f"{workers} processes have joined")
        return self.wait_leader()

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""


@contextmanager
def serving(
    command: Callable[[int], list[str]], directory: Path, *, stderr: IO[str] | None = None, **environment: str
) -> Iterator[Cluster]:
    """``command`` makes a server's arguments of the descriptor of a listening socket."""
    with listening_socket() as (listener, origin):
        process = subprocess.Popen(
            [sys.executable, *command(listener.fileno())],
            pass_fds=[listener.fileno()],
            cwd=ROOT,
            stderr=stderr,
            env={
                **os.environ,
                "TEST_DIRECTORY": str(directory),
                "DURABLY_DEV": "1",
                "PYTHONFAULTHANDLER": "1",
                **environment,
            },
            start_new_session=True,
        )
        cluster = Cluster(directory, origin, process)
        try:
            yield cluster
        finally:
            for worker in cluster.workers():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGCONT)
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # It writes the stacks of its threads.
                process.wait(5)
                raise
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def gunicorn(app: str, workers: int, *options: str) -> Callable[[int], list[str]]:
    settings = str(Path(__file__).with_name("gunicorn.conf.py"))
    return lambda descriptor: [
        *("-m", "gunicorn", "--config", settings, "--bind", f"fd://{descriptor}", "--workers", str(workers)),
        *options,
        f"tests.embedded.apps:{app}()",
    ]


def uvicorn(app: str, workers: int) -> Callable[[int], list[str]]:
    return lambda descriptor: [
        *("-m", "uvicorn", "--fd", str(descriptor), "--workers", str(workers), "--log-level", "warning"),
        *("--factory", f"tests.embedded.apps:{app}"),
    ]


def hypercorn(app: str, workers: int) -> Callable[[int], list[str]]:
    return lambda descriptor: [
        *("-m", "hypercorn", "--bind", f"fd://{descriptor}", "--workers", str(workers)),
        f"tests.embedded.apps:{app}()",
    ]
