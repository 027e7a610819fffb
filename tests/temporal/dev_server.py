"""Temporal's development server for tests: a real one, on a free port, which can be killed and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import urllib3

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal

from ..ports import free_port
from ..waiting import eventually

PATIENCE = 60.0
BILLING = "billing"
"""A namespace in addition to ``default``."""
SETTINGS = {
    "frontend.WorkflowPauseEnabled": True,
    # The server counts jobs by its index of workflows, which lags: jobs of an earlier test may still count.
    "frontend.MaxConcurrentBatchOperationPerNamespace": 100,
}


def _binary() -> str:
    beside = Path(sys.executable).with_name("temporal")
    return str(beside if beside.exists() else shutil.which("temporal"))


class DevServer:
    """``temporal server start-dev`` on its own port. With ``database`` it keeps its state over a restart."""

    def __init__(self, database: Path | None = None, *, settings: Mapping[str, Any] | None = None) -> None:
        self.port = free_port()
        self._metrics_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._database = database
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        command = [_binary(), "server", "start-dev", "--headless"]
        command += ["--ip", "127.0.0.1", "--port", str(self.port), "--log-level", "never"]
        command += ["--metrics-port", str(self._metrics_port)]
        command += ["--namespace", BILLING]
        for name, value in self._settings.items():
            command += ["--dynamic-config-value", f"{name}={json.dumps(value)}"]
        if self._database is not None:
            command += ["--db-filename", str(self._database)]
        environment = {**os.environ, "GOGC": "400"}  # Fewer garbage collections: memory for time.
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self._wait_until_it_is_healthy()

    def _wait_until_it_is_healthy(self) -> None:
        """It has a port some time before it answers."""
        temporal = Temporal(self.address)

        def is_healthy() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, "the development server has stopped"
            return get_background_loop().run(temporal.check_health()).ok

        eventually(is_healthy, "the development server is healthy", timeout=PATIENCE)

    def count_writes(self, operation: str, namespace: str = "default") -> int:
        """Operations of the server's database so far, such as ``CreateTasks``."""
        metrics = urllib3.request("GET", f"http://127.0.0.1:{self._metrics_port}/metrics").data.decode()
        labels = f'namespace="{namespace}"', f'operation="{operation}"'
        found = [line for line in metrics.splitlines() if line.startswith("persistence_requests{")]
        return sum(int(line.split()[-1]) for line in found if all(label in line for label in labels))

    def run(self, *arguments: str) -> str:
        """The output of ``temporal …`` for this server."""
        command = [_binary(), *arguments, "--address", self.address]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    def hang(self) -> None:
        """Keep connections and answer nothing, until ``go_on``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
