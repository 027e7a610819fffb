"""``make demo-cluster``: the FastAPI example, unchanged, on two worker processes and a Temporal server."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_continues_in_another_worker_after_a_kill() -> None:
    command = [sys.executable, "-m", "examples.demo_cluster"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    killed, after = done.stdout.split("$ kill -9", 1)
    assert killed.count("runs the functions shop-fulfil-order") == 2
    assert "has continued the run" in after
    assert '"status": "delivered"' in after
