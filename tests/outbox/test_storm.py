"""Storms: see ``storm.py``. A process of its own for each, because it forks."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import MakeUrl

ROOT = Path(__file__).parents[2]
CASES = [
    ("django", "sqlite"),
    ("django", "postgresql"),
    ("sqlalchemy", "postgresql+psycopg"),
    ("sqlalchemy", "postgresql+asyncpg"),
]


def storm(kind: str, url: str, kills: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.outbox.storm", kind, url, "--kills", str(kills), "--seed", str(seed)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLY_")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    print(result.stdout)


@pytest.mark.parametrize(
    ("kind", "driver"), [*CASES[1:3], *(pytest.param(*case, marks=pytest.mark.slow) for case in (CASES[0], CASES[3]))]
)
def test_killed_processes_lose_and_repeat_nothing(kind: str, driver: str, make_url: MakeUrl) -> None:
    storm(kind, make_url(driver), 5, random.randrange(1_000_000))


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "driver"), CASES)
def test_five_hundred_killed_processes(kind: str, driver: str, make_url: MakeUrl) -> None:
    storm(kind, make_url(driver), 500, random.randrange(1_000_000))
