"""The real command, as a subprocess in a directory of its own, and apps to give to it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

TIMEOUT_SECONDS = 90.0
COMMAND = [sys.executable, "-c", "import durably.cli; durably.cli.main()"]


class Command:
    """A running ``durably``; its output is read as it comes."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        directory: Path,
        environment: dict[str, str],
        program: Sequence[str] = COMMAND,
    ) -> None:
        self.process = subprocess.Popen(
            [*program, *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.output = ""
        self._has_grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._has_grown:
                self.output += line
                self._has_grown.notify_all()
        with self._has_grown:
            self.output += "\n(end of output)\n"
            self._has_grown.notify_all()

    def until(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first match of ``pattern`` in the output, once it is there; ``after`` is where to begin to look."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with self._has_grown:
            while not (found := re.compile(pattern).search(self.output, after)):
                left = deadline - time.monotonic()
                if left < 0 or "(end of output)" in self.output:
                    raise AssertionError(f"no {pattern!r} in the output:\n{self.output}")
                self._has_grown.wait(left)
        return found

    @property
    def origin(self) -> str:
        """The engine's."""
        return self.until(r"engine at (http://[\d.:]+)")[1]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)
        return status


class Result:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr


Start = Callable[..., Command]
Run = Callable[..., Result]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The working directory of the commands."""
    path = tmp_path / "project"
    path.mkdir()
    return path


def environment() -> dict[str, str]:
    """The tests' own, less all that names an engine or its keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DURABLY_", "INNGEST_"))}


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Start a command that stays up."""
    started: list[Command] = []

    def start_(*arguments: str, **variables: str) -> Command:
        started.append(Command(arguments, directory, environment() | variables))
        return started[-1]

    yield start_
    for command in started:
        command.stop(signal.SIGKILL)


@pytest.fixture
def run(directory: Path) -> Run:
    """Run a command to its end."""

    def run_(*arguments: str, stdin: str = "", **variables: str) -> Result:
        return Result(
            subprocess.run(
                [*COMMAND, *arguments],
                cwd=directory,
                env=environment() | variables,
                input=stdin,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=TIMEOUT_SECONDS,
            )
        )

    return run_


def write(path: Path, source: str) -> None:
    """Put a module where no cached bytecode of an earlier one can shadow it."""
    text = textwrap.dedent(source).lstrip()
    if path.exists() and len(text) == len(path.read_text()):
        text += "\n"
    path.write_text(text)
