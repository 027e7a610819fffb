"""``durably top``: its lines in any terminal, and its screen in a real one."""

import datetime as dt
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.cli.commands.top import render
from durably.engine.model.overview import Concern, ConcernKind, FunctionLoad, Overview, RunCounts
from durably.engine.model.runs import RunStatus

from ..conftest import COMMAND, TIMEOUT_SECONDS, Command, Run, Start, environment

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def load(function_id: str, *, completed: int = 0, failed: int = 0, **present: Any) -> FunctionLoad:
    counts = [RunCounts(at=NOW, created=completed + failed, completed=completed, failed=failed)]
    present = {"backlog": 0, "queue_delay": None, "in_flight": 0, "live": 0, **present}
    return FunctionLoad(function_id=function_id, counts=counts, **present)


def overview(*functions: FunctionLoad, concerns: tuple[str, ...] = ()) -> Overview:
    minutes = [RunCounts(at=NOW + dt.timedelta(minutes=n), completed=n, failed=1) for n in range(61)]
    return Overview(
        since=NOW,
        until=NOW + dt.timedelta(hours=1),
        interval_seconds=60,
        counts=minutes,
        live={RunStatus.SCHEDULED: 2, RunStatus.RUNNING: 1234},
        functions=list(functions),
        concerns=[
            Concern(kind=ConcernKind.FAILING_FUNCTION, subject="x", message=message, count=1, since=NOW)
            for message in concerns
        ],
    )


BUSY = overview(
    load("shop-idle"),
    load("shop-busy", completed=9_000, backlog=12_345, queue_delay=75.0, in_flight=500, live=13_000),
    load("shop-failing", completed=3, failed=7, in_flight=1, live=1),
    concerns=("7 of 10 runs of 'shop-failing' failed in the last hour: mend it", "another"),
)


def plain(lines: list[Any]) -> list[str]:
    return [click.unstyle(line) for line in lines]


def test_the_state_is_shown_with_failing_functions_first() -> None:
    lines = plain(render(BUSY, 120))
    assert lines[0] == (
        "58.0 runs/min · 61 of 1,891 failed in 1 h · backlog 12,345 · 501 calls · 2 scheduled · 1,234 running"
    )
    assert lines[1][0] == "▁"
    assert lines[1][-1] == "█"
    rows = [line.split() for line in lines[3:7]]
    assert rows[0] == ["FUNCTION", "FAILED", "BACKLOG", "RUNS/H", "DELAY", "CALLS", "LIVE"]
    assert rows[1] == ["shop-failing", "7", "·", "10", "·", "1", "1"]
    assert rows[2] == ["shop-busy", "·", "12,345", "9,000", "1", "m", "15", "s", "500", "13,000"]
    assert rows[3][0] == "shop-idle"
    assert lines[8:] == ["! 7 of 10 runs of 'shop-failing' failed in the last hour: mend it", "! another"]


def test_a_narrow_terminal_lacks_the_last_columns() -> None:
    lines = plain(render(BUSY, 34))
    assert all(len(line) <= 34 for line in lines)
    [headings] = [line for line in lines if line.startswith("FUNCTION")]
    assert headings.split() == ["FUNCTION", "FAILED", "BACKLOG"]


def test_the_remedy_at_the_end_of_a_long_sentence_is_shown() -> None:
    message = (
        "3 of 10 runs of 'shop-failing' failed in the last hour: see the error, mend the function, and replay them"
    )
    lines = plain(render(overview(concerns=(message,)), 40))
    assert all(len(line) <= 40 for line in lines)
    assert " ".join(line.strip() for line in lines[lines.index("") + 3 :]) == f"! {message}"


@given(st.text(max_size=80), st.integers(1, 200), st.integers(1, 60))
def test_no_line_is_too_long_and_no_name_harms_the_terminal(name: str, width: int, height: int) -> None:
    functions = [load(f"{name}{number}\x1b[2J\u202e", failed=number) for number in range(30)]
    shown = plain(render(overview(*functions, concerns=(name,) * 9), width, height))
    assert len(shown) <= height
    assert all(len(line) <= width for line in shown)
    assert not re.search(r"[\x00-\x1f\x7f\u202e]", "".join(shown))


def test_functions_that_do_not_fit_are_counted() -> None:
    functions = [load(f"f{number}") for number in range(30)]
    lines = plain(render(overview(*functions), 80, 12))
    assert len(lines) == 12
    assert lines[-1] == "… 24 more"
    assert plain(render(overview(), 80))[-1] == "no functions: sync an app with this engine"


def completed(ask: Run) -> int:
    """Runs of the last hour that have completed."""
    return sum(each["completed"] for each in json.loads(ask("top", "--json").stdout)["counts"])


def test_the_state_is_printed_once(ask: Run) -> None:
    before = completed(ask)
    assert ask("invoke", "shop-place", "--data", '{"total": 3}').status == 0
    assert completed(ask) == before + 1  # of all functions
    for arguments in ([], ["--once"]):
        printed = ask("top", *arguments)
        assert printed.status == 0, printed.stderr
        assert "\x1b" not in printed.stdout
        [row] = [line.split() for line in printed.stdout.splitlines() if line.startswith("shop-place")]
        assert int(row[3]) > 0


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, directory: Path) -> None:
        self._main, other = pty.openpty()
        variables = environment() | {"TERM": "xterm", "COLUMNS": "70", "LINES": "20"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=directory,
            env=variables,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self.output = ""

    def until(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self.output:
            ready, _, _ = select.select([self._main], [], [], max(deadline - time.monotonic(), 0))
            assert ready, self.output
            self.output += os.read(self._main, 65536).decode()

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def end(self) -> int:
        """The exit code, once the command has ended."""
        try:
            while chunk := os.read(self._main, 65536):
                self.output += chunk.decode()
        except OSError:  # Linux reports the end of a terminal so.
            pass
        status = self.process.wait(TIMEOUT_SECONDS)
        os.close(self._main)
        return status


@pytest.mark.parametrize("how", ["q", "Ctrl-C"])
def test_the_screen_is_live_and_is_left_as_it_was(ask: Run, dev: Command, directory: Path, how: str) -> None:
    terminal = Terminal("top", "--url", dev.origin, directory=directory)
    terminal.until(" failed in 1 h")
    assert ask("invoke", "shop-place", "--data", '{"total": 3}').status == 0
    ended = re.findall(r"of ([\d,]+) failed", terminal.output)[-1]
    terminal.until(f"of {int(ended) + 1} failed")
    if how == "q":
        terminal.type("xq")
    else:
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0, terminal.output
    assert terminal.output.count("\x1b[?1049h") == terminal.output.count("\x1b[?1049l") == 1
    assert terminal.output.rstrip().endswith("\x1b[?1049l")
    assert "Traceback" not in terminal.output


def test_unreachable_engine_is_reported(start: Start, run: Run, directory: Path) -> None:
    dev = start("dev", "--port", "0")
    terminal = Terminal("top", "--url", dev.origin, directory=directory)
    terminal.until("no functions")
    origin = dev.origin
    dev.stop()
    terminal.until("not up to date: no engine answers")
    terminal.type("q")
    assert terminal.end() == 0
    failed = run("top", "--once", "--url", origin)
    assert (failed.status, "no engine answers" in failed.stderr) == (1, True)
