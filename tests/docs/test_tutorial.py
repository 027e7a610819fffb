"""The tutorial, word for word: its files, its commands, its test and its deployment, on free ports."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cli.conftest import TIMEOUT_SECONDS, Command, environment
from ..ports import free_port
from .pages import DOCS, blocks

PAGE = DOCS / "tutorial" / "first-app.md"
CONSOLES = [block.text for block in blocks(PAGE) if block.language == "console"]


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


def commands(containing: str) -> list[str]:
    """The commands of the first block that has this one."""
    console = next(text for text in CONSOLES if containing in text)
    return re.findall(r"^\$ (.*)$", console, re.MULTILINE)


def write_files(folder: Path) -> None:
    for block in blocks(PAGE):
        if named := re.match(r"# (\w+\.py)\n", block.text):
            # The bank fails less often than on the page, because retries in production take a while.
            (folder / named[1]).write_text(block.text.replace("random.random() < 0.5", "random.random() < 0.05"))


def with_port(command: str, option: str, folder: Folder) -> str:
    """The engine's command uses the default port, which other programs may have."""
    return f"{command} {option} {folder.here('8288')}"


@pytest.mark.slow
def test_the_tutorial(folder: Folder) -> None:
    write_files(folder.path)

    # Run it.
    [dev] = commands("durably dev")
    dev = f"{with_port(dev, '--port', folder)} --app-port {folder.here('8000')}"
    first = folder.start(dev)
    first.until("app:app is up")
    [printed] = [block.text for block in blocks(PAGE) if block.text.startswith("engine at")]
    assert [line for line in printed.splitlines() if folder.here(line) not in first.output] == []
    folder.run(*commands("orders/A-1"))
    first.until(r"shipped .* waits until")
    assert first.output.count("run started") == 1
    first.stop(signal.SIGINT)
    second = folder.start(dev)
    second.until("app:app is up")
    ship, list_runs = commands("durably send")
    folder.run(ship)
    second.until(r'run completed .*"delivered, with the receipt of A-1"')
    assert "Completed" in folder.run(list_runs)
    second.stop(signal.SIGINT)

    # Test it.
    _, run_tests = commands("python -m pytest")
    assert "1 passed" in folder.run(f"{run_tests} -p no:cacheprovider")

    # Deploy it.
    make_keys, *read_keys, start_engine = commands("durably keys")
    folder.run(make_keys)
    engine = folder.start(*read_keys, with_port(start_engine, "--port", folder))
    engine.until("engine started")
    app = folder.start(*commands("gunicorn app:app"))
    keys_again, sync, place_order, list_runs = commands("durably sync")
    assert "+ shop-fulfil" in folder.run(keys_again, sync)
    folder.run(place_order)
    engine.until('"step completed".*"step":"charge"')
    assert "shop-fulfil" in folder.run(keys_again, list_runs)
    engine.until('"message":"waiting".*"step":"shipped"')
    engine.stop(signal.SIGKILL)
    engine = folder.start(*read_keys, with_port(start_engine, "--port", folder))
    engine.until("engine started")
    ship, list_runs = commands('"A-2"')
    folder.run(keys_again, ship)
    engine.until('"run completed"')
    assert "Completed" in folder.run(keys_again, list_runs)
    assert (engine.stop(signal.SIGTERM), app.stop(signal.SIGTERM)) == (0, 0)
