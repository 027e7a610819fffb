"""The real command, as a subprocess in a directory of its own, and apps to give to it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from .command_server import CommandServer

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


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


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


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    server = CommandServer(environment())
    yield server
    server.close()


@pytest.fixture
def run(directory: Path, command_server: CommandServer) -> Run:
    """Run a command to its end."""

    def run_(*arguments: str, stdin: str = "", **variables: str) -> Result:
        with contextlib.ExitStack() as stack:
            source, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            source.write(stdin.encode())
            source.seek(0)
            descriptors = [source.fileno(), out.fileno(), err.fileno()]
            status = command_server.run(arguments, directory, environment() | variables, descriptors, TIMEOUT_SECONDS)
            return Result(status, *(_text(file) for file in (out, err)))

    return run_


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def write(path: Path, source: str) -> None:
    """Put a module where no cached bytecode of an earlier one can shadow it."""
    text = textwrap.dedent(source).lstrip()
    if path.exists() and len(text) == len(path.read_text()):
        text += "\n"
    path.write_text(text)


APP = """
    import durably
    import durably.flask
    import flask

    client = durably.Client(app_id="shop", is_production=False)
    attempts = 0


    @client.create_function(fn_id="place", trigger=durably.TriggerEvent(event="order/placed"), retries=0)
    def place(ctx: durably.ContextSync) -> object:
        charged = ctx.step.run("charge", lambda: {"charged": ctx.event.data["total"]})
        if ctx.event.data.get("wait"):
            ctx.step.wait_for_event("paid", event="order/paid", timeout=60_000)
        if ctx.event.data.get("signal"):
            ctx.step.wait_for_signal("approved", signal=ctx.event.data["signal"], timeout=60_000)
        if ctx.event.data.get("fail"):
            raise ValueError("out of stock")
        return charged

    def pay():
        global attempts
        attempts += 1
        if attempts % 2:
            raise durably.RetryAfterError(f"the bank is closed at attempt {attempts}", 1000)
        return "charged"

    @client.create_function(fn_id="bill", trigger=durably.TriggerEvent(event="order/billed"))
    def bill(ctx: durably.ContextSync) -> object:
        paid = ctx.step.run("charge", pay)
        ctx.logger.warning("billed %s", ctx.event.data.get("total"))
        return paid

    @client.create_function(fn_id="ship", trigger=durably.TriggerEvent(event="order/shipped"))
    def ship(ctx: durably.ContextSync) -> object:
        return "shipped"

    app = flask.Flask(__name__)
    durably.flask.serve(app, client, [place, bill, ship])
"""


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """An engine with an app, for tests that only talk to it."""
    directory = tmp_path_factory.mktemp("shop")
    write(directory / "shop.py", APP)
    dev = Command(("dev", "shop:app", "--port", "0", "--app-port", "0", "--no-reload"), directory, environment())
    dev.until("shop:app is up at http")
    yield dev
    assert dev.stop() == 0


@pytest.fixture
def ask(dev: Command, run: Run) -> Run:
    """Run a command that talks to ``dev``."""

    def ask_(*arguments: str, **options: str) -> Result:
        result = run(*arguments, DURABLY_DEV=dev.origin, **options)
        assert "Traceback" not in result.stderr
        return result

    return ask_
