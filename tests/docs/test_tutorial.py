"""The tutorial, word for word: its files, its commands, its test and its deployment, on free ports."""

import re
import signal
from pathlib import Path

import pytest

from .conftest import Folder
from .pages import DOCS, blocks

PAGE = DOCS / "tutorial" / "first-app.md"
CONSOLES = [block.text for block in blocks(PAGE) if block.language == "console"]


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
def test_tutorial_works_word_for_word(folder: Folder) -> None:
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
