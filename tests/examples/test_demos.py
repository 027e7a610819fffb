"""``make demo-cluster`` and ``make demo-failover``: a run continues in another process, after its own was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def output_of(module: str) -> str:
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_continues_in_another_worker_on_temporal() -> None:
    killed, after = output_of("examples.demo_cluster").split("$ kill -9", 1)
    assert killed.count("runs the functions shop-fulfil-order") == 2
    assert "has continued the run" in after
    assert '"status": "delivered"' in after


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_continues_on_another_machine_after_the_loss_of_the_leader_and_its_disk() -> None:
    before, after = output_of("examples.demo_failover").split("$ rm -r", 1)
    assert "charge" in before
    assert "ship" not in before
    assert "leads" in after
    assert "order A-1 is on its way" in after
    assert "No committed step ran again" in after
