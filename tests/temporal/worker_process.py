"""``durably temporal worker`` in a separate process, with its health endpoint."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..cli.conftest import Command, write
from ..ports import free_port
from .dev_server import DevServer


class WorkerProcess:
    """``source`` is a module with a ``temporal`` in it, which may import the tests'."""

    def __init__(self, directory: Path, server: DevServer, source: str) -> None:
        write(directory / "worker.py", source)
        health = f"127.0.0.1:{free_port()}"
        self._ready_url = f"http://{health}/ready"
        root = str(Path(__file__).parents[2])
        variables = {**os.environ, "TEMPORAL_ADDRESS": server.address, "PYTHONPATH": root}
        arguments = ("temporal", "worker", "worker:temporal", "--health", health)
        self.command = Command(arguments, directory, variables)
        self.command.until("working on ")

    def ready(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self._ready_url, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def kill(self) -> None:
        self.command.process.kill()
        self.command.wait()
