"""The folder in which a reader follows a page."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cli.conftest import TIMEOUT_SECONDS, Command, environment
from ..ports import free_port


class Folder:
    """The reader's folder, with ports of this test in place of the default ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ports = {"8288": str(free_port()), "8000": str(free_port())}
        self._running: list[Command] = []
        self._variables = environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self._variables["DURABLY_ENGINE_URL"] = self.here("http://127.0.0.1:8288")

    def here(self, text: str) -> str:
        for default, own in self._ports.items():
            text = text.replace(default, own)
        return text

    def run(self, *commands: str) -> str:
        line = "; ".join(self.here(command) for command in commands)
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=self.path,
            env=self._variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *commands: str) -> Command:
        *before, last = (self.here(command) for command in commands)
        line = "; ".join([*before, f"exec {last}"])
        self._running.append(Command((), self.path, self._variables, ["bash", "-ec", line]))
        return self._running[-1]

    def stop(self) -> None:
        for command in self._running:
            command.stop(signal.SIGTERM)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    folder.stop()
