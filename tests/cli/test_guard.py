"""Processes that end with their parent process."""

import os
import signal
import subprocess
import sys

import pytest

from durably.cli.app_server import PARENT_VARIABLE

GUARD = (sys.executable, "-m", "durably.cli.app_server", "--guard", sys.executable, "-c")


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_program_ends_if_the_parent_ended_before_the_guard_looked(ended_process: int) -> None:
    guard = [*GUARD, "import time; time.sleep(600)"]
    process = subprocess.run(guard, env={**os.environ, PARENT_VARIABLE: str(ended_process)}, timeout=60)
    assert process.returncode in (0, 128 + signal.SIGTERM)


def test_the_program_does_not_get_the_id_of_the_guards_parent() -> None:
    code = f"import os; print({PARENT_VARIABLE!r} in os.environ)"
    guard = [*GUARD, code]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    process = subprocess.run(guard, env=environment, timeout=60, capture_output=True, text=True)
    assert process.stdout == "False\n"
